"""Text that the endpoint collected, as a pool: what came since the last adaptation.

``collected:s3://bucket/prefix`` stands for Parquet files ``<prefix>/language=<code>/….parquet``. Which of them an adaptation has
taken is written once it is registered, as ``<prefix>/taken/language=<code>/<job>.json``: a language that fails takes nothing,
and the next run finds the same text again.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from conlst.contract.config import COLLECTED
from conlst.contract.errors import ConfigError
from conlst.platform import objects

log = logging.getLogger(__name__)


def is_collected(source: str) -> bool:
    """Whether an address of ``data.pools`` stands for collected text."""
    return source.startswith(COLLECTED)


def new_files(source: str, language: str) -> list[str]:
    """Addresses of the files that no adaptation has taken, in the order of their keys.

    Raises:
        ConfigError: if ``source`` is no address of collected text.
        BackendError: if S3 cannot be reached or refuses.
    """
    prefix = _prefix(source)
    found = [uri for uri in objects.list_objects(f"{prefix}/language={language}") if uri.endswith(".parquet")]
    lists = objects.list_objects(f"{prefix}/taken/language={language}")
    taken = {uri for made in lists for uri in json.loads(objects.read_object(made))}
    return [uri for uri in found if uri not in taken]


def files_of(sources: Sequence[str], language: str) -> tuple[list[str], dict[str, list[str]]]:
    """The addresses that sources of pairs stand for: new files in the place of collected text, any other address as it is.

    Returns:
        All of them, and those of collected text by their source.

    Raises:
        ConfigError, BackendError: as :func:`new_files`.
    """
    collected = {source: new_files(source, language) for source in sources if is_collected(source)}
    return [file for source in sources for file in collected.get(source, [source])], collected


def fetch(sources: Sequence[str], language: str, folder: Path) -> tuple[list[str], dict[str, list[str]]]:
    """The files of :func:`files_of` on this machine, below ``folder`` if they had to be fetched, and those of collected text.

    Raises:
        ConfigError, BackendError: as :func:`new_files`, and as :func:`conlst.platform.objects.localize`.
    """
    files, collected = files_of(sources, language)
    local = {file: str(objects.localize(file, folder)) for file in files}
    for file, copy in local.items():
        # errors name the copy
        log.info("%s pairs: %s%s", language, file, "" if copy == file else f", here {copy}")
    return [local[file] for file in files], collected


def take(source: str, language: str, job: str, files: Sequence[str]) -> None:
    """Note that the run ``job`` has made a version of those files that are of the language; again does no harm.

    Raises:
        BackendError: if S3 cannot be reached or refuses.
    """
    prefix = _prefix(source)
    own = sorted(file for file in files if file.startswith(f"{prefix}/language={language}/"))
    if own:
        # a note that is there already is this one, of an earlier try: a run has one pool, and a language of it its files
        objects.put_new(json.dumps(own).encode(), f"{prefix}/taken/language={language}/{job}.json")


def _prefix(source: str) -> str:
    prefix = source.removeprefix(COLLECTED).rstrip("/")
    if not is_collected(source) or not prefix.startswith("s3://"):
        raise ConfigError(f"{source!r} is no address of collected text, {COLLECTED}s3://bucket/prefix")
    return prefix
