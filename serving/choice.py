"""Which model answers a text: that of the language that was given or found, or else the fallback's."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from serving.detection import Detector
from serving.errors import ApiError
from serving.models import Catalogue, Served
from serving.schema import Source
from serving.settings import Settings

# ISO 639 for a language that cannot be told
UNDETERMINED = "und"


@dataclass(frozen=True)
class Choice:
    """Who answers a text.

    Attributes:
        own: the text's own language, which for a fallback is another than the model's: served, one that can be detected, or
            ``und``. Never what a caller made up, as feedback is kept by it.
    """

    served: Served
    own: str
    source: Source

    @property
    def language(self) -> str:
        return self.served.source.language


class Chooser:
    """Detects languages in a thread of its own, behind a line of bounded length."""

    def __init__(self, settings: Settings, catalogue: Catalogue, detector: Detector) -> None:
        self._fallback = settings.fallback
        self._room = settings.max_waiting + 1
        self._catalogue = catalogue
        self._detector = detector
        self._inside = 0
        self._executor = ThreadPoolExecutor(1, "conlst-detect")

    async def choose(self, texts: Mapping[int, Sequence[str]], language: str | None, kind: str) -> dict[int, Choice | ApiError]:
        """The model for each of the texts, or why there is none.

        Args:
            texts: by index; those of one index belong together.
            language: ``None`` to detect it.
            kind: what an index counts, for messages.

        Raises:
            ApiError: 404 if the language that was given is not served and there is no fallback, 429 if too many requests wait for
                detection, 503 before the models are ready.
        """
        if self._catalogue.problem is not None:
            raise ApiError(503, "not_ready", self._catalogue.problem, headers={"Retry-After": "5"})
        if language is not None:
            choice = self._given(language)
            return dict.fromkeys(texts, choice)
        found = await self._detect(list(texts.values()))
        return {index: self._detected(own, f"{kind} {index}", index) for index, own in zip(texts, found, strict=True)}

    def _given(self, language: str) -> Choice:
        own = _look_up(language, self._catalogue.languages)
        if own is None and self._fallback:
            known = _look_up(language, self._detector.languages) or UNDETERMINED
            return Choice(self._catalogue.model_for(self._fallback), known, "fallback")
        own = own or language
        return Choice(self._catalogue.model_for(own), own, "given")

    def _detected(self, own: str | None, name: str, index: int) -> Choice | ApiError:
        if own is not None and own in self._catalogue.languages:
            return Choice(self._catalogue.model_for(own), own, "detected")
        if self._fallback:
            return Choice(self._catalogue.model_for(self._fallback), own or UNDETERMINED, "fallback")
        problem = "cannot be told" if own is None else f"seems to be {own!r}, for which there is no model"
        message = f"{name}: its language {problem}; send it as language, served are {', '.join(self._catalogue.languages)}"
        return ApiError(404, "unknown_language", message, index=index)

    async def _detect(self, texts: list[Sequence[str]]) -> list[str | None]:
        if self._inside >= self._room:
            message = "too many requests wait for their language to be found; name it, or try again in a second"
            raise ApiError(429, "busy", message, headers={"Retry-After": "1"})
        served = frozenset(self._catalogue.languages)
        self._inside += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, lambda: [self._detector.language(each, served) for each in texts])
        finally:
            self._inside -= 1


def _look_up(tag: str, languages: Collection[str]) -> str | None:
    """The one of ``languages`` that a tag means, for example ``sw`` for ``sw-KE`` or ``SW``; ``None`` if it means another.

    By the lookup of RFC 4647: in any case of letters, and a tag that is not among them loses its last subtag until it is.
    """
    if tag in languages:
        return tag
    known = {_folded(language): language for language in languages}
    subtags = _folded(tag).split("-")
    shorter = ("-".join(subtags[:count]) for count in range(len(subtags), 0, -1))
    return next((known[each] for each in shorter if each in known), None)


def _folded(tag: str) -> str:
    # locales, which some callers send, are written sw_KE
    return tag.lower().replace("_", "-")
