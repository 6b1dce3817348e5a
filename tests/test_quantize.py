"""INT8: near to float32, blind to the batch, and served only where it is as right."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from conlst.contract.artifacts import read_manifest
from conlst.contract.config import Config, Export, config_from_dict
from conlst.contract.errors import ArtifactError, DataError, TrainingError
from conlst.contract.labels import parse_label
from conlst.model.backbones import load_backbone
from conlst.model.folder import save_model
from conlst.runtime.onnx import Predictor, open_session, padded
from conlst.stages import export
from conlst.stages.export import Reference, export_onnx
from conlst.stages.precision import Labelled, judge
from conlst.stages.quantize import quantize_graph
from tiny import WORDS, tiny_backbone, tiny_config, tiny_pairs

Pairs = list[tuple[str, str]]


def texts(count: int, seed: int) -> Pairs:
    return [(row["premise"], row["hypothesis"]) for row in tiny_pairs(count, seed)]


def labels_of(count: int, seed: int) -> NDArray[np.int64]:
    return np.array([int(parse_label(row["label"])) for row in tiny_pairs(count, seed)])


@dataclass(frozen=True)
class Made:
    config: Config
    model: Path
    reference: Reference
    folder: Path


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp(request.param)
    backbone = {"name": str(tiny_backbone(root / "backbone", request.param, spare=100)), "max_length": 32, "pooling": "mean"}
    # a random model's logits are nearly alike, so that the rounding changes more labels than a trained one's
    limits = {"min_agreement": 0.8, "max_drop": 0.2}
    config = config_from_dict(tiny_config(root / "backbone", backbone=backbone, evaluate={"batch_tokens": 128}, export=limits))
    model = load_backbone(config.backbone, seed=2)
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.mul_(1.5)
    save_model(model, root / "model", config=config.to_dict(), meta={"language": "sw"})
    reference = Reference(texts(60, 1), texts(60, 2), labels_of(60, 2), texts(60, 3), labels_of(60, 3))
    export_onnx(root / "model", reference.pool[:20], root / "onnx", config, reference)
    return Made(config, root / "model", reference, root / "onnx")


def answers(graph: Path, rows: list[list[int]]) -> NDArray[np.float32]:
    return np.asarray(open_session(graph, 1).run(["logits"], padded(rows, 0))[0])


def test_int8_is_near_to_fp32_and_is_what_the_folder_serves(made: Made) -> None:
    predictor = Predictor(made.folder, threads=1)
    assert predictor.precision == "int8"
    predictor.check_golden()
    rows = predictor.encode(made.reference.held_out).ids
    fp32, int8 = answers(made.folder / "model.onnx", rows), answers(made.folder / "model.int8.onnx", rows)
    difference = np.abs(fp32 - int8)
    assert 0 < difference.max() < 0.05 * fp32.std()
    np.testing.assert_array_equal(predictor.run(rows), int8)


def test_no_answer_depends_on_its_neighbours(made: Made) -> None:
    predictor = Predictor(made.folder, threads=1)
    rows = predictor.encode(made.reference.held_out[:12]).ids
    alone = np.concatenate([predictor.run([row]) for row in rows])
    generator = np.random.default_rng(0)
    long = generator.integers(5, 5 + len(WORDS), 32).tolist()
    for poison in ([long], [[2, 3, 3]], [[7] * 32, long], rows[::-1]):
        together = predictor.run([*rows, *poison])[: len(rows)]
        assert np.abs(together - alone).max() <= 1e-4
        together = predictor.run([*poison, *rows])[len(poison) :]
        assert np.abs(together - alone).max() <= 1e-4


def test_golden_pairs_allow_int8_the_rounding_of_another_cpu_and_no_more(made: Made, tmp_path: Path) -> None:
    predictor = Predictor(Path(shutil.copytree(made.folder, tmp_path / "onnx")), threads=1)
    golden = json.loads((made.folder / "golden.json").read_text())
    for shift, refused in ((0.2, nullcontext()), (1.0, pytest.raises(ArtifactError, match="golden pair 0"))):
        shifted = [{**pair, "logits": [logit + shift for logit in pair["logits"]]} for pair in golden]
        (tmp_path / "onnx/golden.json").write_text(json.dumps(shifted))
        with refused:
            predictor.check_golden()


def test_both_graphs_read_one_table_and_int8_holds_bytes(made: Made) -> None:
    table = np.prod(_external(made.folder / "model.onnx").dims)
    assert list(_external(made.folder / "model.int8.onnx").dims) == list(_external(made.folder / "model.onnx").dims)
    assert table * 4 == (made.folder / "embeddings.bin").stat().st_size
    graph = onnx.load(made.folder / "model.int8.onnx", load_external_data=False).graph
    products = [node for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
    # query, key, value, output and two of the feed-forward part, in two layers
    assert len(products) == 12
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert {kinds[node.input[1]] for node in products} == {TensorProto.INT8}
    left = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in kinds]
    assert left == []


def _external(file: Path) -> TensorProto:
    graph = onnx.load(file, load_external_data=False).graph
    (tensor,) = [tensor for tensor in graph.initializer if tensor.external_data]
    return tensor


def test_the_same_model_makes_the_same_graph(made: Made, tmp_path: Path) -> None:
    rows = Predictor(made.folder, threads=1).encode(made.reference.pool).ids
    quantize_graph(made.folder / "model.onnx", tmp_path / "a.onnx", rows)
    quantize_graph(made.folder / "model.onnx", tmp_path / "b.onnx", rows)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert not (made.folder / "calibration.onnx").exists()


def small_graph(path: Path, width: int, spread: float, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """ids and mask to ``mean(LayerNorm(table[ids])) @ weight``, where one channel is ``spread`` times as large as the rest."""
    generator = np.random.default_rng(seed)
    table = generator.normal(size=(50, width)).astype(np.float32)
    gain = np.ones(width, np.float32)
    gain[0] = spread
    weight = generator.normal(size=(width, 3)).astype(np.float32)
    weight[0] /= spread
    values = {"table": table, "gain": gain, "bias": np.zeros(width, np.float32), "weight": weight, "axis": np.array([1])}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("LayerNormalization", ["rows", "gain", "bias"], ["even"]),
        helper.make_node("MatMul", ["even", "weight"], ["each"]),
        helper.make_node("ReduceMean", ["each", "axis"], ["mean"], keepdims=0),
        helper.make_node("ReduceMax", ["attention_mask"], ["ones"], keepdims=0),
        helper.make_node("Cast", ["ones"], ["one"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["mean", "one"], ["logits"]),
    ]
    free = ["batch", "length"]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.INT64, free) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString())
    return table, weight


def test_a_channel_that_is_large_everywhere_does_not_coarsen_the_others(tmp_path: Path) -> None:
    small_graph(tmp_path / "fp32.onnx", 32, 300.0, 0)
    rows = np.random.default_rng(1).integers(0, 50, (64, 6)).tolist()
    assert quantize_graph(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", rows[:32]) == 1
    fp32, int8 = answers(tmp_path / "fp32.onnx", rows), answers(tmp_path / "int8.onnx", rows)
    # without smoothing the step is 300 * 2 / 255 of a channel's own spread, and half of it is lost
    assert np.abs(fp32 - int8).max() < 0.05 * fp32.std()


def test_a_graph_without_products_and_no_text_are_refused(tmp_path: Path) -> None:
    small_graph(tmp_path / "fp32.onnx", 8, 1.0, 0)
    with pytest.raises(DataError, match="got none"):
        quantize_graph(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", [])
    model = onnx.load(tmp_path / "fp32.onnx")
    model.graph.node[2].op_type = "Foreign"
    (tmp_path / "foreign.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(TrainingError, match="nothing to quantise"):
        quantize_graph(tmp_path / "foreign.onnx", tmp_path / "int8.onnx", [[1, 2]])
    assert not (tmp_path / "int8.onnx").exists()


def predictions(labels: list[int]) -> NDArray[np.float32]:
    return np.eye(3, dtype=np.float32)[labels]


@pytest.mark.parametrize(
    ("changed", "lost", "served"),
    [(0, 0, "int8"), (3, 1, "int8"), (4, 0, "fp32"), (3, 2, "fp32"), (0, -5, "int8")],
)
def test_int8_must_agree_and_be_as_right(changed: int, lost: int, served: str) -> None:
    limits = Export(max_drop=0.01, min_agreement=0.97)
    unlabelled, truth = [0] * 100, [0] * 95 + [1] * 5
    int8 = [1] * changed + unlabelled[changed:]
    # of the labelled pairs fp32 has 95 right; int8 loses some of them, or gets more
    labelled = [1] * lost + [0] * (100 - lost) if lost >= 0 else truth
    given = Labelled("held out pairs", predictions([0] * 100), predictions(labelled), np.array(truth))
    verdict = judge(predictions(unlabelled), predictions(int8), given, limits)
    assert verdict.served == served
    assert verdict.agreement == pytest.approx(1 - changed / 100)
    assert verdict.accuracy == {"fp32": pytest.approx(0.95), "int8": pytest.approx(0.95 - lost / 100)}
    assert "100 held out pairs" in verdict.reason
    assert verdict.pairs == 100


def test_the_card_tells_what_was_found(made: Made) -> None:
    card = json.loads((made.folder / "card.json").read_text())
    settings = json.loads((made.folder / "config.json").read_text())
    assert set(card) == {"temperature", "precision", "reference", "evaluation"}
    assert settings["temperature"] == card["temperature"]["value"] != 1.0
    assert (settings["precision"], settings["precision_reason"]) == (card["precision"]["served"], card["precision"]["reason"])
    assert card["precision"]["pairs"] == 60
    assert card["precision"]["allowed_drop"] == 0.2
    assert set(card["temperature"]["ece"]) == {"before", "after"}
    assert sum(card["reference"]["confidence"]) == card["reference"]["pairs"] == 60
    assert sum(card["reference"]["labels"].values()) == pytest.approx(1)
    predictor = Predictor(made.folder, threads=1)
    confidence = predictor.probabilities(predictor.logits(made.reference.held_out)).max(axis=1)
    counts = [int(((confidence > low / 10) & (confidence <= (low + 1) / 10)).sum()) for low in range(10)]
    assert card["reference"]["confidence"] == counts


@pytest.fixture
def quick(made: Made, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Config, Reference | None], dict]:
    """Export with the graph that there is, and read the card."""

    def copy(_classifier: object, _tokens: object, folder: Path, _opset: int) -> None:
        for name in ("model.onnx", "embeddings.bin"):
            (folder / name).write_bytes((made.folder / name).read_bytes())

    monkeypatch.setattr(export, "_write_graph", copy)

    def run(out: Path, config: Config, reference: Reference | None) -> dict:
        export_onnx(made.model, made.reference.pool[:20], out, config, reference)
        card: dict = json.loads((out / "card.json").read_text())
        files = read_manifest(out).files
        assert ("model.int8.onnx" in files) == (card["precision"]["served"] == "int8")
        Predictor(out, threads=1).check_golden()
        return card

    return run


def test_a_refused_int8_is_not_published_and_says_why(
    made: Made, tmp_path: Path, quick: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_of = export.judge
    # int8 gives another label to every pair of the pool
    monkeypatch.setattr(export, "judge", lambda fp32, _int8, *rest: judge_of(fp32, -fp32, *rest))
    reference = replace(made.reference, held_out=[], held_out_labels=None)
    card = quick(tmp_path / "out", made.config, reference)
    assert card["precision"]["served"] == "fp32"
    assert card["precision"]["agreement"] == 0
    assert "80% is asked for" in card["precision"]["reason"]
    assert "60 English pairs" in card["precision"]["reason"]
    assert card["temperature"]["ece"] is None


def test_without_english_pairs_fp32_is_served_at_temperature_1(made: Made, tmp_path: Path, quick: Callable[..., dict]) -> None:
    card = quick(tmp_path / "out", made.config, None)
    assert card["temperature"]["value"] == 1.0
    assert card["precision"] == {
        "served": "fp32",
        "reason": "there were no labelled pairs that could show what int8 costs",
        "allowed_drop": 0.2,
        "pairs": 0,
        "accuracy": None,
        "agreement": None,
    }
    assert card["reference"]["pairs"] == 20


def test_int8_can_be_left_out(made: Made, tmp_path: Path, quick: Callable[..., dict]) -> None:
    without = made.config.model_copy(update={"export": Export(int8=False)})
    card = quick(tmp_path / "out", without, made.reference)
    assert card["precision"]["reason"] == "export.int8 is false"
    assert card["temperature"]["value"] != 1.0
