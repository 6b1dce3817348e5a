"""Where models come from, and which of them this process answers with."""

import json
import logging
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from conlst.contract.artifacts import read_manifest
from conlst.contract.errors import ArtifactError, BackendError, ConfigError, ConlstError, RegistryError
from conlst.runtime.onnx import KIND, Predictor
from conlst.runtime.table import Tables
from serving.errors import ApiError
from serving.settings import Settings

if TYPE_CHECKING:
    from conlst.platform.registry import Version

log = logging.getLogger(__name__)

HELPERS_BACK = 19
"""How far the threads that help a run step back: beyond the scheduler's, which compute a run each and need help when there is no
second one."""


@dataclass(frozen=True)
class Source:
    """A model that is to be served.

    Attributes:
        version: in the registry, ``None`` for a model that was named by its place.
        place: a folder, or an address that :mod:`conlst.platform.objects` fetches.
        digest: what it must have, if that is known.
        gate: how the registry's gate decided, ``{"promote", "reasons", "decided_at"}``; ``None`` for a model without a decision.
            When it did is an ISO date, ``None`` if it is not recorded as one.
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
        passing: whether it may yet be opened, since the network, the disk or the memory was the reason.
    """

    version: int | None
    digest: str | None
    reason: str
    since: datetime
    passing: bool = False

    def is_of(self, source: Source) -> bool:
        return (self.version, self.digest) == (source.version, source.digest)


def check_models(settings: Settings) -> None:
    """What can be told of the models before anything is opened, and without the registry, which may be away when a pod starts.

    Raises:
        ConfigError: if neither models nor a registry are named, or the named ones cannot be meant.
        ArtifactError: if a named folder was never published.
    """
    if settings.models:
        find_sources(settings)
    elif not (os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_TRACKING_URI")):
        raise ConfigError(
            "no model registry is configured; set MLFLOW_TRACKING_URI, for example to http://mlflow:5000, or name folders in "
            "CONLST_MODELS=sw=/path/to/onnx"
        )


def find_sources(settings: Settings) -> dict[str, Source | ConlstError]:
    """The models that the settings name, or the registry's champions when they name none, by language.

    A champion that cannot be served is why not, so that it does not keep the others from their languages.

    Raises:
        ConfigError: if there is nothing to serve, or no model for a language that is asked for or for the fallback.
        ArtifactError: if a named folder was never published.
        BackendError, RegistryError: if the registry cannot be asked or its answer not be used.
    """
    wanted = _wanted(settings)
    sources = _allowed(_named(settings.models) if settings.models else _champions(), wanted)
    if missing := [language for language in wanted if language not in sources]:
        raise ConfigError(f"CONLST_LANGUAGES asks for {', '.join(missing)}, for which there is no model")
    if not sources:
        raise ConfigError(
            "nothing to serve: the registry has no champion. Promote a model with `conlst promote`, or name folders in "
            "CONLST_MODELS=sw=/path/to/onnx"
        )
    if settings.fallback and settings.fallback not in sources:
        known = ", ".join(sorted(sources))
        raise ConfigError(f"CONLST_FALLBACK is {settings.fallback!r}, for which there is no model; there are {known}")
    return sources


def find_champions(settings: Settings) -> dict[str, Source | ConlstError]:
    """The registry's champions in the languages that the settings allow; what cannot be served is why not.

    Unlike at the start, a champion that is gone is no error.

    Raises:
        RegistryError: if the registry cannot be asked.
    """
    return _allowed(_champions(), _wanted(settings))


def _wanted(settings: Settings) -> tuple[str, ...]:
    return tuple(filter(None, (language.strip() for language in settings.languages.split(","))))


def _allowed(sources: Mapping[str, Source | ConlstError], wanted: Collection[str]) -> dict[str, Source | ConlstError]:
    return {language: source for language, source in sources.items() if not wanted or language in wanted}


def _named(models: str) -> dict[str, Source | ConlstError]:
    sources: dict[str, Source | ConlstError] = {}
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
    return sources


def _champions() -> dict[str, Source | ConlstError]:
    # not at the top: an image that serves named models needs no MLflow
    from conlst.platform.registry import resolve_champions

    return {
        language: champion
        if isinstance(champion, ConlstError)
        else Source(language, champion.name, champion.version, champion.uri, champion.digest, _gate(champion))
        for language, champion in sorted(resolve_champions().items())
    }


def _gate(champion: "Version") -> dict[str, Any] | None:
    try:
        decision = json.loads(champion.tags["decision"])
        told = {"promote": bool(decision["promote"]), "reasons": [str(reason) for reason in decision["reasons"]]}
    except (ValueError, TypeError, KeyError):
        # its alias was set by hand, or the tag was: either way no gate of ours decided
        return None
    return told | {"decided_at": _iso(champion.tags.get("decided_at"))}


def _iso(date: str | None) -> str | None:
    """A date in the one form that browsers read too, ``None`` for what is none: a tag may hold anything."""
    try:
        return None if date is None else datetime.fromisoformat(date).isoformat()
    except ValueError:
        return None


def open_model(source: Source, settings: Settings, tables: Tables) -> Served:
    """Fetch a model if it is elsewhere, open it, and let it answer its golden pairs.

    Args:
        tables: the embedding tables that this process has already.

    Raises:
        ConlstError: if it cannot be fetched, is not what was registered, or answers otherwise than at export.
    """
    folder = _folder(source, settings)
    predictor = Predictor(folder, threads=settings.threads, provider=settings.provider, tables=tables, helpers_back=HELPERS_BACK)
    if predictor.language != source.language:
        raise RegistryError(f"{source.place} was adapted to {predictor.language!r}, it cannot be served for {source.language!r}")
    if source.digest is not None and predictor.digest != source.digest:
        raise ArtifactError(f"{source.place} has digest {predictor.digest}, the registry says {source.digest}")
    predictor.check_golden()
    return Served(source, predictor, datetime.now(UTC))


def fetched_models(settings: Settings) -> Path:
    """The folder that models from elsewhere are fetched into, each into one of its own. Nothing in it is anyone's only copy."""
    return settings.cache / "served"


def _folder(source: Source, settings: Settings) -> Path:
    if "://" not in source.place:
        return Path(source.place)
    from conlst.platform.objects import OccupiedError, localize

    cache = fetched_models(settings)
    try:
        return Path(localize(source.place, cache))
    except OccupiedError as error:
        # a cache outlives the process: refused, the damage would keep the language from its model through every restart
        log.warning("%s is damaged, it is removed and fetched once more: %s", error.folder, error)
        shutil.rmtree(error.folder)
        return Path(localize(source.place, cache))


class Catalogue:
    """The models of this process, each served once it has answered its golden pairs.

    It is ready when one is, and every one that ``CONLST_LANGUAGES`` and ``CONLST_FALLBACK`` name; until then it says why not.

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
        """Open every model that is not served yet; what cannot be opened is refused.

        May be called again, which opens what was not found or failed in passing. A catalogue that is ready stays so.
        """
        with self._loading:
            try:
                problem = self._open_all()
            except ConlstError as error:
                problem = str(error)
            except Exception as error:
                # this runs in a thread of its own, where an exception would vanish and leave "being loaded" for ever
                problem = f"loading failed with {type(error).__name__}; see the server's log"
                log.exception("loading failed")
            if self.problem is None:
                if problem is not None:
                    log.warning("what is refused cannot be tried again yet: %s", problem)
                return
            if problem is None:
                log.info("serving %s", ", ".join(f"{s.source.name} {s.predictor.digest[:12]}" for s in self.all()))
            elif problem != self.problem:
                log.error("nothing is served: %s", problem)
            self.problem = problem

    def _open_all(self) -> str | None:
        """Why nothing can be answered all the same, if so."""
        for language, source in find_sources(self._settings).items():
            if isinstance(source, ConlstError):
                self.refuse(language, Refusal(None, None, str(source), datetime.now(UTC)))
            elif language not in self._served and self._is_worth_a_try(source):
                opened = self.open_or_refuse(source)
                if opened is not None:
                    self.swap(language, opened)
        needed = dict.fromkeys([*_wanted(self._settings), *filter(None, [self._settings.fallback])])
        missing = [language for language in needed if language not in self._served]
        if self._served and not missing:
            return None
        refused = self._refusals
        return "; ".join(f"{language}: {refused[language].reason}" for language in missing or refused)

    def _is_worth_a_try(self, source: Source) -> bool:
        refusal = self._refusals.get(source.language)
        return refusal is None or refusal.passing or not refusal.is_of(source)

    def open_or_refuse(self, source: Source) -> Served | None:
        """Open a model without serving it, or note why it is refused."""
        try:
            return self.open(source)
        except (BackendError, OSError) as error:
            self._refuse(source, f"{error} (it will be tried again)", passing=True)
        except MemoryError:
            self._refuse(source, "there is not enough memory to open it (it will be tried again)", passing=True)
        except ConlstError as error:
            self._refuse(source, str(error))
        except Exception as error:
            # a model that breaks a library in a way of its own is refused like any other
            log.exception("%s version %s cannot be opened", source.name, source.version)
            self._refuse(source, f"opening it failed with {type(error).__name__}; see the server's log")
        return None

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
        """Note why a language's champion is not served. One that was refused before is so since then; a new reason is logged."""
        with self._changing:
            before = self._refusals.get(language)
            if before is not None and (before.version, before.digest) == (refusal.version, refusal.digest):
                refusal = replace(refusal, since=before.since)
            if refusal != before:
                named = "its model" if refusal.version is None else f"version {refusal.version}"
                log.error("%s: %s is refused: %s", language, named, refusal.reason)
            self._refusals = {**self._refusals, language: refusal}

    def _refuse(self, source: Source, reason: str, *, passing: bool = False) -> None:
        self.refuse(source.language, Refusal(source.version, source.digest, reason, datetime.now(UTC), passing))

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
            ApiError: 503 before the catalogue is ready, 404 for a language without one.
        """
        if self.problem is not None:
            raise ApiError(503, "not_ready", self.problem, headers={"Retry-After": "5"})
        try:
            return self._served[language]
        except KeyError:
            message = f"no model for {language!r}; served are {', '.join(self.languages)}"
            raise ApiError(404, "unknown_language", message) from None
