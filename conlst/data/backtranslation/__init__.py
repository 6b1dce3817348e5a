"""Back-translation: one interface for all translators, and nothing translated twice."""

import importlib
import logging
from collections.abc import Mapping
from typing import Protocol

from datasets import Dataset

from conlst.contract.errors import BackendError
from conlst.data.backtranslation.cache import TranslationCache

# scheme of a spec to the module here whose open_translator(spec) reads it
_MODULES = {"apertium": "apertium", "tsv": "tsv", "seq2seq": "seq2seq", "http": "http", "https": "http"}
# translations are cached after so many texts, so that a kill loses little
_CHUNK = 512

_log = logging.getLogger(__name__)


class Translator(Protocol):
    """A translation backend. Name and version are part of the cache key: another version translates anew."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        """Translate texts between two languages (ISO 639-1 codes), one result a text; "" where the backend has none.

        Raises:
            BackendError: if the direction or the backend is not available.
        """
        ...


def open_backend(spec: str) -> Translator:
    """Open ``apertium``, ``tsv:<file>``, ``seq2seq:<folder or hub:id[@revision]>`` or ``http(s)://<endpoint>``.

    Raises:
        BackendError: if the spec is of no known form, or what it names is not there.
    """
    scheme = spec.partition(":")[0]
    if scheme not in _MODULES:
        raise BackendError(
            f"back-translation backend {spec!r} is unknown; "
            "give apertium, tsv:<file>, seq2seq:<folder or hub:id@revision> or http(s)://<LibreTranslate endpoint>"
        )
    module = importlib.import_module(f"{__name__}.{_MODULES[scheme]}")
    translator: Translator = module.open_translator(spec)
    return translator


def back_translate(pairs: Dataset, language: str, pivot: str, translator: Translator, cache: TranslationCache) -> Dataset:
    """The same pairs in the same order, each text translated to ``pivot`` and back.

    A text whose back-translation is empty keeps its original; how many did is logged.

    Raises:
        BackendError: from the translator, or if pivot and language are the same.
    """
    if pivot == language:
        raise BackendError(f"{language} cannot be translated back through itself; set another pivot for it")
    texts = list(dict.fromkeys([*pairs["premise"], *pairs["hypothesis"]]))
    there = translate_all(texts, language, pivot, translator, cache)
    back = translate_all([text for text in there if text], pivot, language, translator, cache)
    returned = dict(zip([text for text in there if text], back, strict=True))
    views = {text: returned.get(middle, "") or text for text, middle in zip(texts, there, strict=True)}
    empty = sum(not returned.get(middle) for middle in there)
    same = sum(text == view for text, view in views.items())
    _log.log(
        logging.WARNING if empty else logging.INFO,
        "back-translated %d texts %s-%s-%s by %s: %d came back as they were, of them %d because they came back empty",
        len(texts),
        language,
        pivot,
        language,
        translator.name,
        same,
        empty,
    )
    return with_texts(pairs, views)


def with_texts(pairs: Dataset, texts: Mapping[str, str]) -> Dataset:
    """The same pairs with other texts, looked up by those that they have."""
    table = pairs.with_format("arrow")[:]
    for name in ("premise", "hypothesis"):
        column = table.schema.get_field_index(name)
        table = table.set_column(column, table.schema.field(name), [[texts[text] for text in table[name].to_pylist()]])
    return Dataset(table)


def translate_all(texts: list[str], source: str, target: str, translator: Translator, cache: TranslationCache) -> list[str]:
    """Translate texts, each different one once, and none that the cache holds for this backend, version and direction.

    Raises:
        BackendError: from the translator, or if it returns another number of texts than it was given.
    """
    scope = (translator.name, translator.version, source, target)
    unique = list(dict.fromkeys(texts))
    known = cache.get(scope, unique)
    missing = [text for text in unique if text not in known]
    for start in range(0, len(missing), _CHUNK):
        chunk = missing[start : start + _CHUNK]
        translations = translator.translate(chunk, source, target)
        if len(translations) != len(chunk):
            raise BackendError(
                f"{translator.name} returned {len(translations)} translations for {len(chunk)} texts ({source} to {target})"
            )
        fresh = {text: translation.strip() for text, translation in zip(chunk, translations, strict=True)}
        cache.put(scope, fresh)
        known |= fresh
    return [known[text] for text in texts]
