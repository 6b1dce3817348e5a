"""Where models come from, and which of them this process answers with."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from conlst.contract.artifacts import read_manifest
from conlst.contract.errors import ArtifactError, ConfigError, ConlstError, RegistryError
from conlst.runtime.onnx import KIND, Predictor
from conlst.runtime.table import Tables
from serving.errors import ApiError
from serving.settings import Settings

if TYPE_CHECKING:
    from conlst.platform.registry import Version

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A model that is to be served.

    Attributes:
        version: in the registry, ``None`` for a model that was named by its place.
        place: a folder, or an address that :mod:`conlst.platform.objects` fetches.
        digest: what it must have, if that is known.
        gate: how the registry's gate decided, ``{"promote", "reasons", "decided_at"}``; ``None`` for a model without a decision.
    """

    language: str
    name: str
    version: int | None
    place: str
    digest: str | None = None
    gate: dict[str, Any] | None = field(default=None, hash=False)


@dataclass(frozen=True)
class Served:
    """A model that answers.

    Attributes:
        loaded_at: when it had answered its golden pairs, UTC.
    """

    source: Source
    predictor: Predictor
    loaded_at: datetime


@dataclass(frozen=True)
class Refusal:
    """A champion that is not served, while an older version goes on or none does.

    Attributes:
        since: when it was first refused, UTC.
    """

    version: int | None
    digest: str | None
    reason: str
    since: datetime


def find_sources(settings: Settings) -> list[Source]:
    """The models that the settings name, or the registry's champions when they name none.

    Raises:
        ConfigError: if there is nothing to serve, or not every language that is asked for.
        ArtifactError: if a named folder was never published.
        BackendError, RegistryError: if the registry cannot be asked or its answer not be used.
    """
    wanted = _wanted(settings)
    sources = _named(settings.models) if settings.models else _all_usable(_champions(wanted or None))
    if wanted:
        sources = [source for source in sources if source.language in wanted]
    if missing := [language for language in wanted if language not in {source.language for source in sources}]:
        raise ConfigError(f"CONLST_LANGUAGES asks for {', '.join(missing)}, for which there is no model")
    if not sources:
        raise ConfigError(
            "nothing to serve: the registry has no champion. Promote a model with `conlst promote`, or name folders in "
            "CONLST_MODELS=sw=/path/to/onnx"
        )
    return sources


def find_champions(settings: Settings) -> dict[str, Source | ConlstError]:
    """The registry's champions in the languages that the settings allow; what cannot be served is why not.

    Unlike at the start, a champion that is gone is no error.

    Raises:
        RegistryError: if the registry cannot be asked.
    """
    wanted = _wanted(settings)
    return {language: found for language, found in _champions(None).items() if not wanted or language in wanted}


def _wanted(settings: Settings) -> tuple[str, ...]:
    return tuple(filter(None, (language.strip() for language in settings.languages.split(","))))


def _named(models: str) -> list[Source]:
    sources: dict[str, Source] = {}
    for item in filter(None, (item.strip() for item in models.split(","))):
        language, equals, place = item.partition("=")
        if not (language and equals and place):
            raise ConfigError(f"CONLST_MODELS has {item!r}, expected language=folder or language=s3://…/manifests/<digest>.json")
        if language in sources:
            raise ConfigError(f"CONLST_MODELS names two models for {language}")
        if "://" not in place:
            # a wrong path should be told at the start, not when the worker loads it
            read_manifest(Path(place), KIND)
        sources[language] = Source(language, f"nli-{language}", None, place)
    return list(sources.values())


def _champions(languages: Sequence[str] | None) -> dict[str, Source | ConlstError]:
    # not at the top: an image that serves named models needs no MLflow
    from conlst.platform.registry import resolve_champions

    champions = resolve_champions(None if languages is None else list(languages))
    return {
        language: champion
        if isinstance(champion, ConlstError)
        else Source(language, champion.name, champion.version, champion.uri, champion.digest, _gate(champion))
        for language, champion in sorted(champions.items())
    }


def _all_usable(champions: Mapping[str, Source | ConlstError]) -> list[Source]:
    """At the start one champion that cannot be served is reason enough not to: nothing older would answer in its place."""
    sources = []
    for champion in champions.values():
        if isinstance(champion, ConlstError):
            raise champion
        sources.append(champion)
    return sources


def _gate(champion: "Version") -> dict[str, Any] | None:
    try:
        decision = json.loads(champion.tags["decision"])
        told = {"promote": bool(decision["promote"]), "reasons": [str(reason) for reason in decision["reasons"]]}
    except (ValueError, TypeError, KeyError):
        # its alias was set by hand, or the tag was: either way no gate of ours decided
        return None
    return told | {"decided_at": champion.tags.get("decided_at")}


def open_model(source: Source, settings: Settings, tables: Tables) -> Served:
    """Fetch a model if it is elsewhere, open it, and let it answer its golden pairs.

    Args:
        tables: the embedding tables that this process has already.

    Raises:
        ConlstError: if it cannot be fetched, is not what was registered, or answers otherwise than at export.
    """
    folder = _folder(source, settings)
    predictor = Predictor(folder, threads=settings.threads, provider=settings.provider, tables=tables)
    if predictor.language != source.language:
        raise RegistryError(f"{source.place} was adapted to {predictor.language!r}, it cannot be served for {source.language!r}")
    if source.digest is not None and predictor.digest != source.digest:
        raise ArtifactError(f"{source.place} has digest {predictor.digest}, the registry says {source.digest}")
    predictor.check_golden()
    return Served(source, predictor, datetime.now(UTC))


def fetched_models(settings: Settings) -> Path:
    """The folder that models from elsewhere are fetched into, each into one of its own."""
    return settings.cache / "served"


def _folder(source: Source, settings: Settings) -> Path:
    if "://" not in source.place:
        return Path(source.place)
    from conlst.platform.objects import localize

    return Path(localize(source.place, fetched_models(settings)))


class Catalogue:
    """The models of this process. It is ready once all of them answered their golden pairs; until then it says why it is not.

    Readers need no lock: what they see is replaced as a whole, never altered. A request goes on with the :class:`Served` that it
    was given, whatever is swapped meanwhile; a model is freed when the last request lets go of it.

    Attributes:
        problem: why it is not ready, ``None`` when it is.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tables = Tables()
        self._served: Mapping[str, Served] = {}
        self._refusals: Mapping[str, Refusal] = {}
        self._loading = Lock()
        self._changing = Lock()
        self.problem: str | None = "the models are being loaded"

    def load(self) -> None:
        """Open every model. What goes wrong becomes the reason why the server is not ready, which a probe shows.

        May be called again after a failure; a catalogue that is ready stays as it is.
        """
        with self._loading:
            if self.problem is None:
                return
            try:
                opened = {source.language: self.open(source) for source in find_sources(self._settings)}
            except ConlstError as error:
                self.problem = str(error)
                log.error("nothing is served: %s", error)
            except Exception as error:
                # this runs in a thread of its own, where an exception would vanish and leave "being loaded" for ever
                self.problem = f"loading failed with {type(error).__name__}; see the server's log"
                log.exception("nothing is served")
            else:
                self._served = opened
                self.problem = None
                log.info("serving %s", ", ".join(f"{s.source.name} {s.predictor.digest[:12]}" for s in opened.values()))

    def open(self, source: Source) -> Served:
        """Open a model beside those that are served, without serving it.

        Raises:
            ConlstError: as :func:`open_model`.
        """
        return open_model(source, self._settings, self._tables)

    def swap(self, language: str, served: Served) -> None:
        """Answer for ``language`` with this model from now on. Forgets a refusal of the language."""
        with self._changing:
            self._served = {**self._served, language: served}
        self.forgive(language)

    def refuse(self, language: str, refusal: Refusal) -> None:
        """Note why a language's champion is not served."""
        with self._changing:
            self._refusals = {**self._refusals, language: refusal}

    def forgive(self, language: str) -> None:
        """Forget a language's refusal, if it has one."""
        with self._changing:
            self._refusals = {other: refusal for other, refusal in self._refusals.items() if other != language}

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(sorted(self._served))

    @property
    def refusals(self) -> Mapping[str, Refusal]:
        """By language, the champions that are not served."""
        return MappingProxyType(self._refusals)

    def all(self) -> list[Served]:
        return list(self._served.values())

    def model_for(self, language: str) -> Served:
        """The model of a language.

        Raises:
            ApiError: 503 before every model is ready, 404 for a language without one.
        """
        if self.problem is not None:
            raise ApiError(503, "not_ready", self.problem, headers={"Retry-After": "5"})
        try:
            return self._served[language]
        except KeyError:
            message = f"no model for {language!r}; served are {', '.join(self.languages)}"
            raise ApiError(404, "unknown_language", message) from None
