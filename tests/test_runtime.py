import json
import math
from pathlib import Path

import numpy as np
import pytest
from onnxruntime import get_available_providers

from conlst.contract.artifacts import MANIFEST, read_manifest
from conlst.contract.errors import ArtifactError, BackendError, DataError, LabelError
from conlst.runtime import onnx as runtime
from conlst.runtime.cpu import available_cpus
from conlst.runtime.onnx import Predictor
from tiny_onnx import PAIRS, slow_logits, tiny_onnx_folder, tiny_tokenizer

LONG = " ".join(["mvua"] * 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_onnx_folder(tmp_path_factory.mktemp("onnx") / "sw")


@pytest.fixture(scope="module")
def predictor(folder):
    return Predictor(folder, threads=1)


def test_logits_are_those_of_the_slow_reference(predictor):
    np.testing.assert_allclose(predictor.logits(PAIRS), slow_logits(PAIRS), atol=1e-6)


@pytest.mark.parametrize("batch_tokens", [1, 20, 27, 10_000])
def test_answers_stand_in_request_order_whatever_the_batches(predictor, batch_tokens):
    pairs = [PAIRS[i % 4] for i in (3, 0, 2, 1, 3, 3, 0, 2, 1)]
    np.testing.assert_allclose(predictor.logits(pairs, batch_tokens=batch_tokens), slow_logits(pairs), atol=1e-6)


def test_batches_keep_to_the_budget_and_lose_nothing():
    lengths = [9, 3, 3, 8, 3, 12, 1]
    batches = list(runtime._batches(lengths, 12))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 12 for batch in batches)
    assert len(batches) < len(lengths)
    assert list(runtime._batches([50, 40], 12)) == [[1], [0]]


def test_no_pairs_give_no_logits(predictor):
    assert predictor.logits([]).shape == (0, 3)
    assert predictor.probabilities(predictor.logits([])).shape == (0, 3)


def test_a_long_pair_is_refused_by_index_unless_truncation_is_asked_for(predictor):
    pairs = [PAIRS[0], ("mvua", LONG)]
    with pytest.raises(DataError, match="pair 1 has 45 tokens, the model reads 16"):
        predictor.logits(pairs)
    np.testing.assert_allclose(predictor.logits(pairs, truncate=True), slow_logits(pairs), atol=1e-6)
    encoded = predictor.encode(pairs)
    assert encoded.lengths.tolist() == [len(tiny_tokenizer().encode(*PAIRS[0])), 45]
    assert len(encoded.ids[1]) == 16


def test_a_pair_of_exactly_the_models_length_is_not_cut(predictor):
    assert predictor.encode([("mvua", " ".join(["leo"] * 11))]).lengths.tolist() == [16]
    assert len(predictor.logits([("mvua", " ".join(["leo"] * 11))])) == 1


def test_probabilities_are_divided_by_the_temperature_and_survive_extreme_logits(tmp_path, predictor):
    warm = Predictor(tiny_onnx_folder(tmp_path / "warm", temperature=2.0), threads=1)
    expected = np.exp([1.0, 0.0, -1.0]) / np.exp([1.0, 0.0, -1.0]).sum()
    np.testing.assert_allclose(warm.probabilities(np.float32([[2.0, 0.0, -2.0]]))[0], expected)
    np.testing.assert_allclose(predictor.probabilities(np.float32([[1e4, -1e4, 0.0]]))[0], [1, 0, 0])


def test_golden_pairs_are_reproduced(predictor):
    predictor.check_golden()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"golden_offset": 0.01}, "answers golden pair 0 otherwise"),
        ({"golden_offset": math.nan}, "golden pair 0"),
        ({"golden": []}, "holds no pair"),
    ],
)
def test_other_answers_than_at_export_are_refused(tmp_path, change, message):
    with pytest.raises(ArtifactError, match=message):
        Predictor(tiny_onnx_folder(tmp_path / "x", **change), threads=1).check_golden()


@pytest.mark.parametrize("external", ["../../stolen.bin", "../embeddings.bin", "sub/../../embeddings.bin", "absolute"])
def test_external_data_outside_the_folder_is_refused(tmp_path, external):
    table = tiny_onnx_folder(tmp_path / "a" / "good") / "embeddings.bin"
    for place in (tmp_path / "stolen.bin", tmp_path / "a" / "embeddings.bin"):
        place.write_bytes(table.read_bytes())
    location = str(tmp_path / "stolen.bin") if external == "absolute" else external
    with pytest.raises(ArtifactError, match="onnxruntime refuses"):
        Predictor(tiny_onnx_folder(tmp_path / "a" / "bad", external=location), threads=1)


@pytest.mark.parametrize("name", ["model.onnx", "embeddings.bin", "tokenizer.json", "config.json", "golden.json"])
def test_a_changed_or_missing_file_is_refused(tmp_path, name):
    file = tiny_onnx_folder(tmp_path / "x") / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=name):
        Predictor(tmp_path / "x", threads=1)
    file.unlink()
    with pytest.raises(ArtifactError, match=name):
        Predictor(tmp_path / "x", threads=1)


def test_another_label_order_is_refused(tmp_path):
    swapped = {0: "contradiction", 1: "neutral", 2: "entailment"}
    with pytest.raises(LabelError, match="orders its labels"):
        Predictor(tiny_onnx_folder(tmp_path / "x", id2label=swapped), threads=1)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(tmp_path, temperature):
    with pytest.raises(ArtifactError, match="temperature"):
        Predictor(tiny_onnx_folder(tmp_path / "x", temperature=temperature), threads=1)


def test_a_folder_of_another_kind_is_refused(tmp_path, folder):
    raw = json.loads((folder / MANIFEST).read_text())
    copy = tmp_path / "x"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / MANIFEST).write_text(json.dumps({**raw, "kind": "model"}))
    with pytest.raises(ArtifactError, match="kind 'model'"):
        Predictor(copy, threads=1)


def test_a_provider_that_is_missing_or_silently_replaced_is_refused(folder, monkeypatch):
    with pytest.raises(BackendError, match="no CUDAExecutionProvider"):
        Predictor(folder, threads=1, provider="CUDAExecutionProvider")
    # a GPU build on a machine without the libraries: listed as available, then replaced by the CPU
    monkeypatch.setattr(runtime.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(
        runtime.onnxruntime,
        "InferenceSession",
        lambda *_, **__: type("S", (), {"get_providers": lambda _: ["CPUExecutionProvider"]})(),
    )
    with pytest.raises(BackendError, match="asked for CUDAExecutionProvider, onnxruntime started CPUExecutionProvider"):
        Predictor(folder, threads=1, provider="CUDAExecutionProvider")


def test_the_session_gets_the_asked_for_threads(folder):
    options = Predictor(folder, threads=3)._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert Predictor(folder)._session.get_session_options().intra_op_num_threads == available_cpus()
    assert "CPUExecutionProvider" in get_available_providers()


def test_a_predictor_knows_what_it_is(predictor, folder):
    assert (predictor.language, predictor.max_length, predictor.digest) == ("sw", 16, read_manifest(folder).digest)


def cgroup(root: Path, memberships: str, files: dict[str, str]) -> Path:
    for name, text in {
        "proc/self/cgroup": memberships,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("memberships", "files", "cpus"),
    [
        ("0::/", {"cpu.max": "max 100000\n"}, 8),
        ("0::/", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/", {"cpu.max": "1600000 100000\n"}, 8),
        ("0::/pods/one", {"pods/cpu.max": "300000 100000\n", "pods/one/cpu.max": "max 100000\n"}, 3),
        ("0::/not/visible/here", {"cpu.max": "200000 100000\n"}, 2),
        (
            "4:cpu,cpuacct:/a\n1:name=systemd:/a",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "400000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            4,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("3:cpuset:/", {}, 8),
    ],
)
def test_cpus_are_what_affinity_and_quota_leave(tmp_path, monkeypatch, memberships, files, cpus):
    monkeypatch.setattr("conlst.runtime.cpu.os.sched_getaffinity", lambda _: set(range(8)))
    assert available_cpus(cgroup(tmp_path, memberships, files)) == cpus


def test_affinity_binds_without_a_quota(tmp_path, monkeypatch):
    monkeypatch.setattr("conlst.runtime.cpu.os.sched_getaffinity", lambda _: {0, 5})
    assert available_cpus(tmp_path) == 2
