"""Evaluation on labelled pairs of the target language, alone and against an earlier model."""

from kfp import dsl

from components.base import component


@component
def evaluate_zero_shot(
    config: str,
    job: str,
    language: str,
    model: dsl.Input[dsl.Model],
    test: dsl.Input[dsl.Dataset],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Measure the source model in a language that it was not trained in."""
    from pathlib import Path

    from components.record import recorded
    from conlst.contract.config import config_from_json
    from conlst.stages.folders import evaluate_model

    checked = config_from_json(config)
    with recorded(checked, job, language, "zero-shot", evaluation.path):
        result = evaluate_model(checked, Path(model.path), Path(test.path), language, Path(evaluation.path))
    for name in ("n", "accuracy", "macro_f1", "ece"):
        metrics.log_metric(name, result[name])


@component
def evaluate(
    config: str,
    job: str,
    language: str,
    stage: str,
    model: dsl.Input[dsl.Model],
    test: dsl.Input[dsl.Dataset],
    before: dsl.Input[dsl.Artifact],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
    table: dsl.Output[dsl.Markdown],
) -> None:
    """Measure a trained model and compare it with an earlier evaluation of the same pairs.

    Args:
        stage: ``calibrated`` or ``adapted``, for the record.
    """
    import shutil
    from pathlib import Path

    from components.record import recorded
    from conlst.contract.config import config_from_json
    from conlst.stages.folders import evaluate_model

    checked = config_from_json(config)
    out = Path(evaluation.path)
    with recorded(checked, job, language, stage, evaluation.path) as run:
        result = evaluate_model(checked, Path(model.path), Path(test.path), language, out, Path(before.path))
        for band in result["bands"]:
            run.metrics({f"{band['band']}/{name}": band[name] for name in ("count", "accuracy") if band[name] is not None})
        for figure in sorted((out / "figures").iterdir()):
            run.figure(figure)
    for name in ("n", "accuracy", "macro_f1", "ece"):
        metrics.log_metric(name, result[name])
    shutil.copyfile(out / "page.html", page.path)
    shutil.copyfile(out / "table.md", table.path)
