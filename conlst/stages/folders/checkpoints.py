"""Where a stage keeps its checkpoint, and what makes it the checkpoint of that run."""

from pathlib import Path
from typing import Any

from conlst.contract.artifacts import canonical_json
from conlst.contract.config import Config
from conlst.parallel import world
from conlst.training import Checkpoints


def checkpoints_for(config: Config, out: Path, stage: str, identity: list[Any]) -> Checkpoints:
    """The checkpoints of the stage that makes ``out``, kept beside it.

    Args:
        identity: JSON values that the run depends on besides seed, backbone, precision and number of processes.
    """
    whole = canonical_json([identity, config.seed, config.backbone.model_dump(), config.compute.precision, world().size])
    return Checkpoints(out.parent / f"{out.name}.{stage}-checkpoint", config.compute.checkpoint_every, whole)
