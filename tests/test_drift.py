import json
import math
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from conlst.contract.artifacts import publish
from serving.drift import LEAST_PAIRS, WINDOW, Drift, stability_index
from serving.models import Catalogue, Source
from serving.settings import Settings
from tiny_onnx import tiny_onnx_folder

REFERENCE = {
    "pairs": 1000,
    "confidence": [0, 0, 0, 50, 100, 150, 150, 150, 200, 200],
    "labels": {"entailment": 0.3, "neutral": 0.3, "contradiction": 0.4},
}


def with_card(folder: Path, path: Path, card: dict) -> Path:
    """The same model with a card."""
    with publish(path, kind="onnx", meta={"language": "sw"}) as staging:
        for file in folder.iterdir():
            if file.name != "manifest.json":
                shutil.copy(file, staging)
        (staging / "card.json").write_text(json.dumps(card))
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tiny_onnx_folder(tmp_path_factory.mktemp("served") / "sw")


@pytest.fixture(scope="module")
def described(plain):
    return with_card(plain, plain.parent / "described", {"reference": REFERENCE})


def catalogue_of(folder: Path) -> Catalogue:
    catalogue = Catalogue(Settings(models=f"sw={folder}", threads=1))
    catalogue.load()
    assert catalogue.problem is None
    return catalogue


def observe(drift: Drift, probabilities: np.ndarray) -> None:
    """As answered by the model that is served."""
    drift.observe(drift._catalogue.model_for("sw"), probabilities)


def answers(confidence: float, label: int, n: int) -> np.ndarray:
    probabilities = np.full((n, 3), (1 - confidence) / 2)
    probabilities[:, label] = confidence
    return probabilities


def like(reference: dict) -> np.ndarray:
    """Answers whose histogram and labels are the reference's."""
    confidence = np.repeat(np.arange(10) / 10 + 0.05, reference["confidence"])
    labels = np.repeat(np.arange(3), [round(share * reference["pairs"]) for share in reference["labels"].values()])
    probabilities = ((1 - confidence) / 2)[:, None].repeat(3, axis=1)
    probabilities[np.arange(len(labels)), labels] = confidence
    return probabilities


def slow_index(expected: list[float], observed: list[float]) -> float:
    """Bin by bin: the sum of (o - e) ln(o / e), with half a pair more in every bin that one of them knows."""
    bins = [(e + 0.5, o + 0.5) for e, o in zip(expected, observed, strict=True) if e or o]
    of_e, of_o = (sum(column) for column in zip(*bins, strict=True))
    return sum((o / of_o - e / of_e) * math.log((o / of_o) / (e / of_e)) for e, o in bins)


@pytest.mark.parametrize("observed", [[10, 20, 70, 0], [0, 0, 100, 0], [70, 20, 10, 5], [1, 2, 7, 0]])
def test_the_index_is_its_formula(observed):
    expected = [10, 20, 70, 0]
    found = stability_index(np.array(expected), np.array(observed))
    assert found == pytest.approx(slow_index(expected, observed), abs=1e-12)
    assert found == pytest.approx(stability_index(np.array(observed), np.array(expected)), abs=1e-12)
    assert math.isfinite(found)


def test_the_index_of_a_known_case():
    # 10,000 pairs make the half a pair small: (0.6 - 0.5) ln(0.6 / 0.5) + (0.4 - 0.5) ln(0.4 / 0.5) = 0.0405
    assert stability_index(np.array([5000, 5000]), np.array([6000, 4000])) == pytest.approx(0.0405, abs=1e-4)
    assert stability_index(np.array([5000, 5000]), np.array([500, 500])) == pytest.approx(0, abs=1e-12)


def test_answers_like_the_evaluations_show_no_drift(described):
    drift = Drift(catalogue_of(described))
    observe(drift, like(REFERENCE))
    told = drift.report()["languages"]["sw"]
    assert told["pairs"] == 1000
    assert told["reference"] == {
        "confidence": [0, 0, 0, 0.05, 0.1, 0.15, 0.15, 0.15, 0.2, 0.2],
        "labels": {"entailment": 0.3, "neutral": 0.3, "contradiction": 0.4},
    }
    assert told["served"] == told["reference"]
    assert told["psi"] == {"confidence": pytest.approx(0, abs=1e-9), "labels": pytest.approx(0, abs=1e-9)}


def test_other_answers_show_it(described):
    drift = Drift(catalogue_of(described))
    observe(drift, answers(0.35, 1, 500))
    told = drift.report()["languages"]["sw"]
    assert told["served"]["confidence"] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert told["served"]["labels"] == {"entailment": 0, "neutral": 1, "contradiction": 0}
    seen = [0, 0, 0, 500, 0, 0, 0, 0, 0, 0]
    assert told["psi"]["confidence"] == pytest.approx(slow_index(REFERENCE["confidence"], seen))
    assert told["psi"]["labels"] == pytest.approx(slow_index([300, 300, 400], [0, 500, 0]))
    assert min(told["psi"].values()) > 0.25


def test_the_largest_probability_falls_in_a_tenth(described):
    drift = Drift(catalogue_of(described))
    for confidence in (0.34, 0.45, 0.95, 1.0):
        observe(drift, answers(confidence, 0, 1))
    told = drift.report()["languages"]["sw"]
    assert (np.array(told["served"]["confidence"]) * 4).tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 2]


def test_few_pairs_give_no_index(described):
    drift = Drift(catalogue_of(described))
    observe(drift, answers(0.9, 0, LEAST_PAIRS - 1))
    assert drift.report()["languages"]["sw"]["psi"] is None
    observe(drift, answers(0.9, 0, 1))
    assert drift.report()["languages"]["sw"]["psi"] is not None


def test_no_answers_in_the_models_own_language_change_nothing(described):
    drift = Drift(catalogue_of(described))
    observe(drift, answers(0.9, 0, 5))
    before = drift.report()
    observe(drift, answers(0.9, 0, 0))
    assert drift.report() == before


def test_before_the_first_answer_there_is_nothing_to_tell(described):
    told = Drift(catalogue_of(described)).report()["languages"]["sw"]
    assert (told["pairs"], told["served"], told["psi"]) == (0, None, None)
    assert told["reference"] is not None
    assert told["since"].endswith("+00:00")


def test_a_model_without_a_reference_is_counted_all_the_same(plain):
    drift = Drift(catalogue_of(plain))
    observe(drift, answers(0.9, 0, LEAST_PAIRS))
    told = drift.report()["languages"]["sw"]
    assert (told["pairs"], told["reference"], told["psi"]) == (LEAST_PAIRS, None, None)
    assert told["served"]["labels"]["entailment"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"pairs": 0, "confidence": [0] * 10},
        {"pairs": 999},
        {"confidence": [500, 500]},
        {"confidence": [1100, -100, 0, 0, 0, 0, 0, 0, 0, 0]},
        {"labels": {"entailment": 1.0}},
        {"labels": {"entailment": 0.9, "neutral": 0.9, "contradiction": 0.9}},
        {"labels": {"entailment": float("nan"), "neutral": 0.5, "contradiction": 0.5}},
        {"confidence": "many"},
    ],
)
def test_a_reference_that_cannot_be_read_is_told_and_left_out(plain, tmp_path, caplog, change):
    folder = with_card(plain, tmp_path / "sw", {"reference": REFERENCE | change})
    told = Drift(catalogue_of(folder)).report()["languages"]["sw"]
    assert told["reference"] is None
    assert "nli-sw has no usable reference" in caplog.text


def test_old_answers_are_forgotten(described):
    drift = Drift(catalogue_of(described))
    observe(drift, answers(0.35, 1, WINDOW))
    first = drift.report()["languages"]["sw"]["since"]
    observe(drift, answers(0.95, 0, WINDOW))
    both = drift.report()["languages"]["sw"]
    assert (both["pairs"], both["served"]["labels"]["neutral"], both["since"]) == (2 * WINDOW, 0.5, first)
    observe(drift, answers(0.95, 0, 1))
    later = drift.report()["languages"]["sw"]
    assert (later["pairs"], later["served"]["labels"]["neutral"]) == (WINDOW + 1, 0)


def test_it_starts_anew_when_the_model_is_swapped(described, tmp_path):
    catalogue = catalogue_of(described)
    drift = Drift(catalogue)
    observe(drift, answers(0.9, 0, 300))
    served = catalogue.model_for("sw")
    other = tiny_onnx_folder(tmp_path / "other", seed=1)
    catalogue.swap("sw", catalogue.open(Source("sw", "nli-sw", 2, str(other))))
    told = drift.report()["languages"]["sw"]
    assert (told["pairs"], told["reference"]) == (0, None)
    observe(drift, answers(0.9, 0, 5))
    assert drift.report()["languages"]["sw"]["pairs"] == 5
    # as after a rollback
    catalogue.swap("sw", served)
    assert drift.report()["languages"]["sw"]["pairs"] == 0


def test_answers_of_a_model_that_was_swapped_meanwhile_are_not_its_successors(described, tmp_path):
    catalogue = catalogue_of(described)
    drift = Drift(catalogue)
    old = catalogue.model_for("sw")
    catalogue.swap("sw", catalogue.open(Source("sw", "nli-sw", 2, str(tiny_onnx_folder(tmp_path / "other", seed=1)))))
    observe(drift, answers(0.9, 0, 5))
    drift.observe(old, answers(0.9, 0, 300))
    assert drift.report()["languages"]["sw"]["pairs"] == 5
    # another version of the same bytes goes on
    drift.observe(replace(catalogue.model_for("sw"), source=Source("sw", "nli-sw", 3, "elsewhere")), answers(0.9, 0, 2))
    assert drift.report()["languages"]["sw"]["pairs"] == 7


def test_prometheus_sees_it(described):
    catalogue = catalogue_of(described)
    drift = Drift(catalogue)
    exposed = CollectorRegistry()
    exposed.register(drift)
    assert 'conlst_drift_pairs{language="sw"} 0.0' in generate_latest(exposed).decode()
    assert "conlst_drift_psi{" not in generate_latest(exposed).decode()
    observe(drift, answers(0.35, 1, 500))
    psi = drift.report()["languages"]["sw"]["psi"]
    assert exposed.get_sample_value("conlst_drift_pairs", {"language": "sw"}) == 500
    for of in ("confidence", "labels"):
        assert exposed.get_sample_value("conlst_drift_psi", {"language": "sw", "of": of}) == psi[of]


def test_prometheus_sees_the_shares_of_both(described):
    drift = Drift(catalogue_of(described))
    exposed = CollectorRegistry()
    exposed.register(drift)
    assert {key["of"] for key, _ in shares(drift, "conlst_drift_label_share")} == {"reference"}
    observe(drift, answers(0.35, 1, 500))
    served, reference = (drift.report()["languages"]["sw"][of] for of in ("served", "reference"))
    bins = ["0-0.1", "0.1-0.2", "0.2-0.3", "0.3-0.4", "0.4-0.5", "0.5-0.6", "0.6-0.7", "0.7-0.8", "0.8-0.9", "0.9-1"]
    for of, told in (("served", served), ("reference", reference)):
        for place, name in enumerate(bins):
            found = exposed.get_sample_value("conlst_drift_confidence_share", {"language": "sw", "bin": name, "of": of})
            assert found == told["confidence"][place]
        for label, share in told["labels"].items():
            assert exposed.get_sample_value("conlst_drift_label_share", {"language": "sw", "label": label, "of": of}) == share
    assert len(shares(drift, "conlst_drift_confidence_share")) == 20


def test_prometheus_sees_no_reference_where_there_is_none(plain):
    drift = Drift(catalogue_of(plain))
    assert shares(drift, "conlst_drift_confidence_share") == shares(drift, "conlst_drift_label_share") == []
    observe(drift, answers(0.9, 0, 1))
    assert {key["of"] for key, _ in shares(drift, "conlst_drift_confidence_share")} == {"served"}


def shares(drift: Drift, name: str) -> list[tuple[dict[str, str], float]]:
    (metric,) = (metric for metric in drift.collect() if metric.name == name)
    return [(sample.labels, sample.value) for sample in metric.samples]


def test_a_server_that_is_not_ready_has_nothing_to_tell():
    drift = Drift(Catalogue(Settings()))
    assert drift.report() == {"languages": {}}
    assert [metric.samples for metric in drift.collect()] == [[], [], [], []]


def test_no_answer_is_lost_between_threads(described):
    drift = Drift(catalogue_of(described))
    start = threading.Barrier(8)

    def ask(label: int) -> None:
        start.wait()
        for _ in range(100):
            observe(drift, answers(0.9, label, 2))
            drift.report()

    threads = [threading.Thread(target=ask, args=(number % 3,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = drift.report()["languages"]["sw"]
    assert told["pairs"] == 1600
    assert told["served"]["labels"] == {"entailment": 0.375, "neutral": 0.375, "contradiction": 0.25}


def test_the_report_is_json(described):
    drift = Drift(catalogue_of(described))
    observe(drift, answers(0.9, 0, 500).astype(np.float32))
    assert json.loads(json.dumps(drift.report(), allow_nan=False)) == drift.report()
