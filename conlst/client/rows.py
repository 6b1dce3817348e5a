"""Answers as lines of a file that grows, survives an interruption, and takes its name when it is complete."""

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import IO, Any

from conlst.client.answers import Refused
from conlst.client.batches import Answer
from conlst.contract.errors import BackendError, ConfigError
from conlst.contract.labels import NAMES

COLUMNS = ("line", "label", *NAMES, "language", "truncated", "model", "version", "digest", "error")
SUFFIXES = (".tsv", ".jsonl")

Row = dict[str, Any]


def row_of(number: int, answer: Answer) -> Row:
    """One answer; the columns of a refused pair are ``None`` but ``line`` and ``error``."""
    row: Row = dict.fromkeys(COLUMNS)
    row["line"] = number
    if isinstance(answer, Refused):
        row["error"] = f"{answer.kind}: {answer.message}"
    else:
        row |= {"label": answer.label, **answer.probabilities, "language": answer.language, "truncated": answer.truncated}
        row |= {"model": answer.model.name, "version": answer.model.version, "digest": answer.model.digest}
    return row


class Rows:
    """The unfinished file of a run.

    Raises:
        ConfigError: if what an earlier run left in it is damaged.

    Attributes:
        kept: rows that an earlier run left.
        labels: how many rows have each label.
        errors: how many have each kind of error.
        models: how many each model answered, by name and version, or digest for one without.
    """

    def __init__(self, file: IO[bytes], tsv: bool) -> None:
        self._file = file
        self._tsv = tsv
        self.kept = 0
        self.labels: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.models: Counter[str] = Counter()
        self._resume()

    @property
    def count(self) -> int:
        return self.labels.total() + self.errors.total()

    def write(self, rows: Sequence[Row]) -> None:
        """Append; once it returns the rows outlive this process.

        Raises:
            OSError: if they cannot be written. Some of them may be in the file then, or follow when it is closed.
        """
        self._file.write(b"".join(self._line([row[name] for name in COLUMNS]) for row in rows))
        self._file.flush()
        for row in rows:
            self._count(row)

    def _resume(self) -> None:
        """Go to the end of the last whole row, and drop what follows it."""
        end = last = 0
        header = self._line(COLUMNS) if self._tsv else b""
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            if end or not self._tsv:
                row = self._parse(line, last)
                self._count(row)
                self.kept, last = self.kept + 1, row["line"]
            end += len(line)
        self._file.seek(end)
        self._file.truncate()
        if not end:
            self._file.write(header)

    def _line(self, values: Sequence[Any]) -> bytes:
        if not self._tsv:
            return (
                json.dumps(dict(zip(COLUMNS, values, strict=True)), ensure_ascii=False).encode("utf-8", "backslashreplace")
                + b"\n"
            )
        return "\t".join(map(_field, values)).encode("utf-8", "backslashreplace") + b"\n"

    def _parse(self, line: bytes, last: int) -> Row:
        try:
            values = line.decode().rstrip("\n").split("\t") if self._tsv else json.loads(line).values()
            row: Row = dict(zip(COLUMNS, values, strict=True))
            row["line"] = int(row["line"])
            if row["line"] <= last:
                # each row stands for a pair that is not asked again: one that is there twice would cost another its answer
                raise ValueError(f"line {row['line']} follows line {last}")
            return row
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{self._file.name} is damaged after {self.kept} rows ({error}): remove it") from error

    def _count(self, row: Row) -> None:
        if row["error"]:
            self.errors[row["error"].partition(":")[0]] += 1
        else:
            self.labels[row["label"]] += 1
            self.models[f"{row['model']} {row['version'] or row['digest'][:12]}"] += 1


def _field(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
    # a message may quote what would divide fields or lines
    return " ".join(str(value).split()) if isinstance(value, str) else str(value)


@contextmanager
def growing(out: Path, question: Sequence[object]) -> Iterator[Rows]:
    """The rows of a question: those of an interrupted run first. At the end they become ``out``.

    Args:
        out: a name ending in .tsv or .jsonl.
        question: what the answers depend on. It is part of the unfinished file's name, so no two questions' rows meet.

    Raises:
        ConfigError: if ``out`` is there already, or is being made, or an unfinished file of another question lies beside it.
        BackendError: if it cannot be written.
    """
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"{out} must end in {' or '.join(SUFFIXES)}")
    digest = hashlib.sha256(repr((COLUMNS, *question)).encode()).hexdigest()[:12]
    part = out.with_name(f"{out.name}.{digest}.part")
    try:
        if others := set(out.parent.glob(f"{escape(out.name)}.*.part")) - {part}:
            raise ConfigError(
                f"{min(others)} is unfinished, from another file or other options: remove it, or choose another --out"
            )
        with part.open("a+b") as file:
            _lock(file, part)
            if out.exists():
                if not os.fstat(file.fileno()).st_size:
                    part.unlink(missing_ok=True)
                raise ConfigError(f"{out} is there already: remove it, or choose another --out")
            file.seek(0)
            yield Rows(file, out.suffix == ".tsv")
            file.flush()
            os.fsync(file.fileno())
            part.replace(out)
    except OSError as error:
        raise BackendError(f"{out} cannot be written: {error}") from error


def _lock(file: IO[bytes], part: Path) -> None:
    try:
        # ends with the process, however that ends
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"{part} is being written by another run") from error
