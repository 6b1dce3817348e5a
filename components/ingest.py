"""Read, check and publish pairs."""

from kfp import dsl

from components.base import component


@component
def ingest(config: str, role: str, language: str, pairs: dsl.Output[dsl.Dataset]) -> None:
    """Publish the pairs that ``config.data`` names.

    Args:
        role: ``source`` (labelled English), ``source_dev``, ``pool`` (unlabelled target) or ``test`` (labelled target).
    """
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from conlst.contract.config import config_from_json
    from conlst.data.ingestion import ingest as ingest_pairs
    from conlst.platform.collected import files_of
    from conlst.platform.objects import localize

    checked = config_from_json(config)
    files, collected = files_of(checked.data.sources(role, language), language)
    with TemporaryDirectory() as fetched:
        sources = [str(localize(file, Path(fetched))) for file in files]
        report = ingest_pairs(checked, role, sources, language, Path(pairs.path), collected=collected)
    pairs.metadata.update(rows=report["rows"], pairs=report["pairs"], bad=report["bad"])


@component
def ingest_pools(config: str, languages: list, pairs: dsl.Output[dsl.Dataset]) -> None:
    """Publish the pools of several languages as one, for a model that is trained on all of them."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from conlst.contract.config import config_from_json
    from conlst.platform.collected import files_of
    from conlst.platform.objects import localize
    from conlst.stages.folders import ingest_pool

    checked = config_from_json(config)
    sources, collected = {}, {}
    with TemporaryDirectory() as fetched:
        for language in languages:
            files, collected[language] = files_of(checked.data.sources("pool", language), language)
            sources[language] = [str(localize(file, Path(fetched))) for file in files]
        ingest_pool(checked, sources, Path(pairs.path), collected=collected)
