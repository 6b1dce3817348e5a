"""Evaluation: what a model knows of a language, against labels that no training has seen."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from conlst.contract.artifacts import publish, read_manifest, verify
from conlst.contract.config import Config
from conlst.contract.errors import DataError
from conlst.contract.predictions import read_predictions, write_predictions
from conlst.reports import Protocol, figures
from conlst.reports.metrics import compare, evaluate_probabilities
from conlst.reports.page import evaluation_markdown, evaluation_page

KIND = "evaluation"
SOURCE_LANGUAGE = "en"
_HEADLINE = ("language", "protocol", "n", "accuracy", "macro_f1", "ece")


def protocol_of(texts: Tensor, seen: dict[str, Tensor], language: str, adapted_to: Collection[str], where: str) -> Protocol:
    """Name the protocol of an evaluation by what the model has been trained on.

    Args:
        texts: ``[n]`` int64 hashes of the evaluated texts.
        seen: the model's ``source`` and ``pool`` hashes.
        language: of the texts.
        adapted_to: languages whose pools the model was adapted on; none for a source model.

    Raises:
        DataError: if a text was trained on with its label.
    """
    tested = set(texts.tolist())
    if leaked := tested & set(seen["source"].tolist() if "source" in seen else ()):
        raise DataError(
            f"{len(leaked)} of {len(tested)} pairs of {where} were trained on with labels; take them out of the source"
        )
    if "pool" in seen and tested & set(seen["pool"].tolist()):
        return "transductive"
    if language == SOURCE_LANGUAGE:
        return "supervised"
    return "inductive" if language in adapted_to else "zero-shot"


def publish_evaluation(
    folder: Path,
    logits: Tensor,
    labels: Tensor,
    *,
    language: str,
    protocol: Protocol,
    config: Config,
    parents: dict[str, str],
    fingerprint: str,
    records: NDArray[np.int64],
    before: Path | None = None,
    trace: list[tuple[int, float]] | None = None,
) -> dict[str, Any]:
    """Measure, draw and publish.

    Args:
        logits: ``[n, 3]`` of the model.
        labels: ``[n]``, the truth.
        parents: digests of ``model`` and ``pairs``.
        fingerprint: of the pairs' content.
        records: ``[n]`` hashes of the pairs.
        before: the evaluation of an earlier model on the same pairs in any order, to compare with (paper, figures 3 and 4,
            table 4).
        trace: accuracy at steps of stage 1 (figure 5).

    Returns:
        The content of ``evaluation.json``: the measures of :func:`evaluate_probabilities` and, with ``before``, a
        ``comparison``.

    Raises:
        ArtifactError: if ``before`` cannot be read, or was published by a conlst that did not keep ``records``.
        DataError: if ``before`` is of other pairs.
    """
    probabilities = logits.double().softmax(1).numpy()
    truth = labels.numpy()
    evaluation: dict[str, Any] = {
        "language": language,
        "protocol": protocol,
        **evaluate_probabilities(probabilities, truth, config.evaluate),
    }
    if before is not None:
        old = _earlier(before, fingerprint, records)
        evaluation["comparison"] = compare(old, probabilities, truth, config.evaluate)
    meta = {key: evaluation[key] for key in _HEADLINE} | {"fingerprint": fingerprint}
    with publish(folder, kind=KIND, config=config.to_dict(), parents=parents, meta=meta) as staging:
        (staging / "evaluation.json").write_text(json.dumps(evaluation, indent=1, sort_keys=True))
        write_predictions(staging, logits.float().numpy(), truth, records)
        drawn = _draw(evaluation, trace, len(truth), staging / "figures")
        title = f"{language}, {protocol}"
        comparison = evaluation.get("comparison")
        (staging / "page.html").write_text(evaluation_page(title, evaluation, comparison, drawn), encoding="utf-8")
        (staging / "table.md").write_text(evaluation_markdown(title, evaluation, comparison), encoding="utf-8")
    return evaluation


def read_evaluation(folder: Path) -> dict[str, Any]:
    """The measures of a published evaluation."""
    verify(folder, KIND)
    return json.loads((folder / "evaluation.json").read_text())


def _earlier(folder: Path, fingerprint: str, records: NDArray[np.int64]) -> NDArray[np.float64]:
    """Probabilities of an earlier evaluation, its rows in the order of ``records``."""
    if read_manifest(folder, KIND).meta["fingerprint"] != fingerprint:
        raise DataError(f"{folder} evaluates other pairs; compare evaluations of the same data only")
    sorted_logits = read_predictions(folder)["logits"].astype(np.float64)
    logits = np.empty_like(sorted_logits)
    logits[np.argsort(records, kind="stable")] = sorted_logits
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def _draw(evaluation: dict[str, Any], trace: list[tuple[int, float]] | None, n: int, folder: Path) -> list[Path]:
    folder.mkdir()
    names: dict[str, Any] = {"language": evaluation["language"], "protocol": evaluation["protocol"]}
    drawn = [
        figures.reliability_diagram(evaluation, folder / "reliability.svg", **names),
        figures.confusion_matrix(evaluation, folder / "confusion.svg", **names),
    ]
    if comparison := evaluation.get("comparison"):
        drawn += [
            figures.noise_histograms(comparison, folder / "noise.svg", **names),
            figures.accuracy_by_band(comparison, folder / "bands.svg", **names),
            figures.equal_coverage_curves(comparison, folder / "coverage.svg", **names),
        ]
    if trace:
        drawn.append(figures.accuracy_along_training(trace, folder / "training.svg", n=n, **names))
    return drawn
