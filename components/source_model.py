"""Stage 0: the model to start from."""

from kfp import dsl

from components.base import component


@component
def source_model(
    config: str, job: str, pairs: dsl.Input[dsl.Dataset], dev: dsl.Input[dsl.Dataset], model: dsl.Output[dsl.Model]
) -> None:
    """Train on ``pairs``, or take the starter or a published model: whatever ``config.source_model`` says."""
    from pathlib import Path

    from components.record import recorded
    from conlst.contract.config import config_from_json
    from conlst.platform.objects import localize
    from conlst.stages.folders import provide_source_model

    checked = config_from_json(config)
    out = Path(model.path)
    with recorded(checked, job, "en", "source", model.path) as run:
        start = localize(checked.source_model, out.parent / "fetched")
        provide_source_model(checked, str(start), Path(pairs.path), Path(dev.path), out, sink=run.metrics)
