"""A published ONNX folder as something that answers: text pairs in, logits out."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from conlst.contract.artifacts import verify
from conlst.contract.errors import ArtifactError, BackendError, DataError
from conlst.contract.labels import NAMES, check_id2label
from conlst.runtime.cpu import available_cpus

CPU = "CPUExecutionProvider"
KIND = "onnx"
_INPUTS = {"input_ids", "attention_mask"}
_OUTPUT = "logits"

Pair = tuple[str, str]


@dataclass(frozen=True)
class Encoded:
    """Pairs as tokens.

    Attributes:
        ids: token ids of each pair, cut to the model's longest.
        lengths: ``[n]`` tokens of each pair before it was cut.
    """

    ids: list[list[int]]
    lengths: NDArray[np.int64]


@dataclass(frozen=True)
class _Settings:
    language: str
    max_length: int
    pad_id: int
    temperature: float


class Predictor:
    """A verified model of one language.

    Attributes:
        language: the language it was adapted to.
        digest: of the folder it was read from.
        max_length: tokens of the longest pair it reads, special tokens included.
    """

    def __init__(self, folder: Path, *, threads: int = 0, provider: str = CPU) -> None:
        """Open a published folder of kind ``onnx``.

        Args:
            threads: of one run, 0 for what the process may use.
            provider: onnxruntime execution provider.

        Raises:
            ArtifactError: if the folder is incomplete, altered, or not a model that onnxruntime opens, which it does not if the
                graph's external data lie outside the folder.
            LabelError: if its outputs stand in another order.
            BackendError: if onnxruntime started another provider than the one asked for.
        """
        folder = Path(folder)
        self.digest = verify(folder, KIND).digest
        self._settings = _read_settings(folder / "config.json")
        self._folder = folder
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._cutting_tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        self._cutting_tokenizer.enable_truncation(self._settings.max_length, strategy="longest_first")
        self._session = open_session(folder / "model.onnx", threads, provider)

    @property
    def language(self) -> str:
        return self._settings.language

    @property
    def max_length(self) -> int:
        return self._settings.max_length

    def encode(self, pairs: Sequence[Pair]) -> Encoded:
        """Tokenise pairs; one over ``max_length`` loses tokens of its longer text, which its ``lengths`` entry shows."""
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(pairs))]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        long = [index for index, length in enumerate(lengths) if length > self.max_length]
        if long:
            cut = self._cutting_tokenizer.encode_batch_fast([pairs[index] for index in long])
            for index, encoding in zip(long, cut, strict=True):
                ids[index] = encoding.ids
        return Encoded(ids, lengths)

    def logits(self, pairs: Sequence[Pair], *, truncate: bool = False, batch_tokens: int = 4096) -> NDArray[np.float32]:
        """``[n, 3]``, in the order of the pairs.

        Args:
            truncate: cut pairs that are too long for the model.
            batch_tokens: budget of padded tokens in one run.

        Raises:
            DataError: naming the first pair that is too long, unless ``truncate``.
        """
        encoded = self.encode(pairs)
        if not truncate and (encoded.lengths > self.max_length).any():
            index = int(np.argmax(encoded.lengths > self.max_length))
            raise DataError(
                f"pair {index} has {encoded.lengths[index]} tokens, the model reads {self.max_length}: shorten or truncate it"
            )
        return self.logits_of(encoded, batch_tokens=batch_tokens)

    def logits_of(self, encoded: Encoded, *, batch_tokens: int = 4096) -> NDArray[np.float32]:
        """``[n, 3]`` logits of pairs that are tokens already."""
        logits = np.empty((len(encoded.ids), len(NAMES)), np.float32)
        for indices in _batches([len(ids) for ids in encoded.ids], batch_tokens):
            rows = [encoded.ids[index] for index in indices]
            logits[indices] = self._session.run([_OUTPUT], _padded(rows, self._settings.pad_id))[0]
        return logits

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """``[n, 3]``: softmax of the logits over the temperature that the model was calibrated with."""
        scaled = logits.astype(np.float64) / self._settings.temperature
        exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def check_golden(self, tolerance: float = 1e-3) -> None:
        """Answer the pairs whose logits were recorded at export.

        Raises:
            ArtifactError: if there are none, or this machine answers otherwise by more than ``tolerance``.
        """
        golden = _read_json(self._folder / "golden.json")
        try:
            pairs = [(str(item["premise"]), str(item["hypothesis"])) for item in golden]
            expected = np.asarray([item["logits"] for item in golden], np.float64).reshape(-1, len(NAMES))
        except (TypeError, KeyError, ValueError) as error:
            raise ArtifactError(
                f"{self._folder / 'golden.json'} is not a list of pairs with logits ({error}); export again"
            ) from error
        if not pairs:
            raise ArtifactError(
                f"{self._folder / 'golden.json'} holds no pair, so nothing shows that the model answers; export again"
            )
        difference = np.abs(self.logits(pairs) - expected).max(axis=1)
        # the negation also catches NaN
        if (wrong := np.flatnonzero(~(difference <= tolerance))).size:
            raise ArtifactError(
                f"{self._folder} answers golden pair {wrong[0]} otherwise than at export: its logits differ by "
                f"{difference[wrong[0]]:.2g}, {tolerance:g} is allowed"
            )


def _read_settings(file: Path) -> _Settings:
    raw = _read_json(file)
    try:
        check_id2label(raw["id2label"], str(file))
        settings = _Settings(str(raw["language"]), int(raw["max_length"]), int(raw["pad_id"]), float(raw["temperature"]))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{file} does not describe a model ({error!r}); export again") from error
    if not (math.isfinite(settings.temperature) and settings.temperature > 0):
        raise ArtifactError(f"{file} has temperature {settings.temperature}, which must be positive")
    return settings


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} cannot be read ({error}); export again") from error


def open_session(file: Path, threads: int = 0, provider: str = CPU) -> onnxruntime.InferenceSession:
    """A session for a graph as the export stage writes it.

    Args:
        threads: of one run, 0 for what the process may use.

    Raises:
        ArtifactError: if onnxruntime does not open the graph, or its inputs and outputs are others.
        BackendError: if onnxruntime started another provider than the one asked for.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cpus()
    # the graph is a chain: a second pool would only compete with the first
    options.inter_op_num_threads = 1
    # idle threads that spin burn the quota of the container, and of the other languages' sessions
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider not in onnxruntime.get_available_providers():
        raise BackendError(f"onnxruntime has no {provider}, only {', '.join(onnxruntime.get_available_providers())}")
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=[provider])
    except Exception as error:  # onnxruntime's errors share no base
        raise ArtifactError(f"onnxruntime refuses {file}: {error}") from error
    if (started := session.get_providers()[0]) != provider:
        # it falls back to the CPU with a mere warning when a device or library is missing
        raise BackendError(f"asked for {provider}, onnxruntime started {started}: check the device and its libraries")
    inputs, outputs = {node.name for node in session.get_inputs()}, {node.name for node in session.get_outputs()}
    if inputs != _INPUTS or _OUTPUT not in outputs:
        raise ArtifactError(f"{file} maps {sorted(inputs)} to {sorted(outputs)}, expected {sorted(_INPUTS)} to {_OUTPUT}")
    return session


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in order of length, cut so that rows times longest row stays within the budget (or is one row)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _padded(rows: list[list[int]], pad_id: int) -> dict[str, NDArray[np.int64]]:
    """ids and mask, ``[batch, longest]`` int64."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, pad_id, np.int64)
    ids[mask] = np.concatenate(rows)
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
