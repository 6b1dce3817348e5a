"""Which tensors an ONNX graph keeps in files beside it, read off the protobuf bytes: the ``onnx`` package is not served with."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conlst.contract.errors import ArtifactError

# field numbers of onnx.proto
_GRAPH, _INITIALIZER = 7, 5
_DIMS, _TYPE, _NAME, _EXTERNAL, _LOCATION = 1, 2, 8, 13, 14
_KEY, _VALUE = 1, 2
_IN_FILE = 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Field = tuple[int, int | memoryview]


@dataclass(frozen=True)
class ExternalTensor:
    """An initializer whose values lie in another file.

    Attributes:
        element: onnx's number of its type, 1 for float32.
        location: path of the file, as the graph has it.
        offset: its first byte there.
    """

    name: str
    element: int
    shape: tuple[int, ...]
    location: str
    offset: int


def external_tensors(file: Path) -> list[ExternalTensor]:
    """The initializers of a graph that lie in other files. Reads the headers of the tensors, not their values.

    Raises:
        ArtifactError: if the file is no ONNX graph.
    """
    try:
        with file.open("rb") as opened:
            return list(_external(memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))))
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file} is not an ONNX graph ({error!r}); export again") from error


def _external(model: memoryview) -> Iterator[ExternalTensor]:
    for graph in _messages(model, _GRAPH):
        for tensor in _messages(graph, _INITIALIZER):
            fields = list(_fields(tensor))
            if (_LOCATION, _IN_FILE) in ((number, value) for number, value in fields if isinstance(value, int)):
                yield _tensor(fields)


def _tensor(fields: list[Field]) -> ExternalTensor:
    single = dict(fields)
    place = dict(_entry(value) for number, value in fields if number == _EXTERNAL and isinstance(value, memoryview))
    shape: list[int] = []
    for number, value in fields:
        if number == _DIMS:
            # a list of numbers is written one by one or packed
            shape += [value] if isinstance(value, int) else _packed(value)
    name, element = single[_NAME], single[_TYPE]
    if isinstance(name, int) or not isinstance(element, int):
        raise TypeError("a tensor without name or type")
    return ExternalTensor(_text(name), element, tuple(shape), place["location"], int(place.get("offset", "0")))


def _entry(entry: memoryview) -> tuple[str, str]:
    fields = dict(_fields(entry))
    key, value = fields[_KEY], fields[_VALUE]
    if isinstance(key, int) or isinstance(value, int):
        raise TypeError("a place that is no text")
    return _text(key), _text(value)


def _text(value: memoryview) -> str:
    return bytes(value).decode()


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    return (value for number, value in _fields(message) if number == wanted and isinstance(value, memoryview))


def _fields(message: memoryview) -> Iterator[Field]:
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
        elif wire == _BYTES:
            size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError("it ends early")
            yield number, message[at : at + size]
            at += size
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")


def _packed(values: memoryview) -> list[int]:
    at, found = 0, []
    while at < len(values):
        value, at = _varint(values, at)
        found.append(value)
    return found


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
