"""Promotion reaches the endpoint: the registry's champions are watched, and a new one takes over without a request dropped.

A rollback is a champion like any other. What cannot be served is refused and shown, and the model that answered before goes on.
"""

import logging
import random
import re
import shutil
import time
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from time import monotonic

from conlst.contract.artifacts import read_manifest
from conlst.contract.errors import ArtifactError, ConlstError
from conlst.runtime.heap import give_back
from conlst.runtime.onnx import KIND
from conlst.runtime.threads import step_back
from serving.ending import WATCH_SECONDS
from serving.models import Catalogue, Refusal, Served, Source, fetched_models, find_champions
from serving.scheduler import BEHIND_THE_LOOP
from serving.settings import Settings

log = logging.getLogger(__name__)

# seconds between tries to load what could not be: they double, but a pod that is not ready should not sleep for long
_FIRST_LOAD, _LONGEST_LOAD = 1.0, 60.0
# pods that start together must not ask together for ever; never early, so that a delay of one interval ends at the next poll
_JITTER = 0.25
_LONGEST_DELAY = 600.0
# fetched models of a language that are kept: the one that is served and the one that a rollback would want
_KEPT = 2
# as conlst.platform.objects.localize names them
_FETCHED = re.compile(r"[0-9a-f]{16}")
_ASIDE = ".removed-"


@dataclass
class _Backoff:
    """Delays that double from ``delay`` seconds."""

    delay: float
    longest: float = _LONGEST_DELAY
    due: float = 0.0

    def failed(self) -> float:
        """Seconds until another try is due."""
        delay = min(self.delay, self.longest)
        self.due = monotonic() + delay
        self.delay = 2 * delay
        return delay


class Watcher:
    """Loads the catalogue in a thread of its own, then polls the registry for what comes after.

    Loading is tried again until the catalogue is ready, with growing delays: a registry that is away when many pods start must
    not end them. Named models (``CONLST_MODELS``) are not watched, since their place is their version, and nothing is with
    ``CONLST_WATCH_SECONDS=0``: then loading goes on until nothing is left that failed in passing.

    A champion whose version or digest is new is opened beside the old one and, having passed the same checks as at the start,
    takes its place. One that fails them is not tried again until the alias moves on, unless the network, the disk or the memory
    failed: then with growing delays. A language whose champion is gone from the registry goes on being served, and is shown.

    Attributes:
        last_success: when the registry last answered, Unix time; ``None`` before the first answer.
        problem: why the registry's last answer could not be used, ``None`` if it could.
        without_champion: served languages that the registry has no champion for any more.
    """

    def __init__(self, catalogue: Catalogue, settings: Settings) -> None:
        self._catalogue = catalogue
        self._settings = settings
        self._retries: dict[str, _Backoff] = {}
        self._has_swapped = False
        self._stopped = Event()
        self._thread = Thread(target=self._run, name="conlst-watch", daemon=True)
        self.last_success: float | None = None
        self.problem: str | None = None
        self.without_champion: tuple[str, ...] = ()

    def start(self) -> None:
        """Begin in the background."""
        self._thread.start()

    def stop(self) -> None:
        """No model is swapped from now on."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(WATCH_SECONDS)

    def poll(self) -> None:
        """Ask the registry once and follow it."""
        if self._has_swapped:
            # not at the swap itself, when requests still held the old model: it was freed by the last of them
            give_back()
            self._has_swapped = False
        try:
            champions = find_champions(self._settings)
        except ConlstError as error:
            if str(error) != self.problem:
                log.warning("the registry cannot be followed, what is served goes on: %s", error)
            self.problem = str(error)
            return
        if self.problem is not None:
            log.info("the registry can be followed again")
        self.problem = None
        self.last_success = time.time()
        self._note_missing(champions)
        for language, champion in champions.items():
            if self._stopped.is_set():
                return
            if isinstance(champion, Source):
                self._follow(champion)
            else:
                self._catalogue.refuse(language, Refusal(None, None, str(champion), datetime.now(UTC)))

    @property
    def _is_watching(self) -> bool:
        return not self._settings.models and self._settings.watch_seconds > 0

    def _run(self) -> None:
        step_back(BEHIND_THE_LOOP)
        self._load()
        if self._is_watching:
            self._watch()

    def _load(self) -> None:
        backoff = _Backoff(_FIRST_LOAD, _LONGEST_LOAD)
        self._catalogue.load()
        while not self._is_loaded() and not self._stopped.wait(backoff.failed() * random.uniform(1, 1 + _JITTER)):
            self._catalogue.load()

    def _is_loaded(self) -> bool:
        if self._catalogue.problem is not None:
            return False
        # the polls try again what is refused
        return self._is_watching or not any(refusal.passing for refusal in self._catalogue.refusals.values())

    def _watch(self) -> None:
        # no secret depends on it, so any seed will do
        while not self._stopped.wait(self._settings.watch_seconds * random.uniform(1, 1 + _JITTER)):
            try:
                self.poll()
            except Exception as error:
                # whatever it is, the next promotion must not go unnoticed because of it
                self.problem = f"watching failed with {type(error).__name__}; see the server's log"
                log.exception("a poll of the registry failed")

    def _note_missing(self, champions: Collection[str]) -> None:
        missing = tuple(language for language in self._catalogue.languages if language not in champions)
        for language in missing:
            if language not in self.without_champion:
                log.warning("%s has no champion any more; the model that was goes on being served", language)
        self.without_champion = missing

    def _follow(self, champion: Source) -> None:
        language = champion.language
        now = next((served for served in self._catalogue.all() if served.source.language == language), None)
        if now is not None and now.predictor.digest == champion.digest:
            self._retries.pop(language, None)
            self._rename(now, champion)
        elif self._is_worth_a_try(champion):
            self._take(champion)

    def _rename(self, now: Served, champion: Source) -> None:
        """The same bytes under another version or decision need no second opening."""
        if now.source != champion:
            self._catalogue.swap(champion.language, replace(now, source=champion))
            log.info("%s is now version %s, the same model", champion.language, champion.version)
        elif champion.language in self._catalogue.refusals:
            self._catalogue.forgive(champion.language)
            log.info("%s is back at version %s, which is served", champion.language, champion.version)

    def _is_worth_a_try(self, champion: Source) -> bool:
        refusal = self._catalogue.refusals.get(champion.language)
        if refusal is None or not refusal.is_of(champion):
            self._retries.pop(champion.language, None)
            return True
        return refusal.passing and monotonic() >= self._retry_of(champion).due

    def _retry_of(self, champion: Source) -> _Backoff:
        return self._retries.setdefault(champion.language, _Backoff(self._settings.watch_seconds))

    def _take(self, champion: Source) -> None:
        opened = self._catalogue.open_or_refuse(champion)
        if opened is None:
            self._retry_of(champion).failed()
        # a server that is going down serves what it has
        elif not self._stopped.is_set():
            self._retries.pop(champion.language, None)
            self._catalogue.swap(champion.language, opened)
            self._has_swapped = True
            log.info("%s is now version %s, %s", champion.language, champion.version, opened.predictor.digest[:12])
            self._tidy(champion.language)

    def _tidy(self, language: str) -> None:
        # here and not above: an endpoint of folders needs no boto3
        from conlst.platform.objects import remove_unused_blobs

        try:
            _remove_old(fetched_models(self._settings), language, {served.predictor.digest for served in self._catalogue.all()})
            remove_unused_blobs()
        except OSError as error:
            log.warning("old models of %s could not be removed: %s", language, error)


def _remove_old(folder: Path, language: str, used: Iterable[str]) -> None:
    """Remove fetched models of a language beyond the latest, never one that is served here.

    One that other processes serve stays mapped in their memory.
    """
    for left in folder.glob(f"{_ASIDE}*"):
        shutil.rmtree(left)
    of_language: list[tuple[bool, float, Path]] = []
    for path in folder.iterdir():
        if not _FETCHED.fullmatch(path.name):
            continue
        try:
            manifest = read_manifest(path, KIND)
        except ArtifactError:
            # no model of ours
            continue
        if manifest.meta.get("language") == language:
            of_language.append((manifest.digest in used, path.stat().st_mtime, path))
    for is_used, _, path in sorted(of_language, reverse=True)[_KEPT:]:
        if not is_used:
            # renamed first: a kill in the middle must not leave half a model under a name that is fetched to
            aside = path.with_name(f"{_ASIDE}{uuid.uuid4().hex}")
            path.rename(aside)
            shutil.rmtree(aside)
            log.info("removed %s, an old model of %s", path, language)
