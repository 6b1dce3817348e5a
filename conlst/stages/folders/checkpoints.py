"""What a stage finds of an earlier call: its result, or its checkpoint, and what makes them those of this run."""

import logging
from pathlib import Path
from typing import Any

import torch

from conlst.contract.artifacts import MANIFEST, canonical_json, verify
from conlst.contract.config import Config
from conlst.parallel import world
from conlst.training import Checkpoints

log = logging.getLogger(__name__)


def is_made_from(out: Path, config: Config, parents: dict[str, str]) -> bool:
    """Whether ``out`` was published by the same configuration from the same parents; of several processes all must ask.

    Raises:
        ArtifactError: if ``out`` is damaged.
    """
    # the first process writes, so it alone knows: another may see another disk, and would wait for it or it for the other
    made = world().is_first and _is_made_from(out, config, parents)
    made = bool(world().agree(torch.tensor(made)))
    if made:
        log.info("%s was made from the same before and is kept", out)
    return made


def _is_made_from(out: Path, config: Config, parents: dict[str, str]) -> bool:
    if not (out / MANIFEST).exists():
        return False
    manifest = verify(out)
    return manifest.parents == parents and manifest.config == config.to_dict()


def checkpoints_for(config: Config, out: Path, stage: str, identity: list[Any]) -> Checkpoints:
    """The checkpoints of the stage that makes ``out``, kept beside it.

    Args:
        identity: JSON values that the run depends on besides seed, backbone, precision and number of processes.
    """
    whole = canonical_json([identity, config.seed, config.backbone.model_dump(), config.compute.precision, world().size])
    return Checkpoints(out.parent / f"{out.name}.{stage}-checkpoint", config.compute.checkpoint_every, whole)
