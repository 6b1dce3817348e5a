"""Premises and hypotheses from a file of any size, a line at a time.

:mod:`conlst.data.sources` reads more forms and checks more, but needs the libraries of training.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from conlst.client.answers import Pair, Refused
from conlst.contract.errors import DataError

SUFFIXES = (".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz")
# the second of each as in XNLI 1.0's and MultiNLI's own files
_COLUMNS = (("premise", "sentence1"), ("hypothesis", "sentence2"))
_LONGEST_LINE = 1 << 24


@dataclass(frozen=True)
class Line:
    """A line of a file.

    Attributes:
        number: counted from 1.
        item: its pair, or why it holds none.
        end: bytes of the file, compressed or not, that were read with it.
    """

    number: int
    item: Pair | Refused
    end: int


def read_pairs(path: Path) -> Iterator[Line]:
    """Every line that is not empty, but a TSV file's header. Quotes are ordinary characters.

    A line without a pair of texts comes as refused, so that one bad line among millions ends nothing.

    Raises:
        DataError: if the file is of no known form, cannot be read, or has not both columns, with file and line.
    """
    form = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
    if form is None:
        raise DataError(f"{path} is of no known form; give a file ending in {', '.join(SUFFIXES)}")
    return _tsv(path) if form.startswith(".tsv") else _jsonl(path)


def _tsv(path: Path) -> Iterator[Line]:
    columns: tuple[int, int] | None = None
    width = 0
    for number, raw, end in _lines(path):
        try:
            fields = raw.decode("utf-8").split("\t")
        except UnicodeDecodeError as error:
            if columns is None:
                raise DataError(f"{path}, line {number}: not UTF-8 ({error}); convert the file to UTF-8") from error
            yield Line(number, _malformed(path, number, f"not UTF-8 ({error})"), end)
            continue
        if columns is None:
            columns, width = _columns(fields, f"{path}, line {number}"), len(fields)
        elif len(fields) != width:
            yield Line(number, _malformed(path, number, f"{len(fields)} fields, the header has {width}"), end)
        else:
            yield Line(number, (fields[columns[0]], fields[columns[1]]), end)
    if columns is None:
        raise DataError(f"{path} is empty; its first line must name the columns premise and hypothesis")


def _columns(header: list[str], where: str) -> tuple[int, int]:
    premise, hypothesis = ([index for index, name in enumerate(header) if name in names] for names in _COLUMNS)
    if len(premise) != 1 or len(hypothesis) != 1:
        raise DataError(f"{where}: the header must name premise and hypothesis once each, it has {', '.join(header)[:200]}")
    return premise[0], hypothesis[0]


def _jsonl(path: Path) -> Iterator[Line]:
    for number, raw, end in _lines(path):
        try:
            row = json.loads(raw.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            yield Line(number, _malformed(path, number, f"not JSON in UTF-8 ({error})"), end)
            continue
        texts = [next((row[name] for name in names if name in row), None) for names in _COLUMNS] if isinstance(row, dict) else []
        match texts:
            case [str(premise), str(hypothesis)]:
                yield Line(number, (premise, hypothesis), end)
            case _:
                yield Line(number, _malformed(path, number, "not an object with the texts premise and hypothesis"), end)


def _malformed(path: Path, number: int, what: str) -> Refused:
    return Refused("malformed_line", f"{path}, line {number}: {what}")


def _lines(path: Path) -> Iterator[tuple[int, bytes, int]]:
    """Lines with their number and end, without line feeds; only these divide (a text may hold U+2028 or NEL)."""
    number = 0
    try:
        with path.open("rb") as raw, _plain(path, raw) as file:
            while line := file.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE:
                    raise DataError(f"{path}, line {number}: longer than {_LONGEST_LINE} bytes; is this a file of pairs?")
                text = line.removesuffix(b"\n").removesuffix(b"\r")
                if number == 1:
                    text = text.removeprefix(b"\xef\xbb\xbf")
                if text:
                    yield number, text, raw.tell()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read after line {number}: {error}") from error


def _plain(path: Path, raw: BinaryIO) -> BinaryIO | gzip.GzipFile:
    return gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
