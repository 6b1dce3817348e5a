"""Feedback: pairs that callers let us keep, with what was predicted, as Parquet files for the next adaptation.

A file lies at ``language=sw/date=2026-11-22/<uuid>.parquet`` below the destination and appears whole or not at all. Requests only
touch a queue in memory; a thread writes it away. What cannot be written within a bounded number of tries is dropped and counted.
"""

import hashlib
import io
import logging
import os
import re
import time
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from threading import Condition, Thread
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from conlst.contract.errors import BackendError, ConfigError
from conlst.contract.labels import NAMES
from serving.models import Served
from serving.settings import Settings

log = logging.getLogger(__name__)

# it becomes part of a path
_LANGUAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
# seconds that pairs wait for a file of their language to fill
_PATIENCE = 60.0
# files' worth of pairs, and characters, that may wait: memory is bounded for short and for long texts
_FILES_WAITING = 20
_MAX_CHARACTERS = 8_000_000
# tries at a file, and seconds before the second; they double: 31 s in all, on top of those of the S3 client
_TRIES = 6
_FIRST_DELAY = 1.0


class _Row(NamedTuple):
    # no frozen dataclass: a request makes 64 of them on the event loop, and that one takes twice as long
    premise: str
    hypothesis: str
    probabilities: tuple[float, ...]
    model: tuple[str, int | None, str]
    received_at: datetime


@dataclass
class _Part:
    """Pairs of one language and day."""

    language: str
    date: str
    rows: deque[_Row] = field(default_factory=deque)
    since: float = field(default_factory=time.monotonic)


class Feedback:
    """Keeps pairs without ever holding up a request. Nothing is kept while ``CONLST_FEEDBACK`` is empty.

    Attributes:
        offered: pairs that callers let us keep.
        kept: of these, the ones that the sample took and the queue had room for.
        dropped: pairs lost, because the queue was full or a file could not be written.
        written: pairs in files.
        waiting: pairs that are in no file yet.
        problem: why the last try at a file failed, ``None`` after one that did not.
    """

    def __init__(self, settings: Settings) -> None:
        """Begin to write in the background.

        Raises:
            ConfigError: if the destination is no address, or pyarrow is not installed.
        """
        self._destination = settings.feedback
        self._percent = settings.feedback_percent
        self._batch = settings.feedback_batch
        self._parts: dict[tuple[str, str], _Part] = {}
        self._characters = 0
        self._changed = Condition()
        self._closing = False
        self.waiting = 0
        self.offered = 0
        self.kept = 0
        self.dropped = 0
        self.written = 0
        self.problem: str | None = None
        self._thread = Thread(target=self._run, name="conlst-feedback", daemon=True)
        if self._destination:
            _check(self._destination)
            self._thread.start()

    def takes(self, pairs: Sequence[tuple[str, str]]) -> bool:
        """Whether a request with these pairs is in the sample.

        Drawn by a hash of the texts, all pairs of a request together: a caller who tries again gets the same draw.
        """
        return bool(self._destination) and _draw(pairs) < self._percent

    def offer(
        self, served: Served, language: str, pairs: Sequence[tuple[str, str]], probabilities: ArrayLike, sampled: bool = True
    ) -> None:
        """Keep pairs of a request whose caller asked for it. Never blocks and never raises.

        Args:
            language: of the pairs.
            probabilities: ``[n, 3]``, as they were answered.
            sampled: what :meth:`takes` says of their request; if it does not, they are only counted.
        """
        if not self._destination:
            return
        try:
            if not _LANGUAGE.fullmatch(language):
                raise ValueError("not a language")
            # one that cannot be written would take the others of its file along
            "".join(chain.from_iterable(pairs)).encode()
            source = served.source
            # not the model itself, which must be free to go when it is swapped
            model = (source.name, source.version, served.predictor.digest)
            now = datetime.now(UTC)
            rows = [
                _Row(premise, hypothesis, tuple(row), model, now)
                for (premise, hypothesis), row in zip(pairs, np.asarray(probabilities, np.float64).tolist(), strict=True)
            ]
            self._keep(language, now, rows, sampled)
        except Exception as error:
            # an answer that was computed must reach its caller, whatever is wrong with our copy; its message might quote a text
            log.error("feedback of %d pairs was dropped: %s", len(pairs), type(error).__name__)
            with self._changed:
                self.offered += len(pairs)
                self.dropped += len(pairs)

    def close(self, seconds: float = 10.0) -> None:
        """Write what waits, for at most so long, and drop the rest. Nothing is kept from now on."""
        if not self._thread.is_alive():
            return
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        with self._changed:
            lost = self.waiting
            self._parts.clear()
            self.waiting = self._characters = 0
            self.dropped += lost
        if self._thread.is_alive():
            log.error("feedback could not be written in %g s: %d pairs and the file under way are lost", seconds, lost)

    def _keep(self, language: str, now: datetime, rows: list[_Row], sampled: bool) -> None:
        characters = _characters(rows)
        with self._changed:
            self.offered += len(rows)
            if not sampled:
                return
            full = self.waiting + len(rows) > _FILES_WAITING * self._batch or self._characters + characters > _MAX_CHARACTERS
            if full or self._closing:
                self.dropped += len(rows)
                return
            date = now.date().isoformat()
            part = self._parts.setdefault((language, date), _Part(language, date))
            part.rows.extend(rows)
            self.waiting += len(rows)
            self._characters += characters
            self.kept += len(rows)
            if len(part.rows) >= self._batch or self.waiting == len(rows):
                self._changed.notify()

    def _run(self) -> None:
        while (part := self._next()) is not None:
            self._write(part)

    def _next(self) -> _Part | None:
        """Wait for pairs that are to be written, and take them off the queue; ``None`` when there will be no more."""
        with self._changed:
            while (ripe := self._ripe()) is None:
                if self._closing:
                    return None
                oldest = min((part.since for part in self._parts.values()), default=None)
                self._changed.wait(None if oldest is None else max(0.0, oldest + _PATIENCE - time.monotonic()))
            taken = _Part(ripe.language, ripe.date)
            taken.rows.extend(ripe.rows.popleft() for _ in range(min(self._batch, len(ripe.rows))))
            del self._parts[ripe.language, ripe.date]
            if ripe.rows:
                # behind the others, which a busy language must not starve
                self._parts[ripe.language, ripe.date] = _Part(ripe.language, ripe.date, ripe.rows)
            self.waiting -= len(taken.rows)
            self._characters -= _characters(taken.rows)
            return taken

    def _ripe(self) -> _Part | None:
        now = time.monotonic()
        for part in self._parts.values():
            if len(part.rows) >= self._batch or now >= part.since + _PATIENCE or self._closing:
                return part
        return None

    def _write(self, part: _Part) -> None:
        name = f"language={part.language}/date={part.date}/{uuid.uuid4().hex}.parquet"
        delay = _FIRST_DELAY
        try:
            content = _parquet(part)
            for attempt in range(1, _TRIES + 1):
                try:
                    self._put(content, name)
                    break
                except (BackendError, OSError) as error:
                    self._tell(str(error))
                    if attempt == _TRIES:
                        raise
                    with self._changed:
                        # a server that goes down has no time to rest
                        self._changed.wait_for(lambda: self._closing, delay)
                    delay *= 2
        except Exception as error:
            # one file that cannot be written must not end those that follow; an unforeseen message might quote a text
            told = str(error) if isinstance(error, BackendError | OSError) else type(error).__name__
            log.error("%d pairs of feedback are lost: %s", len(part.rows), told)
            self._tell(told)
            with self._changed:
                self.dropped += len(part.rows)
            return
        self._tell(None)
        with self._changed:
            self.written += len(part.rows)

    def _tell(self, problem: str | None) -> None:
        if problem is not None and self.problem is None:
            log.warning("feedback cannot be written for now: %s", problem)
        self.problem = problem

    def _put(self, content: bytes, name: str) -> None:
        if self._destination.startswith("s3://"):
            from conlst.platform.objects import put_new

            # the name is new, so an object that is there already is our own, whose answer was lost
            put_new(content, f"{self._destination.rstrip('/')}/{name}")
        else:
            _put_file(content, Path(self._destination) / name)


def _check(destination: str) -> None:
    try:
        if "://" in destination:
            # also refuses what is no s3:// address
            from conlst.platform.objects import Address

            Address.parse(destination)
        else:
            Path(destination).mkdir(parents=True, exist_ok=True)
    except (BackendError, OSError) as error:
        raise ConfigError(f"CONLST_FEEDBACK: {error}; name s3://bucket/prefix or a folder that can be written") from error
    try:
        # here and below rather than at the top: 30 MB that a server without feedback does not need
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"CONLST_FEEDBACK needs pyarrow, which is not installed ({error}); install it or unset it") from error


def _characters(rows: Iterable[_Row]) -> int:
    return sum(len(row.premise) + len(row.hypothesis) for row in rows)


def _draw(pairs: Sequence[tuple[str, str]]) -> float:
    """A number in [0, 100) that depends on the texts alone."""
    # those that are refused count too, whatever is wrong with them
    told = "\0".join(text for pair in pairs for text in pair).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(told, digest_size=7).digest()) / 2**56 * 100


def _parquet(part: _Part) -> bytes:
    """One row a pair; ``language`` is a dictionary column, as readers of the folder take it from the path.

    What was answered is called ``predicted``: in a column ``label`` the next adaptation would take it for the truth.
    """
    import pyarrow
    from pyarrow import parquet

    rows = part.rows
    columns: dict[str, Any] = {
        "premise": pyarrow.array([row.premise for row in rows], pyarrow.string()),
        "hypothesis": pyarrow.array([row.hypothesis for row in rows], pyarrow.string()),
        "language": pyarrow.array([part.language] * len(rows), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())),
        "predicted": pyarrow.array([NAMES[int(np.argmax(row.probabilities))] for row in rows], pyarrow.string()),
        **{
            name: pyarrow.array([row.probabilities[index] for row in rows], pyarrow.float64()) for index, name in enumerate(NAMES)
        },
        "model": pyarrow.array([row.model[0] for row in rows], pyarrow.string()),
        "version": pyarrow.array([row.model[1] for row in rows], pyarrow.int64()),
        "digest": pyarrow.array([row.model[2] for row in rows], pyarrow.string()),
        "received_at": pyarrow.array([row.received_at for row in rows], pyarrow.timestamp("us", tz="UTC")),
    }
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


def _put_file(content: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
