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
    from conlst.platform.objects import localize
    from conlst.stages import folders

    checked = config_from_json(config)
    with TemporaryDirectory() as fetched:
        sources = [str(localize(source, Path(fetched))) for source in checked.data.sources(role, language)]
        report = folders.ingest(checked, role, sources, language, Path(pairs.path))
    pairs.metadata.update(rows=report["rows"], pairs=report["pairs"], bad=report["bad"])
