"""Evaluation, export and prediction of published models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from conlst.contract.artifacts import read_manifest
from conlst.contract.config import Compute, Config
from conlst.contract.errors import DataError
from conlst.data.pairs import fingerprint, read_pairs, require_labels
from conlst.data.tokens import tokenize
from conlst.model.folder import Model, load_model
from conlst.stages.evaluate import protocol_of, publish_evaluation
from conlst.stages.export import export_onnx
from conlst.stages.folders.pairs import hashes_of, labels_of, read_history, tokens_of
from conlst.stages.predict import predict_logits
from conlst.training import set_up_compute


def evaluate_model(
    config: Config, model: Path, pairs: Path, language: str, out: Path, before: Path | None = None
) -> dict[str, Any]:
    """Publish and return the evaluation of ``model`` on labelled pairs, compared with an earlier one if there is one."""
    loaded = load_model(model)
    tested = read_pairs(pairs)
    require_labels(tested, str(pairs))
    adapted_to = read_manifest(model).meta.get("languages", [])
    protocol = protocol_of(hashes_of(tested), loaded.seen, language, adapted_to, str(pairs))
    # in float32, as the exported model answers
    compute = config.compute.model_copy(update={"precision": "fp32"})
    classifier = loaded.classifier.move_to(set_up_compute(compute))
    logits = predict_logits(classifier, tokens_of(tested, loaded), compute, config.evaluate.batch_tokens)
    parents = {"model": loaded.digest, "pairs": read_manifest(pairs).digest}
    return publish_evaluation(
        out,
        logits,
        labels_of(tested),
        language=language,
        protocol=protocol,
        config=config,
        parents=parents,
        fingerprint=fingerprint(tested),
        before=before,
        trace=_trace(model),
    )


def export_model(config: Config, model: Path, pairs: Path, out: Path) -> float:
    """Publish the ONNX folder of ``model``; returns the largest difference of logits on at most 200 of the pairs."""
    some = read_pairs(pairs).take(200)
    return export_onnx(model, list(zip(some["premise"], some["hypothesis"], strict=True)), out, config)


def predict_pairs(model: Path, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
    """Class probabilities of premise and hypothesis, by a trained model, in float32."""
    loaded = load_model(model)
    premises, hypotheses = zip(*pairs, strict=True)
    tokens = tokenize(premises, hypotheses, loaded.tokenizer, max_length=loaded.text.max_length, pad_id=loaded.text.pad_id)
    if tokens.truncated:
        raise DataError(f"the pair is longer than the {loaded.text.max_length} tokens that the model reads; shorten it")
    return predict_logits(loaded.classifier, tokens, Compute(precision="fp32"), 8192).softmax(1).tolist()


def accuracy(model: Model, pairs: Dataset, config: Config) -> float:
    """Share of the labelled pairs that the model classifies as their labels say, in the precision that it trains in."""
    logits = predict_logits(model.classifier, tokens_of(pairs, model), config.compute, config.evaluate.batch_tokens)
    return (logits.argmax(1) == labels_of(pairs)).float().mean().item()


def _trace(model: Path) -> list[tuple[int, float]] | None:
    trace = read_history(model).get("calibrate", {}).get("trace", [])
    return [(step, value) for step, value in trace] or None
