"""Evaluation, export and prediction of published models."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from conlst.contract.artifacts import read_manifest
from conlst.contract.config import Compute, Config
from conlst.contract.errors import DataError
from conlst.data.pairs import SEVERAL, fingerprint, read_pairs, record_hashes, require_labels
from conlst.model.folder import Model, load_model
from conlst.stages.evaluate import KIND as EVALUATION
from conlst.stages.evaluate import protocol_of, publish_evaluation, read_evaluation
from conlst.stages.export import Reference, export_onnx
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
        records=record_hashes(tested),
        before=before,
        # the pool of several languages says nothing of one
        trace=_trace(model) if adapted_to == [language] else None,
    )


def export_model(
    config: Config,
    model: Path,
    pairs: Path,
    out: Path,
    *,
    development: Path | None = None,
    test: Path | None = None,
    evaluation: Path | None = None,
    language: str | None = None,
) -> float:
    """Publish the ONNX folder of ``model``.

    Args:
        pairs: of its language, without regard to labels; ONNX must answer the first 200 as torch does. Of a pool of several
            languages those of ``language`` are taken.
        development: labelled English pairs that no stage trained on. Without them float32 is served, at temperature 1.
        test: pairs of the language that it was not adapted on; their labels are read only beside an ``evaluation`` by labels.
        evaluation: what was measured of the model, an ``evaluation`` or an ``estimate``, for the card.
        language: to serve it for, if it was adapted to several.

    Returns:
        The largest difference of logits from torch.

    Raises:
        DataError: if the evaluation is of another model.
    """
    pool = read_pairs(pairs)
    if read_manifest(pairs).meta["language"] == SEVERAL:
        pool = pool.select([number for number, spoken in enumerate(pool["language"]) if spoken == language])
    reference = Reference(_texts(_some(pool, config)), [], None, [], np.empty(0, np.int64))
    if development is not None:
        english = _some(read_pairs(development), config)
        require_labels(english, str(development))
        reference = replace(reference, english=_texts(english), english_labels=labels_of(english).numpy())
    by_labels = evaluation is not None and _evaluates(evaluation, model)
    if evaluation is not None and by_labels:
        reference = replace(reference, evaluation=read_evaluation(evaluation))
    if test is not None:
        held_out = read_pairs(test)
        if by_labels:
            require_labels(held_out, str(test))
            reference = replace(reference, held_out=_texts(held_out), held_out_labels=labels_of(held_out).numpy())
        else:
            reference = replace(reference, held_out=_texts(_some(held_out, config)))
    return export_onnx(model, _texts(pool.take(200)), out, config, reference, language)


def _evaluates(evaluation: Path, model: Path) -> bool:
    """Whether labels of the language were read for it."""
    measured, digest = read_manifest(evaluation), read_manifest(model).digest
    if measured.parents.get("model") != digest:
        raise DataError(f"{evaluation} is not of {model}; evaluate the model that is exported")
    return measured.kind == EVALUATION


def _some(pairs: Dataset, config: Config) -> Dataset:
    """A random draw, if there are more than an export compares on."""
    if len(pairs) <= config.export.pairs:
        return pairs
    chosen = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(config.seed))[: config.export.pairs]
    return pairs.select(sorted(chosen.tolist()))


def _texts(pairs: Dataset) -> list[tuple[str, str]]:
    return list(zip(pairs["premise"], pairs["hypothesis"], strict=True))


def predict_pairs(model: Path, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
    """Class probabilities of premise and hypothesis, by a trained model, in float32."""
    loaded = load_model(model)
    premises, hypotheses = zip(*pairs, strict=True)
    tokens = loaded.tokenize(premises, hypotheses)
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
