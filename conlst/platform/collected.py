"""Text that the endpoint collected, as a pool: what came since the last adaptation.

``collected:s3://bucket/prefix`` stands for Parquet files ``<prefix>/language=<code>/….parquet``. Which of them an adaptation has
taken is written once it is registered, as ``<prefix>/taken/language=<code>/<job>.json``: a run that fails takes nothing, and the
next one finds the same text again.
"""

import json

from conlst.contract.config import COLLECTED
from conlst.contract.errors import ConfigError
from conlst.platform import objects


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


def take(source: str, language: str, job: str, files: list[str]) -> None:
    """Note that the run ``job`` has made a version of these files; again does no harm.

    Raises:
        BackendError: if S3 cannot be reached or refuses.
    """
    objects.put_new(json.dumps(sorted(files)).encode(), f"{_prefix(source)}/taken/language={language}/{job}.json")


def _prefix(source: str) -> str:
    prefix = source.removeprefix(COLLECTED).rstrip("/")
    if not is_collected(source) or not prefix.startswith("s3://"):
        raise ConfigError(f"{source!r} is no address of collected text, {COLLECTED}s3://bucket/prefix")
    return prefix
