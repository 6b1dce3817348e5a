"""Where models come from, and which of them this process answers with."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conlst.contract.artifacts import read_manifest
from conlst.contract.errors import ArtifactError, ConfigError, ConlstError, RegistryError
from conlst.runtime.onnx import KIND, Predictor
from serving.errors import ApiError
from serving.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A model that is to be served.

    Attributes:
        version: in the registry, ``None`` for a model that was named by its place.
        place: a folder, or an address that :mod:`conlst.platform.objects` fetches.
        digest: what it must have, if that is known.
    """

    language: str
    name: str
    version: int | None
    place: str
    digest: str | None = None


@dataclass(frozen=True)
class Served:
    source: Source
    predictor: Predictor


def find_sources(settings: Settings) -> list[Source]:
    """The models that the settings name, or the registry's champions when they name none.

    Raises:
        ConfigError: if there is nothing to serve, or not every language that is asked for.
        ArtifactError: if a named folder was never published.
        BackendError, RegistryError: if the registry cannot be asked or its answer not be used.
    """
    wanted = tuple(filter(None, (language.strip() for language in settings.languages.split(","))))
    sources = _named(settings.models) if settings.models else _champions(wanted)
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


def _champions(languages: Sequence[str]) -> list[Source]:
    # not at the top: an image that serves named models needs no MLflow
    from conlst.platform.registry import resolve_champions

    champions = resolve_champions(list(languages) or None)
    return [
        Source(language, champion.name, champion.version, champion.uri, champion.digest)
        for language, champion in sorted(champions.items())
    ]


def open_model(source: Source, settings: Settings) -> Served:
    """Fetch a model if it is elsewhere, open it, and let it answer its golden pairs.

    Raises:
        ConlstError: if it cannot be fetched, is not what was registered, or answers otherwise than at export.
    """
    predictor = Predictor(_folder(source, settings), threads=settings.threads, provider=settings.provider)
    if predictor.language != source.language:
        raise RegistryError(f"{source.place} was adapted to {predictor.language!r}, it cannot be served for {source.language!r}")
    if source.digest is not None and predictor.digest != source.digest:
        raise ArtifactError(f"{source.place} has digest {predictor.digest}, the registry says {source.digest}")
    predictor.check_golden()
    return Served(source, predictor)


def _folder(source: Source, settings: Settings) -> Path:
    if "://" not in source.place:
        return Path(source.place)
    from conlst.platform.objects import localize

    return Path(localize(source.place, settings.cache / "served"))


class Catalogue:
    """The models of this process. Either all of them answered their golden pairs, or it is not ready and says why."""

    def __init__(self) -> None:
        self._served: dict[str, Served] = {}
        self.problem: str | None = "the models are being loaded"

    def load(self, settings: Settings) -> None:
        """Open every model. What goes wrong becomes the reason why the server is not ready; a probe then shows it."""
        try:
            opened = {source.language: open_model(source, settings) for source in find_sources(settings)}
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
            message = f"no model for {language!r}; served are {', '.join(sorted(self._served))}"
            raise ApiError(404, "unknown_language", message) from None
