"""Export to ONNX."""

from kfp import dsl

from components.base import component


@component
def export(
    config: str,
    job: str,
    language: str,
    model: dsl.Input[dsl.Model],
    pairs: dsl.Input[dsl.Dataset],
    served: dsl.Output[dsl.Model],
) -> None:
    """Write ``model`` as ONNX; fails unless it answers ``pairs`` as torch does."""
    from pathlib import Path

    from components.record import recorded
    from conlst.contract.config import config_from_json
    from conlst.stages.folders import export_model

    checked = config_from_json(config)
    with recorded(checked, job, language, "export", served.path) as run:
        difference = export_model(checked, Path(model.path), Path(pairs.path), Path(served.path))
        run.metrics({"parity": difference})
