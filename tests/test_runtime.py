import gc
import json
import math
import os
import shutil
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime import get_available_providers

from conlst.contract.artifacts import MANIFEST, publish, read_manifest
from conlst.contract.errors import ArtifactError, BackendError, DataError, LabelError
from conlst.runtime import onnx as runtime
from conlst.runtime.cpu import available_cpus
from conlst.runtime.graph import ExternalTensor, external_tensors
from conlst.runtime.onnx import Predictor
from conlst.runtime.table import Table, Tables
from conlst.runtime.threads import keep_apart, step_back
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


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        # as onnxruntime says it, in errors that it also has for bad graphs
        RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Load model from model.onnx failed:std::bad_alloc"),
        RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for requested buffer of size 40000000000"),
    ],
)
def test_a_shortage_of_memory_is_no_fault_of_the_model(tmp_path, monkeypatch, error):
    def fail(*_how, **_options):
        raise error

    folder = tiny_onnx_folder(tmp_path / "x")
    predictor = Predictor(folder, threads=1)
    monkeypatch.setattr(predictor, "run", fail)
    with pytest.raises(BackendError, match="not enough memory to open"):
        predictor.check_golden()
    monkeypatch.setattr("conlst.runtime.onnx.onnxruntime.InferenceSession", fail)
    with pytest.raises(BackendError, match="not enough memory to open"):
        Predictor(folder, threads=1)


def test_a_shortage_of_threads_is_no_fault_of_the_model(tmp_path, monkeypatch):
    folder = tiny_onnx_folder(tmp_path / "x")

    def fail(*_: object) -> None:
        # as Python says it
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(BackendError, match="can't start new thread"):
            Predictor(folder, threads=2, helpers_back=1)
    np.testing.assert_allclose(Predictor(folder, threads=2, helpers_back=1).logits(PAIRS), slow_logits(PAIRS), atol=1e-5)


def test_what_else_breaks_while_golden_pairs_are_answered_is_told_as_it_is(tmp_path, monkeypatch):
    predictor = Predictor(tiny_onnx_folder(tmp_path / "x"), threads=1)
    monkeypatch.setattr(predictor, "run", lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        predictor.check_golden()


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


def niceness() -> dict[int, int]:
    """Of this process's threads, by their ids."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        # one may have left since it was listed
        with suppress(ProcessLookupError):
            found[int(task.name)] = os.getpriority(os.PRIO_PROCESS, int(task.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts niceness by thread")
@pytest.mark.parametrize("back", [0, 7])
def test_only_the_threads_that_help_a_run_step_back(folder, back):
    before = niceness()
    model = Predictor(folder, threads=3, helpers_back=back)
    # a run of three has the caller and two helpers; the thread that opened the session may take a moment to leave
    for _ in range(300):
        after = niceness()
        if len(new := after.keys() - before.keys()) == 2:
            break
        time.sleep(0.1)
    own = before[threading.get_native_id()]
    assert [after[thread] for thread in new] == [min(19, own + back)] * 2
    assert all(after[thread] == before[thread] for thread in before.keys() & after.keys())
    np.testing.assert_allclose(model.logits(PAIRS), slow_logits(PAIRS), atol=1e-5)


def test_a_thread_that_may_not_step_back_or_stay_is_told_of_and_runs_on(monkeypatch, caplog):
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "nice", refuse)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 2}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    step_back(5)
    keep_apart(1, 2)
    keep_apart(1, 3)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "Operation not permitted" in caplog.text


def test_a_predictor_knows_what_it_is(predictor, folder):
    assert (predictor.language, predictor.max_length, predictor.digest) == ("sw", 16, read_manifest(folder).digest)


def changed(folder: Path, target: Path, **files: object) -> Path:
    """A published copy with other files: a path is copied, bytes and JSON are written, None leaves the file out."""
    with publish(target, kind="onnx", meta=read_manifest(folder).meta) as staging:
        for name in read_manifest(folder).files:
            shutil.copyfile(folder / name, staging / name)
        for name, content in files.items():
            file = staging / name.replace("__", ".")
            if content is None:
                file.unlink()
            elif isinstance(content, Path):
                shutil.copyfile(content, file)
            else:
                file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return target


def settings_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_settings_are_the_folders(tmp_path, predictor, folder):
    assert (predictor.temperature, predictor.precision, predictor.card, predictor.pad_id) == (1.0, "fp32", {}, 1)
    card = {"precision": {"served": "fp32", "reason": "kept"}}
    warm = Predictor(changed(folder, tmp_path / "x", config__json=settings_of(folder) | {"temperature": 1.5}, card__json=card))
    assert (warm.temperature, warm.card) == (1.5, card)


@pytest.mark.parametrize("card", [b"[]", b"{"])
def test_a_card_that_is_none_is_refused(tmp_path, folder, card):
    with pytest.raises(ArtifactError, match=r"card\.json"):
        Predictor(changed(folder, tmp_path / "x", card__json=card), threads=1)


def test_a_folder_of_int8_answers_with_its_int8_graph(tmp_path, folder):
    other = tiny_onnx_folder(tmp_path / "other", seed=1)
    config = settings_of(folder) | {"precision": "int8"}
    files = {"config__json": config, "model__int8__onnx": other / "model.onnx", "embeddings__bin": other / "embeddings.bin"}

    both = Predictor(changed(folder, tmp_path / "both", **files), threads=1)
    alone = Predictor(changed(folder, tmp_path / "alone", **files, model__onnx=None), threads=1)

    assert both.precision == "int8"
    for predictor in (both, alone):
        np.testing.assert_allclose(predictor.logits(PAIRS), slow_logits(PAIRS, seed=1), atol=1e-6)


def test_a_run_in_int8_has_one_thread(tmp_path, folder):
    files = {"config__json": settings_of(folder) | {"precision": "int8"}, "model__int8__onnx": folder / "model.onnx"}
    predictor = Predictor(changed(folder, tmp_path / "x", **files), threads=3)
    assert predictor._session.get_session_options().intra_op_num_threads == 1


@pytest.mark.parametrize(("precision", "message"), [("int8", "no model.int8.onnx"), ("int4", "precision 'int4'")])
def test_a_precision_without_its_graph_is_refused(tmp_path, folder, precision, message):
    config = settings_of(folder) | {"precision": precision}
    with pytest.raises(ArtifactError, match=message):
        Predictor(changed(folder, tmp_path / "x", config__json=config), threads=1)


def test_one_run_answers_one_padded_batch(predictor):
    rows = predictor.encode(PAIRS).ids
    assert len({len(row) for row in rows}) > 1
    np.testing.assert_allclose(predictor.run(rows), slow_logits(PAIRS), atol=1e-6)


def with_classifier(folder: Path, target: Path, factor: float) -> Path:
    """Another fine-tuning: the same table, other weights, and so logits that are ``factor`` times as large."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier")
    weights.raw_data = (np.frombuffer(weights.raw_data, np.float32) * np.float32(factor)).tobytes()
    return changed(folder, target, model__onnx=model.SerializeToString())


def mapped(folder: Path) -> int:
    """Mappings of the folder's table in this process."""
    return Path("/proc/self/maps").read_text().count(str(folder / "embeddings.bin"))


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")


@linux
def test_predictors_share_one_mapping_of_an_equal_table_and_the_last_one_frees_it(tmp_path, folder):
    folders = [with_classifier(folder, tmp_path / str(factor), factor) for factor in (2, 3)]
    tables = Tables()
    predictors = [Predictor(path, threads=1, tables=tables) for path in folders]

    for factor, predictor in zip((2, 3), predictors, strict=True):
        np.testing.assert_allclose(predictor.logits(PAIRS), factor * slow_logits(PAIRS), atol=1e-5)
    assert [mapped(path) for path in folders] == [1, 0]
    assert predictors[0]._tokenizer is predictors[1]._tokenizer

    del predictors[0], predictor
    gc.collect()
    # the table was opened by the one that is gone; the other still answers from it
    assert [mapped(path) for path in folders] == [1, 0]
    np.testing.assert_allclose(predictors[0].logits(PAIRS), 3 * slow_logits(PAIRS), atol=1e-5)

    predictors.clear()
    gc.collect()
    assert [mapped(path) for path in folders] == [0, 0]
    again = Predictor(folders[1], threads=1, tables=tables)
    np.testing.assert_allclose(again.logits(PAIRS), 3 * slow_logits(PAIRS), atol=1e-5)


@linux
def test_tables_that_differ_and_predictors_without_tables_share_nothing(tmp_path, folder):
    other = tiny_onnx_folder(tmp_path / "other", seed=1)
    copy = with_classifier(folder, tmp_path / "copy", 2)
    tables = Tables()
    first, second = Predictor(folder, threads=1, tables=tables), Predictor(other, threads=1, tables=tables)
    alone = Predictor(copy, threads=1)

    assert mapped(other) == mapped(copy) == 1
    np.testing.assert_allclose(first.logits(PAIRS), slow_logits(PAIRS), atol=1e-6)
    np.testing.assert_allclose(second.logits(PAIRS), slow_logits(PAIRS, seed=1), atol=1e-6)
    np.testing.assert_allclose(alone.logits(PAIRS), 2 * slow_logits(PAIRS), atol=1e-5)
    assert first._tokenizer is second._tokenizer is not alone._tokenizer


@linux
def test_threads_that_open_models_at_once_make_one_mapping(tmp_path, folder):
    folders = [with_classifier(folder, tmp_path / str(number), 1 + number) for number in range(8)]
    tables = Tables()
    opened: list[Predictor] = []
    threads = [threading.Thread(target=lambda path=path: opened.append(Predictor(path, tables=tables))) for path in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 8
    assert sum(map(mapped, folders)) == 1


def test_a_table_that_ends_before_the_graphs_does_is_refused(tmp_path, folder):
    short = changed(folder, tmp_path / "x", embeddings__bin=(folder / "embeddings.bin").read_bytes()[:-4])
    with pytest.raises(ArtifactError, match=r"embeddings needs 256 bytes of .*, which has 252"):
        Predictor(short, threads=1)
    with pytest.raises(ArtifactError, match=r"model.onnx"):
        Predictor(changed(folder, tmp_path / "y", embeddings__bin=None), threads=1)


def test_tensors_of_a_table_are_views_of_it_at_their_place(tmp_path):
    values = np.arange(24, dtype=np.int8)
    (tmp_path / "t").write_bytes(values.tobytes())
    table = Table(tmp_path / "t")
    found = table.value(ExternalTensor("a", onnx.TensorProto.INT8, (2, 4), "t", 8)).numpy()
    np.testing.assert_array_equal(found, values[8:16].reshape(2, 4))
    with pytest.raises(ArtifactError, match="type 8"):
        table.value(ExternalTensor("a", onnx.TensorProto.STRING, (2, 4), "t", 8))


def test_the_graphs_external_tensors_are_those_that_onnx_names(tmp_path, folder):
    assert external_tensors(folder / "model.onnx") == [ExternalTensor("embeddings", 1, (16, 4), "embeddings.bin", 0)]
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    table = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    table.external_data.add(key="offset", value="4096")
    # past one byte of a number, and a value after the headers
    table.dims[0] = 70_000
    onnx.save(model, tmp_path / "model.onnx")
    assert external_tensors(tmp_path / "model.onnx") == [ExternalTensor("embeddings", 1, (70_000, 4), "embeddings.bin", 4096)]


@pytest.mark.parametrize("content", [b"", b"no graph at all", b"\x3a\x05\x2a"])
def test_what_is_no_graph_is_refused(tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match="is not an ONNX graph"):
        external_tensors(tmp_path / "model.onnx")


@linux
def test_sessions_compute_in_one_arena(tmp_path):
    """A batch of 8 MB of activations in each of ten sessions: together they keep about what one keeps."""
    folder = tiny_onnx_folder(tmp_path / "x", max_length=20_000)
    predictors = [Predictor(folder, threads=1, tables=Tables()) for _ in range(10)]
    rows = [[5] * 16_384] * 16
    predictors[0].run(rows)
    before = anonymous()
    for predictor in predictors[1:]:
        predictor.run(rows)
    assert anonymous() - before < 16_000


def anonymous() -> int:
    """Kilobytes of this process that are no file's."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


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
