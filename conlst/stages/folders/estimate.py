"""What can be known of a model in a language without labels, as an artifact that the gate reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from conlst.contract.artifacts import publish, read_manifest
from conlst.contract.config import Config
from conlst.data.pairs import fingerprint, read_pairs, require_labels
from conlst.model.folder import Model, load_model
from conlst.reports.estimate import agreement, average_thresholded_confidence, label_shares
from conlst.reports.page import estimate_markdown, estimate_page
from conlst.stages.folders.pairs import labels_of, tokens_of
from conlst.stages.predict import predict_logits
from conlst.training import set_up_compute, step_generator

KIND = "estimate"


def estimate_model(config: Config, model: Path, pairs: Path, english: Path, language: str, out: Path) -> dict[str, Any]:
    """Publish and return what unlabelled pairs and labelled English pairs tell of ``model``; labels of ``pairs`` are not read.

    Args:
        pairs: of the language; nothing is decided by their labels.
        english: labelled English pairs that no stage trained on.

    Returns:
        ``estimated_accuracy`` (average thresholded confidence), ``english_accuracy``, ``label_shares`` and the least of them,
        ``view_agreement`` of two dropout views, ``unlabelled_n``.
    """
    loaded = load_model(model)
    target, known = read_pairs(pairs), read_pairs(english)
    require_labels(known, str(english))
    labels = labels_of(known).numpy()
    predicted, on_english = _probabilities(loaded, target, config), _probabilities(loaded, known, config)
    shares = label_shares(predicted)
    estimate = {
        "language": language,
        "unlabelled_n": len(target),
        "english_n": len(known),
        "estimated_accuracy": average_thresholded_confidence(on_english, labels, predicted),
        "english_accuracy": float((on_english.argmax(axis=1) == labels).mean()),
        "label_shares": shares,
        "least_label_share": min(shares.values()),
        "view_agreement": agreement(_probabilities(loaded, target, config, 1), _probabilities(loaded, target, config, 2)),
    }
    meta = {name: value for name, value in estimate.items() if not isinstance(value, dict)} | {"fingerprint": fingerprint(target)}
    parents = {"model": loaded.digest, "pairs": read_manifest(pairs).digest, "english": read_manifest(english).digest}
    with publish(out, kind=KIND, config=config.to_dict(), parents=parents, meta=meta) as staging:
        (staging / "estimate.json").write_text(json.dumps(estimate, indent=1, sort_keys=True))
        (staging / "page.html").write_text(estimate_page(estimate), encoding="utf-8")
        (staging / "table.md").write_text(estimate_markdown(estimate), encoding="utf-8")
    return estimate


def _probabilities(model: Model, pairs: Dataset, config: Config, view: int = 0) -> NDArray[np.float64]:
    """``[n, 3]`` float64; ``view`` 1 and 2 have dropout on, each with its own draws."""
    # in float32, as the exported model answers
    compute = config.compute.model_copy(update={"precision": "fp32"})
    classifier = model.classifier.move_to(set_up_compute(compute))
    step_generator(config.seed, "estimate", view)
    logits = predict_logits(classifier, tokens_of(pairs, model), compute, config.evaluate.batch_tokens, dropout=view > 0)
    return np.asarray(logits.double().softmax(1).numpy())
