"""Read, check and publish pairs."""

from kfp import dsl

from components.base import component


@component
def ingest(config: str, job: str, role: str, language: str, pairs: dsl.Output[dsl.Dataset]) -> None:
    """Publish the pairs that ``config.data`` names.

    Args:
        role: ``source`` (labelled English), ``source_dev``, ``pool`` (unlabelled target) or ``test`` (labelled target).
    """
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from components.record import part_of
    from conlst.contract.config import config_from_json
    from conlst.data.ingestion import ingest as ingest_pairs
    from conlst.platform.collected import fetch

    checked = config_from_json(config)
    with part_of(job), TemporaryDirectory() as folder:
        sources, collected = fetch(checked.data.sources(role, language), language, Path(folder))
        report = ingest_pairs(checked, role, sources, language, Path(pairs.path), collected=collected)
    pairs.metadata.update(rows=report["rows"], pairs=report["pairs"], bad=report["bad"])


@component
def ingest_pools(config: str, job: str, languages: list, pairs: dsl.Output[dsl.Dataset]) -> str:
    """Publish the pools of several languages as one, for a model that is trained on all of them.

    Returns:
        What the model's language is: that of the pool if it is of one, else ``mul``.
    """
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from components.record import part_of
    from conlst.contract.artifacts import read_manifest
    from conlst.contract.config import config_from_json
    from conlst.data.ingestion import ingest_pool
    from conlst.platform.collected import fetch

    checked = config_from_json(config)
    sources, collected = {}, {}
    with part_of(job), TemporaryDirectory() as folder:
        for language in languages:
            sources[language], collected[language] = fetch(checked.data.sources("pool", language), language, Path(folder))
        spoken = ingest_pool(checked, sources, Path(pairs.path), collected=collected)
    pairs.metadata.update(pairs=read_manifest(Path(pairs.path)).meta["pairs"], languages=len(languages))
    return spoken
