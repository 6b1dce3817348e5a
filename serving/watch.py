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
from conlst.contract.errors import ArtifactError, BackendError, ConlstError
from conlst.runtime.memory import give_back
from conlst.runtime.onnx import KIND
from serving.models import Catalogue, Refusal, Served, Source, fetched_models, find_champions
from serving.settings import Settings

log = logging.getLogger(__name__)

# pods that start together must not ask together for ever; never early, so that a delay of one interval ends at the next poll
_JITTER = 0.25
_LONGEST_DELAY = 600.0
# a request to the registry cannot be called off; the thread is a daemon, so a process does not wait for it
_PATIENCE = 2.0
# fetched models of a language that are kept: the one that is served and the one that a rollback would want
_KEPT = 2
# as conlst.platform.objects.localize names them
_FETCHED = re.compile(r"[0-9a-f]{16}")
_ASIDE = ".removed-"


@dataclass
class _Backoff:
    """Delays that double from ``first`` seconds."""

    first: float
    failures: int = 0
    due: float = 0.0

    def failed(self) -> None:
        self.due = monotonic() + min(self.first * 2**self.failures, _LONGEST_DELAY)
        self.failures += 1


class Watcher:
    """Polls the registry in a thread of its own. Named models (``CONLST_MODELS``) are not watched: their place is their version.

    A champion whose version or digest is new is opened beside the old one and, having passed the same checks as at the start,
    takes its place. One that fails them is not tried again until the alias moves on, unless the network or the disk failed: then
    with growing delays. A language whose champion is gone from the registry goes on being served. A catalogue that could not
    load is loaded again, too.

    Attributes:
        last_success: when the registry last answered, Unix time; ``None`` before the first answer.
        problem: why the registry's last answer could not be used, ``None`` if it could.
        without_champion: served languages that the registry has no champion for any more.
    """

    def __init__(self, catalogue: Catalogue, settings: Settings) -> None:
        self._catalogue = catalogue
        self._settings = settings
        self._reload = _Backoff(settings.watch_seconds)
        self._retries: dict[str, _Backoff] = {}
        self._has_swapped = False
        self._stopped = Event()
        self._thread = Thread(target=self._watch, name="conlst-watch", daemon=True)
        self.last_success: float | None = None
        self.problem: str | None = None
        self.without_champion: tuple[str, ...] = ()

    def start(self) -> None:
        """Begin, if the models come from the registry and an interval is set."""
        if not self._settings.models and self._settings.watch_seconds:
            self._thread.start()

    def stop(self) -> None:
        """No model is swapped from now on."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)

    def poll(self) -> None:
        """Ask the registry once and follow it."""
        if self._has_swapped:
            # not at the swap itself, when requests still held the old model: it was freed by the last of them
            give_back()
            self._has_swapped = False
        if self._catalogue.problem is not None:
            self._load_again()
            return
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
                self._refuse(language, None, None, str(champion))

    def _watch(self) -> None:
        # no secret depends on it, so any seed will do
        while not self._stopped.wait(self._settings.watch_seconds * random.uniform(1, 1 + _JITTER)):
            try:
                self.poll()
            except Exception as error:
                # whatever it is, the next promotion must not go unnoticed because of it
                self.problem = f"watching failed with {type(error).__name__}; see the server's log"
                log.exception("a poll of the registry failed")

    def _load_again(self) -> None:
        if monotonic() >= self._reload.due:
            self._catalogue.load()
            self._reload.failed()

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
        if not _is_of(self._catalogue.refusals.get(champion.language), champion):
            self._retries.pop(champion.language, None)
            return True
        retry = self._retries.get(champion.language)
        return retry is not None and monotonic() >= retry.due

    def _take(self, champion: Source) -> None:
        try:
            opened = self._catalogue.open(champion)
        except (BackendError, OSError) as error:
            self._retries.setdefault(champion.language, _Backoff(self._settings.watch_seconds)).failed()
            self._refuse_champion(champion, f"{error} (it will be tried again)")
        except ConlstError as error:
            self._refuse_champion(champion, str(error))
        except Exception as error:
            # a model that breaks a library in a way of its own is refused like any other
            log.exception("%s version %s cannot be opened", champion.name, champion.version)
            self._refuse_champion(champion, f"opening it failed with {type(error).__name__}; see the server's log")
        else:
            # a server that is going down serves what it has
            if not self._stopped.is_set():
                self._retries.pop(champion.language, None)
                self._catalogue.swap(champion.language, opened)
                self._has_swapped = True
                log.info("%s is now version %s, %s", champion.language, champion.version, opened.predictor.digest[:12])
                self._tidy(champion.language)

    def _refuse_champion(self, champion: Source, reason: str) -> None:
        self._refuse(champion.language, champion.version, champion.digest, reason)

    def _refuse(self, language: str, version: int | None, digest: str | None, reason: str) -> None:
        before = self._catalogue.refusals.get(language)
        again = before is not None and (before.version, before.digest) == (version, digest)
        since = before.since if before is not None and again else datetime.now(UTC)
        self._catalogue.refuse(language, Refusal(version, digest, reason, since))
        if not again:
            named = "its champion" if version is None else f"version {version}"
            log.error("%s: %s is refused, what is served goes on: %s", language, named, reason)

    def _tidy(self, language: str) -> None:
        # here and not above: an endpoint of folders needs no boto3
        from conlst.platform.objects import remove_unused_blobs

        try:
            _remove_old(fetched_models(self._settings), language, {served.predictor.digest for served in self._catalogue.all()})
            remove_unused_blobs()
        except OSError as error:
            log.warning("old models of %s could not be removed: %s", language, error)


def _is_of(refusal: Refusal | None, champion: Source) -> bool:
    return refusal is not None and (refusal.version, refusal.digest) == (champion.version, champion.digest)


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
