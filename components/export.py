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
    test: dsl.Input[dsl.Dataset],
    development: dsl.Input[dsl.Dataset],
    evaluation: dsl.Input[dsl.Artifact],
    served: dsl.Output[dsl.Model],
) -> None:
    """Write ``model`` as ONNX, calibrated, INT8 if that passes; fails unless it answers ``pairs`` as torch does.

    Args:
        pairs: the pool; those of other languages are left out.
        test: pairs of the language; their labels are read only if those of ``evaluation`` were.
        development: labelled English pairs.
    """
    from pathlib import Path

    from components.record import recorded
    from conlst.contract.config import config_from_json
    from conlst.stages.folders import export_model

    checked = config_from_json(config)
    with recorded(checked, job, language, "export", served.path) as run:
        difference = export_model(
            checked,
            Path(model.path),
            Path(pairs.path),
            Path(served.path),
            development=Path(development.path),
            test=Path(test.path),
            evaluation=Path(evaluation.path),
            language=language,
        )
        run.metrics({"parity": difference})
