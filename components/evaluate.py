"""What a model is worth in the target language: measured on labelled pairs, or estimated where ``gate.evidence`` is none."""

from kfp import dsl

from components.base import component


@component
def evaluate_zero_shot(
    config: str,
    job: str,
    language: str,
    model: dsl.Input[dsl.Model],
    test: dsl.Input[dsl.Dataset],
    development: dsl.Input[dsl.Dataset],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Judge the source model in a language that it was not trained in.

    Args:
        development: labelled English pairs, for the estimates.
    """
    from pathlib import Path

    from components.record import recorded
    from conlst.contract.config import config_from_json
    from conlst.stages.folders import estimate_model, evaluate_model

    checked, out = config_from_json(config), Path(evaluation.path)
    with recorded(checked, job, language, "zero-shot", evaluation.path):
        if checked.gate.evidence == "none":
            result = estimate_model(checked, Path(model.path), Path(test.path), Path(development.path), language, out)
        else:
            result = evaluate_model(checked, Path(model.path), Path(test.path), language, out)
    for name, value in result.items():
        if isinstance(value, int | float):
            metrics.log_metric(name, value)


@component
def evaluate(
    config: str,
    job: str,
    language: str,
    stage: str,
    model: dsl.Input[dsl.Model],
    test: dsl.Input[dsl.Dataset],
    development: dsl.Input[dsl.Dataset],
    before: dsl.Input[dsl.Artifact],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
    table: dsl.Output[dsl.Markdown],
) -> None:
    """Judge a trained model and, with labels, compare it with an earlier evaluation of the same pairs.

    Args:
        stage: for the record, ``adapted`` for the last model and ``calibrated`` for one before it.
        development: labelled English pairs, for the estimates.
    """
    import shutil
    from pathlib import Path

    from components.record import recorded
    from conlst.contract.config import config_from_json
    from conlst.stages.folders import estimate_model, evaluate_model

    checked, out = config_from_json(config), Path(evaluation.path)
    with recorded(checked, job, language, stage, evaluation.path) as run:
        if checked.gate.evidence == "none":
            result = estimate_model(checked, Path(model.path), Path(test.path), Path(development.path), language, out)
        else:
            result = evaluate_model(checked, Path(model.path), Path(test.path), language, out, Path(before.path))
            for band in result["bands"]:
                run.metrics({f"{band['band']}/{name}": band[name] for name in ("count", "accuracy") if band[name] is not None})
            for figure in sorted((out / "figures").iterdir()):
                run.figure(figure)
    for name, value in result.items():
        if isinstance(value, int | float):
            metrics.log_metric(name, value)
    shutil.copyfile(out / "page.html", page.path)
    shutil.copyfile(out / "table.md", table.path)
