"""A published ONNX folder of a few kilobytes, with a second, slow way to its logits. Needs no torch."""

import json
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from conlst.contract.artifacts import publish
from conlst.contract.labels import ID2LABEL

WORDS = ("watu", "wawili", "wanacheza", "mpira", "uwanjani", "hakuna", "mtu", "anayecheza", "mvua", "inanyesha", "leo", "kesho")
PAIRS = [
    ("watu wawili wanacheza mpira", "watu wanacheza"),
    ("mvua inanyesha leo", "hakuna mvua"),
    ("mtu anayecheza mpira uwanjani", "mvua inanyesha kesho"),
    ("watu", "hakuna mtu"),
]
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_WIDTH = 4


def tiny_tokenizer() -> Tokenizer:
    """A tokenizer with one id a word and XLM-R's form for pairs."""
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def tiny_weights(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Embedding table ``[vocabulary, width]`` and classifier ``[width, 3]``."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(len(_SPECIAL) + len(WORDS), _WIDTH)).astype(np.float32)
    return table, rng.normal(size=(_WIDTH, 3)).astype(np.float32)


def slow_logits(pairs: list[tuple[str, str]], seed: int = 0, max_length: int = 16) -> NDArray[np.float64]:
    """Mean embedding of a pair's tokens times the classifier, a pair at a time."""
    table, classifier = tiny_weights(seed)
    tokenizer = tiny_tokenizer()
    tokenizer.enable_truncation(max_length)
    return np.stack([table[tokenizer.encode(*pair).ids].astype(np.float64).mean(axis=0) @ classifier for pair in pairs])


def tiny_onnx_folder(
    path: Path,
    language: str = "sw",
    *,
    seed: int = 0,
    max_length: int = 16,
    temperature: float = 1.0,
    id2label: dict[int, str] = ID2LABEL,
    golden: list[tuple[str, str]] = PAIRS,
    golden_offset: float = 0.0,
    external: str = "embeddings.bin",
) -> Path:
    """Publish a folder as the export stage does.

    Args:
        golden_offset: added to the recorded logits, so that the model does not reproduce them.
        external: where the graph says that its embedding table is.
    """
    table, classifier = tiny_weights(seed)
    logits = slow_logits(golden, seed, max_length) + golden_offset if golden else []
    with publish(path, kind="onnx", meta={"language": language}) as staging:
        (staging / "model.onnx").write_bytes(embedding_graph(table, classifier, external).SerializeToString())
        (staging / "embeddings.bin").write_bytes(table.tobytes())
        tiny_tokenizer().save(str(staging / "tokenizer.json"))
        config = {
            "id2label": {str(key): value for key, value in id2label.items()},
            "max_length": max_length,
            "pad_id": 1,
            "language": language,
            "temperature": temperature,
        }
        (staging / "config.json").write_text(json.dumps(config))
        answers = [
            {"premise": premise, "hypothesis": hypothesis, "logits": list(map(float, row))}
            for (premise, hypothesis), row in zip(golden, logits, strict=True)
        ]
        (staging / "golden.json").write_text(json.dumps(answers))
    return path


def embedding_graph(table: NDArray[np.float32], classifier: NDArray[np.float32], external: str) -> onnx.ModelProto:
    """The mean embedding of a pair's tokens times the classifier, its table in a file beside it."""
    embeddings = TensorProto(name="embeddings", data_type=TensorProto.FLOAT, dims=table.shape, data_location=TensorProto.EXTERNAL)
    embeddings.external_data.add(key="location", value=external)
    nodes = [
        helper.make_node("Gather", ["embeddings", "input_ids"], ["tokens"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["tokens", "column"], ["attended"]),
        helper.make_node("ReduceSum", ["attended", "first"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "first"], ["count"], keepdims=1),
        helper.make_node("Div", ["total", "count"], ["pooled"]),
        helper.make_node("MatMul", ["pooled", "classifier"], ["logits"]),
    ]
    constants = [
        embeddings,
        numpy_helper.from_array(classifier, "classifier"),
        numpy_helper.from_array(np.array([1]), "first"),
        numpy_helper.from_array(np.array([2]), "last"),
    ]
    shape = ["batch", "length"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("input_ids", "attention_mask")]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
