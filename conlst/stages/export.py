"""Export to ONNX: a folder that is served without torch, refused unless it answers as torch does."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.external_data_helper import set_external_data
from torch import Tensor

from conlst.contract.artifacts import publish, read_manifest
from conlst.contract.config import Config
from conlst.contract.errors import DataError, TrainingError
from conlst.contract.labels import ID2LABEL
from conlst.data.batching import length_batches
from conlst.data.tokens import TokenizedPairs, tokenize
from conlst.model.encoder import PairClassifier
from conlst.model.folder import load_model
from conlst.runtime.onnx import open_session

log = logging.getLogger(__name__)

KIND = "onnx"
_GRAPH = "model.onnx"
_TABLE = "embeddings.bin"


def export_onnx(model_folder: Path, pairs: list[tuple[str, str]], out: Path, config: Config) -> float:
    """Publish an ``onnx`` folder of a trained model: graph, embedding table, tokenizer, settings and golden pairs.

    Args:
        model_folder: an artifact of kind ``model``.
        pairs: premise and hypothesis of real pairs on which torch and ONNX must agree. The first few become golden pairs, which
            every server answers again before it is ready.

    Returns:
        The largest difference of logits.

    Raises:
        DataError: if there are no pairs to compare on, or only truncated ones.
        TrainingError: if the difference exceeds ``config.export.tolerance``; nothing is published then.
    """
    if not pairs:
        raise DataError("export compares ONNX with torch on real pairs, and got none")
    # eager attention: a fused one exports to other numbers where a row is all padding
    model = load_model(model_folder, attention="eager")
    premises, hypotheses = zip(*pairs, strict=True)
    tokens = tokenize(premises, hypotheses, model.tokenizer, max_length=model.text.max_length, pad_id=model.text.pad_id)
    expected = _torch_logits(model.classifier, tokens, config.evaluate.batch_tokens)
    whole = (tokens.lengths < model.text.max_length).nonzero().squeeze(1)[: config.export.golden].tolist()
    if not whole:
        raise DataError(f"every one of {len(pairs)} pairs is longer than the model reads, so none can be a golden pair")
    golden = [
        {"premise": premises[index], "hypothesis": hypotheses[index], "logits": expected[index].tolist()} for index in whole
    ]
    language = read_manifest(model_folder).meta.get("language", "en")
    parents, meta = {"model": model.digest}, {"language": language}
    with publish(out, kind=KIND, config=config.to_dict(), parents=parents, meta=meta) as staging:
        _write_graph(model.classifier, tokens, staging, config.export.opset)
        difference = (_onnx_logits(staging / _GRAPH, tokens, config.evaluate.batch_tokens) - expected).abs().max().item()
        # the negation also catches NaN
        if not difference <= config.export.tolerance:
            raise TrainingError(
                f"ONNX and torch differ by {difference:.2e} on {len(pairs)} pairs, more than export.tolerance"
                f" {config.export.tolerance:.0e}; nothing was exported"
            )
        settings = {
            "id2label": {str(key): value for key, value in ID2LABEL.items()},
            "max_length": model.text.max_length,
            "pad_id": model.text.pad_id,
            "language": language,
            "temperature": 1.0,
            "parity": difference,
        }
        (staging / "config.json").write_text(json.dumps(settings, indent=1, sort_keys=True))
        (staging / "golden.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False), encoding="utf-8")
        model.tokenizer.save(str(staging / "tokenizer.json"), pretty=False)
    log.info("exported %s, ONNX and torch differ by at most %.1e on %d pairs", out, difference, len(pairs))
    return difference


def _write_graph(classifier: PairClassifier, tokens: TokenizedPairs, folder: Path, opset: int) -> None:
    """Write the graph, its embedding table in a file of its own: fine-tuned models share the table, and so can their files."""
    # two rows and more than one token, or the exporter takes the sizes for constants
    example = tokens.batch(torch.arange(len(tokens))[:2].repeat(2)[:2])
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2)
    shape = {0: batch, 1: length}
    with warnings.catch_warnings():
        # the exporter warns of its own deprecated calls, and of axis names that it merges
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            classifier.eval(),
            example,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes={"ids": shape, "mask": shape},
            dynamo=True,
            opset_version=opset,
            verbose=False,
        )
    if program is None:
        raise TrainingError("torch.onnx.export gave no program")
    graph: onnx.ModelProto = program.model_proto
    shape_of_table = list(classifier.embeddings.shape)
    table = next(tensor for tensor in graph.graph.initializer if list(tensor.dims) == shape_of_table)
    (folder / _TABLE).write_bytes(table.raw_data)
    set_external_data(table, _TABLE, offset=0, length=len(table.raw_data))
    table.ClearField("raw_data")
    # the exporter's notes of the Python that made each node: paths of this machine, and most of the graph's size
    for node in graph.graph.node:
        node.ClearField("metadata_props")
    (folder / _GRAPH).write_bytes(graph.SerializeToString(deterministic=True))


@torch.inference_mode()
def _torch_logits(classifier: PairClassifier, tokens: TokenizedPairs, batch_tokens: int) -> Tensor:
    logits = torch.empty(len(tokens), len(ID2LABEL))
    for indices in length_batches(tokens.lengths, batch_tokens):
        logits[indices] = classifier.eval()(*tokens.batch(indices))
    return logits


def _onnx_logits(graph: Path, tokens: TokenizedPairs, batch_tokens: int) -> Tensor:
    session = open_session(graph)
    logits = torch.empty(len(tokens), len(ID2LABEL))
    for indices in length_batches(tokens.lengths, batch_tokens):
        ids, mask = tokens.batch(indices)
        feed: dict[str, Any] = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        logits[indices] = torch.from_numpy(np.asarray(session.run(["logits"], feed)[0]))
    return logits
