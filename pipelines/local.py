"""The compiled pipeline on one machine, through kfp.local: the same components, each in a process of its own."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from kfp import compiler, components, dsl, local

from conlst.contract.config import Config
from conlst.contract.errors import BackendError
from conlst.runtime.cpu import available_cpus
from pipelines.adaptation import Placement, adaptation, check_languages

log = logging.getLogger(__name__)


def on_this_machine(at_once: int) -> Placement:
    """No cluster settings at all."""

    def here(task: dsl.PipelineTask) -> dsl.PipelineTask:
        return task

    return Placement(here, here, at_once)


def run_locally(config: Config, root: Path, store: str, at_once: int = 1) -> dict[str, Any]:
    """Compile the pipeline and run what was compiled.

    Args:
        root: gets ``pipeline.yaml``, the artifacts, and MLflow's database unless ``MLFLOW_TRACKING_URI`` names another.
        store: ``s3://bucket/prefix`` for the released models.
        at_once: languages adapted at the same time.

    Returns:
        ``decisions`` of the gate by language, and where to look: ``pipeline``, ``artifacts``, ``tracking``.

    Raises:
        ConfigError: if the configuration names no languages.
        BackendError: if a task failed; its log tells which and why.
    """
    check_languages(config)
    root = root.resolve()
    artifacts = root / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    tracking = os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # tasks side by side share the cores; threads that spin for work would take them from one another
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cpus() // at_once)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    compiled = root / "pipeline.yaml"
    compiler.Compiler().compile(adaptation(config.adapt, on_this_machine(at_once)), str(compiled))

    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(artifacts), raise_on_error=True)
    pipeline = components.load_component_from_file(str(compiled))
    try:
        task = pipeline(config=config.to_json(), languages=list(config.languages), store=store)
    except RuntimeError as error:
        # kfp.local raises with the failed task's name; the reason stands in the task's log above
        raise BackendError(f"the pipeline failed: {error}") from error
    return {
        "decisions": json.loads(task.output),
        "pipeline": str(compiled),
        "artifacts": str(artifacts),
        "tracking": tracking,
    }
