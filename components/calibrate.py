"""Stage 1: contrastive negative learning."""

from kfp import dsl

from components.base import component


@component
def calibrate(
    config: str,
    job: str,
    language: str,
    model: dsl.Input[dsl.Model],
    pool: dsl.Input[dsl.Dataset],
    source: dsl.Input[dsl.Dataset],
    calibrated: dsl.Output[dsl.Model],
) -> None:
    """Calibrate ``model`` on the unlabelled ``pool`` of ``language``, or of several (``mul``)."""
    from pathlib import Path

    from components.record import recorded
    from conlst.contract.config import config_from_json
    from conlst.stages.folders import calibrate_model

    checked = config_from_json(config)
    with recorded(checked, job, language, "calibrate", calibrated.path) as run:
        folders = Path(model.path), Path(pool.path), language, Path(calibrated.path), Path(source.path)
        calibrate_model(checked, *folders, sink=run.metrics)
