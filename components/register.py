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
    pool: dsl.Input[dsl.Dataset],
) -> int:
    """Upload ``served`` and register its address with the metrics that the gate will read.

    Args:
        store: ``s3://bucket/prefix``.
        pool: what it was adapted on; the language's collected text is taken with it.

    Returns:
        The version.
    """
    from pathlib import Path

    from components.record import part_of
    from conlst.contract.config import config_from_json
    from conlst.data.pairs import collected_in
    from conlst.platform.collected import take
    from conlst.platform.release import release

    folders = Path(served.path), Path(evaluation.path), Path(zero_shot.path), Path(pool.path)
    with part_of(job):
        version = release(config_from_json(config), job, language, store, *folders)
        for source, files in collected_in(Path(pool.path)).items():
            take(source, language, job, files)
    return version
