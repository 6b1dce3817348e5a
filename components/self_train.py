"""Stage 2: self-training."""

from kfp import dsl

from components.base import component


@component
def self_train(
    config: str,
    job: str,
    language: str,
    model: dsl.Input[dsl.Model],
    pool: dsl.Input[dsl.Dataset],
    source: dsl.Input[dsl.Dataset],
    adapted: dsl.Output[dsl.Model],
) -> None:
    """Self-train ``model``, calibrated or not, on the unlabelled ``pool`` of ``language``, or of several (``mul``)."""
    from pathlib import Path

    from components.record import recorded
    from conlst.contract.config import config_from_json
    from conlst.stages.folders import self_train_model

    checked = config_from_json(config)
    with recorded(checked, job, language, "selftrain", adapted.path) as run:
        folders = Path(model.path), Path(pool.path), language, Path(adapted.path), Path(source.path)
        self_train_model(checked, *folders, sink=run.metrics)
