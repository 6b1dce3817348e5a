"""Translations made elsewhere, in a file."""

from pathlib import Path

from conlst.contract.artifacts import sha256_of
from conlst.contract.errors import BackendError
from conlst.data.pairs import MALFORMED
from conlst.data.sources import read_tsv

_TEXTS = {"source_text", "target_text"}
_LANGUAGES = {"source_language", "target_language"}


class TsvTranslations:
    """A lookup. White space is compared as single spaces, because a TSV field holds no line end.

    Args:
        path: a file with the columns source_text and target_text, and source_language and target_language or neither: without
            them a line holds for every direction.
    """

    name = "tsv"

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.is_file():
            raise BackendError(f"translations file {path} does not exist")
        self.version = sha256_of(path)
        self._translations: dict[tuple[str, str, str], str] = {}
        for row in read_tsv(path):
            self._keep(row)
        if not self._translations:
            raise BackendError(f"translations file {path} holds no translations")

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        """Look all texts up.

        Raises:
            BackendError: with the number of texts that the file lacks, and the first.
        """
        found = [self._find(text, source, target) for text in texts]
        missing = [text for text, translation in zip(texts, found, strict=True) if translation is None]
        if missing:
            raise BackendError(
                f"{self._path} lacks {len(missing)} of {len(texts)} translations {source} to {target}, "
                f"first {missing[0][:80]!r}; add them to the file"
            )
        return [translation or "" for translation in found]

    def _keep(self, row: dict[str, str]) -> None:
        if MALFORMED in row:
            raise BackendError(f"{self._path}: {row[MALFORMED]}")
        if not row.keys() >= _TEXTS or len(row.keys() & _LANGUAGES) == 1:
            raise BackendError(
                f"{self._path} has the columns {', '.join(row)}; it needs {', '.join(sorted(_TEXTS))}, "
                f"and {', '.join(sorted(_LANGUAGES))} or neither"
            )
        key = (_spaced(row["source_text"]), row.get("source_language", ""), row.get("target_language", ""))
        if self._translations.setdefault(key, row["target_text"]) != row["target_text"]:
            raise BackendError(f"{self._path} translates {key[0][:80]!r} in two ways; keep one of them")

    def _find(self, text: str, source: str, target: str) -> str | None:
        text = _spaced(text)
        return self._translations.get((text, source, target), self._translations.get((text, "", "")))


def open_translator(spec: str) -> TsvTranslations:
    return TsvTranslations(Path(spec.removeprefix("tsv:")))


def _spaced(text: str) -> str:
    return " ".join(text.split())
