"""Classification by candidate labels with an NLI model (Yin et al., "Benchmarking zero-shot text classification", 2019).

The numbers are those of Hugging Face's zero-shot-classification pipeline on the same model: raw logits, no temperature.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from conlst.contract.labels import Label

TEMPLATE = "This example is {}."


def hypotheses(template: str, labels: Sequence[str]) -> list[str]:
    """A hypothesis for each label.

    Not by ``str.format``, which would let a template read the attributes of a string.

    Raises:
        ValueError: unless the template has ``{}`` once and no other brace.
    """
    before, place, after = template.partition("{}")
    if not place or set("{}") & {*before, *after}:
        raise ValueError("the template needs {} once, where the label goes, and no other brace")
    return [before + label + after for label in labels]


def scores(logits: NDArray[np.float32], multi_label: bool) -> NDArray[np.float64]:
    """``[texts, labels]`` from ``[texts, labels, 3]``.

    One label of several: the entailment logits of a text compete. Any number of labels, or only one to choose from: for each
    label, entailment competes with contradiction.
    """
    exact = logits.astype(np.float64)
    if multi_label or exact.shape[1] == 1:
        return _softmax(exact[..., [Label.CONTRADICTION, Label.ENTAILMENT]])[..., 1]
    return _softmax(exact[..., Label.ENTAILMENT])


def ranked(labels: Sequence[str], row: NDArray[np.float64]) -> tuple[list[str], list[float]]:
    """Labels and scores by falling score; of equal ones the later label comes first, as in the pipeline."""
    order = row.argsort(kind="stable")[::-1]
    return [labels[index] for index in order], row[order].tolist()


def _softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(values - values.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
