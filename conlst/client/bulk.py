"""``conlst predict --url … --file …``: the answers to a file of pairs, in a file."""

import asyncio
import hashlib
import logging
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import aclosing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conlst.client.asynchronous import AsyncClient
from conlst.client.batches import Item
from conlst.client.files import SUFFIXES, Line, read_pairs
from conlst.client.rows import Row, Rows, growing, row_of
from conlst.contract.errors import DataError

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger(__name__)

# rows that are written together: what a killed run has to ask again is these and what was in flight
_ROWS_AT_ONCE = 64


def default_out(file: Path) -> Path:
    """``pairs.tsv.gz`` → ``pairs.predictions.tsv``."""
    name = file.name.removesuffix(".gz")
    if not file.name.endswith(SUFFIXES):
        raise DataError(f"{file} is of no known form; give a file ending in {', '.join(SUFFIXES)}")
    stem, _, suffix = name.rpartition(".")
    return file.with_name(f"{stem}.predictions.{suffix}")


def predict_file(client: AsyncClient, file: Path, out: Path, language: str | None, truncate: bool) -> dict[str, Any]:
    """Answer every pair of a file, in its order, a row each.

    Rows are kept in ``out.….part`` as they come and get the name ``out`` at the end. A run that was interrupted goes on behind
    its last whole row when it is started again with the same file, options and ``out``.

    Returns:
        What became of the rows, those of interrupted runs included.

    Raises:
        ConlstError: if the file cannot be read, ``out`` not be written, or the endpoint not be asked. What was answered is kept.
    """
    with growing(out, (_sha256(file), language, truncate)) as rows:
        if rows.kept:
            log.info("%s: going on after %d rows", out, rows.kept)
        try:
            asyncio.run(_answer(client, file, rows, language, truncate))
        except BaseException:
            log.warning("stopped after %d rows; they are kept, the same command goes on from there", rows.count)
            raise
    return {
        "out": str(out),
        "pairs": rows.count,
        "resumed": rows.kept,
        "labels": dict(rows.labels),
        "errors": dict(rows.errors),
        "models": dict(rows.models),
    }


async def _answer(client: AsyncClient, file: Path, rows: Rows, language: str | None, truncate: bool) -> None:
    asked: deque[Line] = deque()

    def pairs() -> Iterator[Item]:
        for line in islice(read_pairs(file), rows.kept, None):
            asked.append(line)
            yield line.item

    ready: list[Row] = []
    with _progress() as progress:
        task = progress.add_task(file.name, total=file.stat().st_size)
        try:
            async with client, aclosing(client.predict_stream(pairs(), language=language, truncate=truncate)) as answers:
                async for answer in answers:
                    line = asked.popleft()
                    ready.append(row_of(line.number, answer))
                    if len(ready) == _ROWS_AT_ONCE:
                        # let go of first: rows that a failed write has buffered must not be written behind themselves
                        whole, ready = ready, []
                        rows.write(whole)
                        progress.update(task, completed=line.end)
        finally:
            if ready:
                rows.write(ready)
        progress.update(task, completed=file.stat().st_size)


def _progress() -> "Progress":
    """A bar of the file's bytes, on a terminal only."""
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), disable=not sys.stderr.isatty())


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}") from error
