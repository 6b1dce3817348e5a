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
    from conlst.platform.collected import is_collected, new_files
    from conlst.platform.objects import localize

    checked = config_from_json(config)
    given = checked.data.sources(role, language)
    collected = {source: new_files(source, language) for source in given if is_collected(source)}
    with TemporaryDirectory() as fetched:
        addresses = [address for source in given for address in collected.get(source, [source])]
        sources = [str(localize(address, Path(fetched))) for address in addresses]
        report = ingest_pairs(checked, role, sources, language, Path(pairs.path), collected=collected)
    pairs.metadata.update(rows=report["rows"], pairs=report["pairs"], bad=report["bad"])
