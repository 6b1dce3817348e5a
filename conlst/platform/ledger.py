"""Who was champion of a language when, on what data and by which decision: a chain of entries in S3, written once each.

Entry ``n`` is the object ``<store>/champions/<language>/<n>.json``, put on condition that it is not there yet. So of two
promotions that began from the same champion one is written, and the other is told: MLflow's aliases have no compare-and-set.
The alias ``champion`` follows the last entry. Where they differ, that promotion was cut short before it moved the alias, or a
person has moved it since: then the alias is right. It is what is served, what the next candidate is compared with and what a
rollback leaves.
"""

import json
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from conlst.contract.errors import RegistryError
from conlst.platform import objects

_DIGITS = 6


@dataclass(frozen=True)
class Entry:
    """A champion.

    Attributes:
        number: place in the chain, from 1.
        version, uri, digest: of the registry; the version to serve from now on.
        replaces: the champion before, ``None`` for the first.
        action: ``promote``, or ``rollback`` to an earlier version.
        reasons: of the decision.
        metrics: that the gate read.
        data: what it was measured and made on, from the version's tags.
        at: UTC, ISO 8601.
        writer: tells one writer's entry from another's.
    """

    number: int
    language: str
    version: int
    uri: str
    digest: str
    replaces: int | None
    action: Literal["promote", "rollback"]
    reasons: tuple[str, ...]
    metrics: dict[str, float]
    data: dict[str, str]
    at: str
    writer: str = field(default_factory=lambda: uuid.uuid4().hex)


def history(store: str, language: str) -> list[Entry]:
    """All entries of a language, oldest first.

    Args:
        store: ``s3://bucket/prefix`` that the language's models lie under.

    Raises:
        BackendError: if S3 cannot be reached or refuses.
        RegistryError: if an object of the chain is no entry.
    """
    return [_read(uri) for uri in objects.list_objects(_folder(store, language))]


def last(store: str, language: str) -> Entry | None:
    """The last entry, ``None`` if no version was promoted yet."""
    found = objects.list_objects(_folder(store, language))
    return _read(found[-1]) if found else None


def append(store: str, entry: Entry) -> None:
    """Write an entry at its number.

    Raises:
        RegistryError: if there is one of this number: another promotion came first, and this one must decide anew.
        BackendError: if S3 cannot be reached or refuses.
    """
    uri = f"{_folder(store, entry.language)}/{entry.number:0{_DIGITS}}.json"
    if objects.put_new(json.dumps(asdict(entry), sort_keys=True).encode(), uri):
        return
    winner = _read(uri)
    # our own request may have been repeated because its first answer was lost
    if winner.writer != entry.writer:
        raise RegistryError(
            f"another promotion of {entry.language} came first: version {winner.version} is champion since {winner.at}; "
            f"compare version {entry.version} with it and promote again"
        )


def _folder(store: str, language: str) -> str:
    return f"{store}/champions/{language}"


def _read(uri: str) -> Entry:
    try:
        raw: dict[str, Any] = json.loads(objects.read_object(uri))
        return Entry(**{**raw, "reasons": tuple(raw["reasons"])})
    except (ValueError, TypeError, KeyError) as error:
        raise RegistryError(f"{uri} is no entry of a champion ({error}); look who wrote it before you promote again") from error
