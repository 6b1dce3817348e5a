"""What models of one process have in common, kept once: the embedding table and the tokenizer."""

import mmap
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from threading import Lock
from typing import TypeVar
from weakref import WeakValueDictionary

import numpy as np
import onnxruntime

from conlst.contract.errors import ArtifactError
from conlst.runtime.graph import ExternalTensor
from conlst.runtime.tokens import PairTokenizer, open_tokenizer

# onnx's numbers of the types that a table may have
_TYPES: dict[int, np.dtype[np.generic]] = {
    1: np.dtype(np.float32),
    2: np.dtype(np.uint8),
    3: np.dtype(np.int8),
    10: np.dtype(np.float16),
}

T = TypeVar("T")


class Table:
    """A file of tensors, mapped read-only. A page is in memory once it is used, and once only.

    The mapping lives as long as this object: whoever runs a session on its values has to keep it.
    """

    def __init__(self, file: Path) -> None:
        with file.open("rb") as opened:
            self._bytes = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        self._file = file

    def value(self, tensor: ExternalTensor) -> onnxruntime.OrtValue:
        """A tensor of the file for ``SessionOptions.add_initializer``, not copied.

        Raises:
            ArtifactError: if the file ends before the tensor does, or its type is none that a table has.
        """
        if (dtype := _TYPES.get(tensor.element)) is None:
            raise ArtifactError(f"{tensor.name} in {self._file} is of onnx's type {tensor.element}, which is no table's")
        count = prod(tensor.shape)
        if (end := tensor.offset + count * dtype.itemsize) > len(self._bytes):
            raise ArtifactError(f"{tensor.name} needs {end} bytes of {self._file}, which has {len(self._bytes)}; export again")
        values = np.frombuffer(self._bytes, dtype, count, tensor.offset).reshape(tensor.shape)
        return onnxruntime.OrtValue.ortvalue_from_numpy(values)


class Tables:
    """Gives predictors of one process the same mapping of a table, and the same tokenizer, if the files have the same sha256.

    Nothing is held here: what the last predictor has let go is gone. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._tables: WeakValueDictionary[str, Table] = WeakValueDictionary()
        self._tokenizers: WeakValueDictionary[str, PairTokenizer] = WeakValueDictionary()

    def table(self, file: Path, sha256: str) -> Table:
        """The mapping of a file whose content was verified."""
        return self._kept(self._tables, sha256, lambda: Table(file))

    def tokenizer(self, file: Path, sha256: str) -> PairTokenizer:
        """The tokenizer of a file whose content was verified."""
        return self._kept(self._tokenizers, sha256, lambda: open_tokenizer(file))

    def _kept(self, kept: "WeakValueDictionary[str, T]", sha256: str, make: Callable[[], T]) -> T:
        # two threads that open models at the same time must not make two
        with self._lock:
            if (found := kept.get(sha256)) is None:
                found = kept[sha256] = make()
            return found


def values_of(table: Table, tensors: Sequence[ExternalTensor]) -> dict[str, onnxruntime.OrtValue]:
    """Every tensor by its name."""
    return {tensor.name: table.value(tensor) for tensor in tensors}
