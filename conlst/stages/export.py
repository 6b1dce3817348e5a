"""Export to ONNX: a folder that is served without torch, refused unless it answers as torch does."""

import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.external_data_helper import set_external_data
from torch import Tensor

from conlst.contract.artifacts import publish, read_manifest
from conlst.contract.config import Config
from conlst.contract.errors import DataError, TrainingError
from conlst.contract.labels import ID2LABEL
from conlst.data.batching import length_batches
from conlst.data.tokens import TokenizedPairs
from conlst.model.encoder import PairClassifier
from conlst.model.folder import Model, load_model
from conlst.runtime.onnx import GRAPHS, open_session
from conlst.stages.card import evaluation_card, reference_card, temperature_card
from conlst.stages.evaluate import SOURCE_LANGUAGE
from conlst.stages.precision import Labelled, Verdict, judge
from conlst.stages.quantize import quantize_graph

log = logging.getLogger(__name__)

KIND = "onnx"
_GRAPH = GRAPHS["fp32"]
_INT8 = GRAPHS["int8"]
_TABLE = "embeddings.bin"
Pairs = list[tuple[str, str]]
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """What an export is judged and calibrated on, beside the pairs on which ONNX must answer as torch does.

    Attributes:
        pool: unlabelled pairs of the language.
        held_out: pairs of the language that it was not adapted on, if there are any; the temperature is fitted on them without
            their labels, on the pool otherwise.
        held_out_labels: ``[n]``, where labels of the language may be read.
        english: labelled English pairs that nothing was trained on.
        english_labels: theirs ``[n]``.
        evaluation: content of ``evaluation.json``, for the card.
    """

    pool: Pairs
    held_out: Pairs
    held_out_labels: NDArray[np.int64] | None
    english: Pairs
    english_labels: NDArray[np.int64]
    evaluation: dict[str, Any] | None = None


def language_to_serve(model: Path, wanted: str | None = None) -> str:
    """The language of an exported model: the one that ``model`` was adapted to, or ``wanted``, which must be one of them.

    Raises:
        DataError: if it was adapted to several and none is wanted, or to others.
    """
    meta = read_manifest(model).meta
    own = meta.get("language", SOURCE_LANGUAGE)
    known = meta.get("languages", [own])
    if wanted is None and len(known) > 1:
        raise DataError(f"{model} is a model of {', '.join(known)}: name the one to export it for (--language)")
    if wanted is not None and wanted not in known:
        raise DataError(f"{model} is a model of {', '.join(known)}, it cannot be exported for {wanted}")
    return wanted or own


def export_onnx(
    model_folder: Path, pairs: Pairs, out: Path, config: Config, reference: Reference | None = None, language: str | None = None
) -> float:
    """Publish an ``onnx`` folder of a trained model: graphs, embedding table, tokenizer, settings, card and golden pairs.

    Args:
        model_folder: an artifact of kind ``model``.
        pairs: premise and hypothesis of real pairs on which torch and ONNX must agree. The first few become golden pairs, which
            every server answers again before it is ready.
        reference: without English pairs in it nothing shows what INT8 costs and how sure the model may be: float32 is served
            then, at temperature 1.
        language: as :func:`language_to_serve` has it.

    Returns:
        The largest difference of logits.

    Raises:
        DataError: if there are no pairs to compare on, or only truncated ones; for the language.
        TrainingError: if the difference exceeds ``config.export.tolerance``; nothing is published then.
    """
    language = language_to_serve(model_folder, language)
    if not pairs:
        raise DataError("export compares ONNX with torch on real pairs, and got none")
    # eager attention: a fused one exports to other numbers where a row is all padding
    model = load_model(model_folder, attention="eager")
    tokens = _tokens(pairs, model)
    expected = _torch_logits(model.classifier, tokens, config.evaluate.batch_tokens)
    whole = (tokens.lengths < model.text.max_length).nonzero().squeeze(1)[: config.export.golden]
    if not len(whole):
        raise DataError(f"every one of {len(pairs)} pairs is longer than the model reads, so none can be a golden pair")
    reference = reference or Reference(pairs, [], None, [], np.empty(0, np.int64))
    parents, meta = {"model": model.digest}, {"language": language}
    with publish(out, kind=KIND, config=config.to_dict(), parents=parents, meta=meta) as staging:
        _write_graph(model.classifier, tokens, staging, config.export.opset)
        answered = _onnx_logits(staging / _GRAPH, tokens, config.evaluate.batch_tokens)
        difference = (answered - expected).abs().max().item()
        # the negation also catches NaN
        if not difference <= config.export.tolerance:
            raise TrainingError(
                f"ONNX and torch differ by {difference:.2e} on {len(pairs)} pairs, more than export.tolerance"
                f" {config.export.tolerance:.0e}; nothing was exported"
            )
        card = _judged(staging, model, reference, config)
        served = card["precision"]["served"]
        golden_logits = expected[whole]
        if served == "int8":
            some = _tokens([pairs[index] for index in whole.tolist()], model)
            golden_logits = _onnx_logits(staging / _INT8, some, config.evaluate.batch_tokens)
        settings = {
            "id2label": {str(key): value for key, value in ID2LABEL.items()},
            "max_length": model.text.max_length,
            "pad_id": model.text.pad_id,
            "language": language,
            "temperature": card["temperature"]["value"],
            "precision": served,
            "precision_reason": card["precision"]["reason"],
            "parity": difference,
        }
        golden = [
            {"premise": pairs[index][0], "hypothesis": pairs[index][1], "logits": logits}
            for index, logits in zip(whole.tolist(), golden_logits.tolist(), strict=True)
        ]
        (staging / "config.json").write_text(json.dumps(settings, indent=1, sort_keys=True))
        (staging / "card.json").write_text(json.dumps(card, indent=1, sort_keys=True))
        (staging / "golden.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False), encoding="utf-8")
        model.tokenizer.save(str(staging / "tokenizer.json"), pretty=False)
    log.info("exported %s, ONNX and torch differ by at most %.1e on %d pairs", out, difference, len(pairs))
    log.info("%s is served: %s", served, card["precision"]["reason"])
    return difference


def _judged(folder: Path, model: Model, reference: Reference, config: Config) -> dict[str, Any]:
    """The card; the INT8 graph is in the folder if the card says that it is served."""
    texts = {"pool": reference.pool, "held out": reference.held_out, "English": reference.english}
    tokens = {name: _tokens(pairs, model) for name, pairs in texts.items() if pairs}

    def answers(graph: str) -> dict[str, Logits]:
        return {name: _onnx_logits(folder / graph, some, config.evaluate.batch_tokens).numpy() for name, some in tokens.items()}

    found = answers(_GRAPH)
    verdict = Verdict("fp32", _untried(reference, config), config.export.max_drop)
    if not verdict.reason:
        some = torch.arange(min(config.export.calibration, len(tokens["pool"])))
        rows = [tokens["pool"].batch(index)[0][0].tolist() for index in some[:, None]]
        quantize_graph(folder / _GRAPH, folder / _INT8, rows)
        smaller = answers(_INT8)
        name, labels = "English", reference.english_labels
        if reference.held_out_labels is not None:
            name, labels = "held out", reference.held_out_labels
        labelled = Labelled(f"{name} pairs", found[name], smaller[name], labels)
        verdict = judge(found["pool"], smaller["pool"], labelled, config.export)
        if verdict.served == "int8":
            found = smaller
        else:
            (folder / _INT8).unlink()
    target = found.get("held out", found["pool"])
    english = (found["English"], reference.english_labels) if reference.english else None
    temperature = temperature_card(target, reference.held_out_labels, english, config.evaluate)
    return {
        "temperature": temperature,
        "precision": verdict.to_dict(),
        "reference": reference_card(target, temperature["value"]),
        "evaluation": evaluation_card(reference.evaluation),
    }


def _untried(reference: Reference, config: Config) -> str:
    """Why INT8 is not even tried, empty if it is."""
    if not config.export.int8:
        return "export.int8 is false"
    return "" if reference.english else "there were no labelled pairs that could show what int8 costs"


def _tokens(pairs: Pairs, model: Model) -> TokenizedPairs:
    premises, hypotheses = zip(*pairs, strict=True)
    return model.tokenize(premises, hypotheses)


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
    normalised = {node.input[0] for node in graph.graph.node if node.op_type == "LayerNormalization"}
    for node in graph.graph.node:
        if node.op_type == "Add" and normalised.intersection(node.output):
            # onnxruntime would make one operator of this and the normalisation, which takes twice as long as the two
            node.op_type = "Sum"
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
