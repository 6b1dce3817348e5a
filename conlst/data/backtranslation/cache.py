"""Translations on disk, by hash of backend name, version, direction and text."""

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from conlst.contract.artifacts import canonical_json
from conlst.contract.errors import BackendError

Scope = tuple[str, str, str, str]

# well below SQLite's limit of variables in one statement
_VARIABLES = 500
_WAIT_SECONDS = 60.0


class TranslationCache:
    """A SQLite file that any number of processes may use at once; every call opens it anew.

    A scope is ``(backend name, backend version, source language, target language)``.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def get(self, scope: Scope, texts: Sequence[str]) -> dict[str, str]:
        """The known translations among ``texts``."""
        by_key = {_key(scope, text): text for text in texts}
        keys = list(by_key)
        found: dict[str, str] = {}
        with self._open() as connection:
            for start in range(0, len(keys), _VARIABLES):
                some = keys[start : start + _VARIABLES]
                marks = ",".join("?" * len(some))
                rows = connection.execute(f"SELECT key, translation FROM translations WHERE key IN ({marks})", some)
                found |= {by_key[key]: translation for key, translation in rows}
        return found

    def put(self, scope: Scope, translations: Mapping[str, str]) -> None:
        """Keep translations, all or none of them."""
        rows = [(_key(scope, text), translation) for text, translation in translations.items()]
        with self._open() as connection:
            connection.executemany("INSERT OR REPLACE INTO translations VALUES (?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction.

        Raises:
            BackendError: if the file is no cache, or another process holds it for too long.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=_WAIT_SECONDS)) as connection, connection:
                connection.execute("CREATE TABLE IF NOT EXISTS translations (key TEXT PRIMARY KEY, translation TEXT NOT NULL)")
                yield connection
        except (OSError, sqlite3.Error) as error:
            raise BackendError(f"translation cache {self.path} cannot be used ({error}); delete it, it is made anew") from error


def _key(scope: Scope, text: str) -> str:
    return hashlib.sha256(canonical_json([*scope, text]).encode()).hexdigest()
