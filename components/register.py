"""Publish a model to S3 and register it as challenger of its language."""

from kfp import dsl

from components.base import component


@component
def register(
    config: str,
    job: str,
    language: str,
    store: str,
    served: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    zero_shot: dsl.Input[dsl.Artifact],
) -> int:
    """Upload ``served`` and register its address with the metrics that the gate will read.

    Args:
        store: ``s3://bucket/prefix``.

    Returns:
        The version.
    """
    from pathlib import Path

    from conlst.contract.config import config_from_json
    from conlst.platform.release import release

    folders = Path(served.path), Path(evaluation.path), Path(zero_shot.path)
    return release(config_from_json(config), job, language, store, *folders)
