"""How a task is recorded in MLflow. Imported inside component bodies, where KFP leaves only a part of its own package."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from uuid import uuid4

from conlst.contract.artifacts import MANIFEST, read_manifest
from conlst.contract.config import Config
from conlst.contract.logs import set_up_logging
from conlst.platform import tracking
from conlst.platform.origin import origin

EXPERIMENT = "conlst"


@contextmanager
def recorded(config: Config, job: str, language: str, stage: str, out: str) -> Iterator[tracking.Run]:
    """An MLflow run for one stage of one language, below the run of the pipeline.

    A task that is tried again continues its run. The manifest of what the stage published, with its parents, is attached.

    Args:
        job: the pipeline run's id.
        out: path of the folder that the stage publishes.
    """
    set_up_logging()
    key = f"{job}/{language}/{stage}"
    params = {"seed": config.seed, "config": config.name, "config_digest": config.digest}
    tags = {"language": language, "stage": stage, "job": job, **origin()}
    folder = Path(f"{out}.untracked")
    with tracking.run(key, experiment=EXPERIMENT, folder=folder, key=key, parent=job, tags=tags, params=params) as run:
        yield run
        if (Path(out) / MANIFEST).is_file():
            manifest = read_manifest(Path(out))
            numbers = {name: value for name, value in manifest.meta.items() if isinstance(value, int | float)}
            run.metrics(numbers)
            run.artifact(Path(out) / MANIFEST)


@contextmanager
def part_of(job: str) -> Iterator[None]:
    """A task that is no stage: it has no run of its own, but ends the run of the pipeline if it fails, as a stage does.

    Args:
        job: the pipeline run's id.
    """
    set_up_logging()
    folder = Path(gettempdir()) / f"{uuid4().hex}.untracked"
    with tracking.part_of(job, experiment=EXPERIMENT, folder=folder):
        yield
