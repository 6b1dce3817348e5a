"""A published ONNX folder as something that answers: text pairs in, logits out."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from conlst.contract.artifacts import verify
from conlst.contract.errors import ArtifactError, BackendError, DataError
from conlst.contract.labels import NAMES, check_id2label
from conlst.runtime.cpu import available_cpus
from conlst.runtime.graph import external_tensors
from conlst.runtime.heap import give_back
from conlst.runtime.memory import share_arena
from conlst.runtime.table import Tables, values_of
from conlst.runtime.threads import step_back
from conlst.runtime.tokens import Encoded, Pair

CPU = "CPUExecutionProvider"
KIND = "onnx"
_INPUTS = {"input_ids", "attention_mask"}
_OUTPUT = "logits"
_TABLE = "embeddings.bin"
_TOKENIZER = "tokenizer.json"
_CARD = "card.json"

BATCH_TOKENS = 512
"""Budget of padded tokens in one run: the activations of more fall out of a core's cache, and a third of the speed with them."""

GRAPHS = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
"""File of the graph at each precision that a folder may be served in."""

# another CPU sums in another order; in INT8 the last bit then decides which way an activation is rounded, by a whole step
GOLDEN_TOLERANCES = {"fp32": 1e-3, "int8": 0.5}

# onnxruntime has no kind of error for it: what its arena, the C++ library and Python say when there is no room
_SHORTAGE = ("Failed to allocate memory", "bad_alloc", "can't start new thread")


@dataclass(frozen=True)
class _Settings:
    language: str
    max_length: int
    pad_id: int
    temperature: float
    precision: str


class Predictor:
    """A verified model of one language. Safe to use from several threads.

    Attributes:
        digest: of the folder it was read from.
        language: the language it was adapted to.
        max_length: tokens of the longest pair it reads, special tokens included.
        pad_id: id of the token that fills a batch.
        temperature: what :meth:`probabilities` divides the logits by.
        precision: ``fp32`` or ``int8``.
        card: what the folder's ``card.json`` tells of the model, empty if there is none.
    """

    def __init__(
        self, folder: Path, *, threads: int = 0, provider: str = CPU, tables: Tables | None = None, helpers_back: int = 0
    ) -> None:
        """Open a published folder of kind ``onnx``.

        Args:
            threads: of one run in float32, 0 for what the process may use; in INT8 a run has one.
            provider: onnxruntime execution provider.
            tables: predictors that are given the same one share their embedding table, on the CPU, and their tokenizer.
            helpers_back: as :func:`open_session` takes it.

        Raises:
            ArtifactError: if the folder is incomplete, altered, or not a model that onnxruntime opens, which it does not if the
                graph's external data lie outside the folder.
            LabelError: if its outputs stand in another order.
            BackendError: if onnxruntime started another provider than the one asked for, or there is not enough memory.
        """
        folder = Path(folder)
        manifest = verify(folder, KIND)
        settings = _read_settings(folder / "config.json")
        graph = folder / GRAPHS[settings.precision]
        for needed in (graph.name, _TOKENIZER):
            if needed not in manifest.files:
                raise ArtifactError(f"{folder} has no {needed}; export again")
        tables = Tables() if tables is None else tables
        self.digest = manifest.digest
        self.language = settings.language
        self.max_length = settings.max_length
        self.pad_id = settings.pad_id
        self.temperature = settings.temperature
        self.precision = settings.precision
        self.card = _read_card(folder / _CARD) if _CARD in manifest.files else {}
        self._folder = folder
        self._tokenizer = tables.tokenizer(folder / _TOKENIZER, manifest.files[_TOKENIZER].sha256)
        # where a graph has its table elsewhere, onnxruntime finds it or refuses it; another device needs a copy of its own
        sharable = _TABLE in manifest.files and provider == CPU
        tensors = [tensor for tensor in external_tensors(graph) if sharable and tensor.location == _TABLE]
        # onnxruntime only borrows the table: it must live as long as the session does
        self._table = tables.table(folder / _TABLE, manifest.files[_TABLE].sha256) if tensors else None
        self._values = values_of(self._table, tensors) if self._table else {}
        # INT8's operators are too short to be divided: two threads compute a pair in 7.8 ms where one takes 8.4, four in no less
        own_threads = 1 if self.precision == "int8" else threads
        self._session = open_session(graph, own_threads, provider, self._values, helpers_back)
        give_back()

    def encode(self, pairs: Sequence[Pair], only_first: bool = False) -> Encoded:
        """Tokenise pairs; one over ``max_length`` is cut as :meth:`conlst.runtime.tokens.PairTokenizer.encode` says."""
        return self._tokenizer.encode(pairs, self.max_length, only_first)

    def run(self, rows: list[list[int]]) -> NDArray[np.float32]:
        """``[n, 3]`` logits of token ids, padded to the longest row, in one run of the session."""
        return self._session.run([_OUTPUT], padded(rows, self.pad_id))[0]

    def logits(self, pairs: Sequence[Pair], *, truncate: bool = False, batch_tokens: int = BATCH_TOKENS) -> NDArray[np.float32]:
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

    def logits_of(self, encoded: Encoded, *, batch_tokens: int = BATCH_TOKENS) -> NDArray[np.float32]:
        """``[n, 3]`` logits of pairs that are tokens already."""
        logits = np.empty((len(encoded.ids), len(NAMES)), np.float32)
        for indices in _batches([len(ids) for ids in encoded.ids], batch_tokens):
            logits[indices] = self.run([encoded.ids[index] for index in indices])
        return logits

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """``[n, 3]``: softmax of the logits over the temperature that the model was calibrated with."""
        scaled = logits.astype(np.float64) / self.temperature
        exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def check_golden(self, tolerance: float | None = None) -> None:
        """Answer the pairs whose logits were recorded at export.

        Args:
            tolerance: the largest difference of a logit, by the precision unless given.

        Raises:
            ArtifactError: if there are none, or this machine answers otherwise by more than ``tolerance``.
            BackendError: if there is not enough memory to answer them.
        """
        tolerance = GOLDEN_TOLERANCES[self.precision] if tolerance is None else tolerance
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
        try:
            answered = self.logits(pairs)
        except Exception as error:
            if _is_shortage(error):
                raise _no_memory(self._folder, error) from error
            raise
        difference = np.abs(answered - expected).max(axis=1)
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
        settings = _Settings(
            language=str(raw["language"]),
            max_length=int(raw["max_length"]),
            pad_id=int(raw["pad_id"]),
            temperature=float(raw["temperature"]),
            precision=str(raw.get("precision", "fp32")),
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{file} does not describe a model ({error!r}); export again") from error
    if not (math.isfinite(settings.temperature) and settings.temperature > 0):
        raise ArtifactError(f"{file} has temperature {settings.temperature}, which must be positive")
    if settings.precision not in GRAPHS:
        raise ArtifactError(f"{file} has precision {settings.precision!r}, known are {' and '.join(GRAPHS)}")
    return settings


def _read_card(file: Path) -> dict[str, Any]:
    card = _read_json(file)
    if not isinstance(card, dict):
        raise ArtifactError(f"{file} is not a card; export again")
    return card


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} cannot be read ({error}); export again") from error


def open_session(
    file: Path,
    threads: int = 0,
    provider: str = CPU,
    initializers: Mapping[str, onnxruntime.OrtValue] | None = None,
    helpers_back: int = 0,
) -> onnxruntime.InferenceSession:
    """A session for a graph as the export stage writes it.

    Each session has its own threads, which sleep while it is idle and then cost 0.1 MB each. onnxruntime's global pool would save
    them, but from Python it can only be had with threads that spin, and it forbids every other session of the process its own.

    Args:
        threads: of one run, 0 for what the process may use.
        initializers: values to use in place of the graph's, not copied: keep them as long as the session.
        helpers_back: how far the threads that help a run on the CPU step back behind the one that opens the session. Whoever
            computes several runs at a time has them help mostly when a CPU is idle: two runs and a helper on two CPUs are slower
            than the two runs.

    Raises:
        ArtifactError: if onnxruntime does not open the graph, or its inputs and outputs are others.
        BackendError: if onnxruntime started another provider than the one asked for, or there is not enough memory.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cpus()
    # the graph is a chain: a second pool would only compete with the first
    options.inter_op_num_threads = 1
    # idle threads that spin burn the quota of the container, and of the other languages' sessions
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    share_arena(options)
    for name, value in (initializers or {}).items():
        # not add_external_initializers, which copies them
        options.add_initializer(name, value)
    if provider not in onnxruntime.get_available_providers():
        raise BackendError(f"onnxruntime has no {provider}, only {', '.join(onnxruntime.get_available_providers())}")
    try:
        if helpers_back and options.intra_op_num_threads > 1 and provider == CPU:
            # helpers have the niceness of the thread that opens the session, which could not take its own back
            with ThreadPoolExecutor(1, initializer=step_back, initargs=(helpers_back,)) as opener:
                session = opener.submit(onnxruntime.InferenceSession, str(file), options, providers=[provider]).result()
        else:
            session = onnxruntime.InferenceSession(str(file), options, providers=[provider])
    except Exception as error:  # onnxruntime's errors share no base
        if _is_shortage(error):
            raise _no_memory(file, error) from error
        raise ArtifactError(f"onnxruntime refuses {file}: {error}") from error
    if (started := session.get_providers()[0]) != provider:
        # it falls back to the CPU with a mere warning when a device or library is missing
        raise BackendError(f"asked for {provider}, onnxruntime started {started}: check the device and its libraries")
    inputs, outputs = {node.name for node in session.get_inputs()}, {node.name for node in session.get_outputs()}
    if inputs != _INPUTS or _OUTPUT not in outputs:
        raise ArtifactError(f"{file} maps {sorted(inputs)} to {sorted(outputs)}, expected {sorted(_INPUTS)} to {_OUTPUT}")
    return session


def _is_shortage(error: Exception) -> bool:
    """Whether memory or threads ran out, which is no fault of the model's and may be over when it is tried again."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _SHORTAGE)


def _no_memory(place: Path, error: Exception) -> BackendError:
    return BackendError(f"there is not enough memory to open {place} ({error!r}); give the process more, or open fewer models")


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


def padded(rows: list[list[int]], pad_id: int) -> dict[str, NDArray[np.int64]]:
    """ids and mask, ``[batch, longest]`` int64."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, pad_id, np.int64)
    ids[mask] = np.concatenate(rows)
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
