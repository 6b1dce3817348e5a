"""Is what is asked now like what the model was evaluated on? Confidence and labels of the answers against the card's reference.

No label is needed for it and no text is looked at. A difference does not say that the model became worse, but that its evaluation
tells less about it.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from conlst.contract.labels import NAMES
from serving.models import Catalogue, Served

log = logging.getLogger(__name__)

BINS = 10
# an answer is forgotten after one to two windows: months of good ones must not hide what came today
WINDOW = 10_000
# of fewer pairs the index is mostly chance: between n and m pairs of one distribution over k bins it is (k - 1) (1/n + 1/m) on
# average (Yurdakul and Naranjo, "Statistical properties of the population stability index", 2020)
LEAST_PAIRS = 200

# counts; a card tells its labels as shares, so its counts may be broken
Histogram = NDArray[np.int64] | NDArray[np.float64]


@dataclass
class _Counts:
    """Pairs by largest probability ``[10]`` and by label ``[3]``."""

    confidence: Histogram
    labels: Histogram

    @property
    def pairs(self) -> int:
        return int(self.confidence.sum())

    def __add__(self, other: "_Counts") -> "_Counts":
        return _Counts(self.confidence + other.confidence, self.labels + other.labels)

    def shares(self) -> dict[str, Any] | None:
        if not self.pairs:
            return None
        labels = (self.labels / self.pairs).tolist()
        return {"confidence": (self.confidence / self.pairs).tolist(), "labels": dict(zip(NAMES, labels, strict=True))}


def _no_counts() -> _Counts:
    return _Counts(np.zeros(BINS, np.int64), np.zeros(len(NAMES), np.int64))


@dataclass
class _Watched:
    """What one model answered: in the present window and in the one before."""

    digest: str
    reference: _Counts | None
    since: datetime
    before_since: datetime | None = None
    now: _Counts = field(default_factory=_no_counts)
    before: _Counts = field(default_factory=_no_counts)

    def add(self, counts: _Counts) -> None:
        if self.now.pairs >= WINDOW:
            self.before, self.before_since = self.now, self.since
            self.now, self.since = _no_counts(), datetime.now(UTC)
        self.now += counts


class Drift(Collector):
    """Counts answers by language, and starts anew when the model of a language is swapped. Also a collector for Prometheus."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._watched: dict[str, _Watched] = {}
        self._lock = Lock()

    def observe(self, served: Served, probabilities: NDArray[np.floating[Any]]) -> None:
        """Count a model's answers ``[n, 3]``, n from 0, unless another took its place while it answered. Takes microseconds.

        Those to texts in other languages, where it is the fallback, are no matter of its evaluation: leave them out.

        Raises:
            ApiError: if there is no model of its language.
        """
        largest = np.minimum((probabilities.max(axis=1) * BINS).astype(np.int64), BINS - 1)
        labels = np.bincount(probabilities.argmax(axis=1), minlength=len(NAMES))
        counts = _Counts(np.bincount(largest, minlength=BINS), labels)
        with self._lock:
            now = self._catalogue.model_for(served.source.language)
            if now.predictor.digest == served.predictor.digest:
                self._of(now).add(counts)

    def report(self) -> dict[str, Any]:
        """By language: pairs counted, since when, shares of the evaluation and of these pairs, and how far apart they are."""
        return {"languages": {language: _told(watched) for language, watched in self._all().items()}}

    def collect(self) -> Iterable[GaugeMetricFamily]:
        pairs = GaugeMetricFamily("conlst_drift_pairs", "Pairs that the drift is measured on", labels=["language"])
        index = GaugeMetricFamily(
            "conlst_drift_psi", "Population stability index against the evaluation", labels=["language", "of"]
        )
        confidence = GaugeMetricFamily(
            "conlst_drift_confidence_share",
            "Pairs by the bin of their largest probability, of those served and of the evaluation (reference)",
            labels=["language", "bin", "of"],
        )
        labels = GaugeMetricFamily(
            "conlst_drift_label_share",
            "Pairs by label, of those served and of the evaluation (reference)",
            labels=["language", "label", "of"],
        )
        for language, watched in self._all().items():
            told = _told(watched)
            pairs.add_metric([language], told["pairs"])
            for of, value in (told["psi"] or {}).items():
                index.add_metric([language, of], value)
            for of in ("served", "reference"):
                # what there is none of has no shares
                shares = told[of] or {"confidence": [], "labels": {}}
                for place, share in enumerate(shares["confidence"]):
                    confidence.add_metric([language, f"{place / BINS:g}-{(place + 1) / BINS:g}", of], share)
                for label, share in shares["labels"].items():
                    labels.add_metric([language, label, of], share)
        return [pairs, index, confidence, labels]

    def _all(self) -> dict[str, _Watched]:
        # counts are replaced, never altered, so copies may share them
        with self._lock:
            return {served.source.language: replace(self._of(served)) for served in self._catalogue.all()}

    def _of(self, served: Served) -> _Watched:
        language, digest = served.source.language, served.predictor.digest
        known = self._watched.get(language)
        if known is None or known.digest != digest:
            known = self._watched[language] = _Watched(digest, _reference(served), datetime.now(UTC))
        return known


def stability_index(expected: Histogram, observed: Histogram) -> float:
    """Population stability index of two histograms given as counts: ``sum((o - e) * ln(o / e))`` over the shares of their bins.

    From Siddiqi, "Credit Risk Scorecards" (2006), whose rule of thumb calls less than 0.1 no change and more than 0.25 a large
    one; it is the symmetric divergence of Kullback and Leibler (1951). Half a pair is added to every bin (the prior of Jeffreys),
    because an empty one would make it infinite. Bins that are empty in both tell nothing and are left out.
    """
    seen = (expected + observed) > 0
    e, o = expected[seen] + 0.5, observed[seen] + 0.5
    e, o = e / e.sum(), o / o.sum()
    return float(((o - e) * np.log(o / e)).sum())


def _told(watched: _Watched) -> dict[str, Any]:
    served = watched.before + watched.now
    reference, index = watched.reference, None
    if reference is not None and served.pairs >= LEAST_PAIRS:
        index = {
            "confidence": stability_index(reference.confidence, served.confidence),
            "labels": stability_index(reference.labels, served.labels),
        }
    return {
        "pairs": served.pairs,
        "since": (watched.before_since or watched.since).isoformat(timespec="seconds"),
        "reference": reference.shares() if reference is not None else None,
        "served": served.shares(),
        "psi": index,
    }


def _reference(served: Served) -> _Counts | None:
    """The card's, ``None`` if the model was exported without an evaluation."""
    card = served.predictor.card.get("reference")
    if card is None:
        return None
    try:
        pairs = int(card["pairs"])
        confidence = np.asarray(card["confidence"], np.int64)
        shares = np.asarray([card["labels"][name] for name in NAMES], np.float64)
        if confidence.shape != (BINS,) or confidence.min() < 0 or confidence.sum() != pairs or pairs == 0:
            raise ValueError(f"{BINS} counts of {pairs} pairs were expected")
        # the negation also catches NaN
        if not abs(shares.sum() - 1) < 0.01 or shares.min() < 0:
            raise ValueError("the shares of the labels do not sum to one")
    except (KeyError, TypeError, ValueError) as error:
        log.error("the card of %s has no usable reference, its drift is not measured: %r", served.source.name, error)
        return None
    return _Counts(confidence, shares * pairs)
