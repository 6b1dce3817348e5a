"""ONNX against torch: the same answers at every size, or nothing is published."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from conlst.contract.artifacts import read_manifest, verify
from conlst.contract.config import Config, config_from_dict
from conlst.contract.errors import ArtifactError, DataError, TrainingError
from conlst.model.backbones import load_backbone
from conlst.model.encoder import PairClassifier
from conlst.model.folder import load_model, save_model
from conlst.runtime.onnx import Encoded, Predictor
from conlst.stages import export
from conlst.stages.export import export_onnx
from tiny import WORDS, tiny_backbone, tiny_config, tiny_pairs

LONGEST = 32
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Exported:
    config: Config
    model: Path
    pairs: Pairs
    folder: Path
    difference: float
    classifier: PairClassifier
    predictor: Predictor


def texts(count: int, seed: int) -> Pairs:
    return [(row["premise"], row["hypothesis"]) for row in tiny_pairs(count, seed)]


@pytest.fixture(scope="module", params=[("bert", "mean"), ("xlm-roberta", "cls"), ("xlm-roberta", "pair")])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    kind, pooling = request.param
    root = tmp_path_factory.mktemp(kind)
    backbone = {"name": str(tiny_backbone(root / "backbone", kind, spare=100)), "max_length": LONGEST, "pooling": pooling}
    config = config_from_dict(tiny_config(root / "backbone", backbone=backbone, evaluate={"batch_tokens": 128}))
    model = load_backbone(config.backbone, seed=2)
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.mul_(1.5)  # a fresh model's logits are nearly alike
    save_model(model, root / "model", config=config.to_dict(), meta={"language": "sw"})
    pairs = [*texts(20, 1), (" ".join(WORDS * 2), "a cat")]
    difference = export_onnx(root / "model", pairs, root / "onnx", config)
    classifier = load_model(root / "model").classifier
    return Exported(config, root / "model", pairs, root / "onnx", difference, classifier, Predictor(root / "onnx", threads=1))


def torch_logits(classifier: PairClassifier, rows: list[list[int]]) -> NDArray[np.float32]:
    """A row at a time, so without padding."""
    with torch.inference_mode():
        ids = [torch.tensor([row]) for row in rows]
        return torch.cat([classifier(row, torch.ones_like(row)) for row in ids]).numpy()


def random_rows(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(len(lengths))
    return [torch.randint(5, 50, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize(
    "lengths",
    [[1], [2], [7], [LONGEST], [1, 1, 1], [9] * 4, [LONGEST] * 3, [1, LONGEST], [3, 8, 1, 20, LONGEST, 5, 2]],
    ids=str,
)
def test_any_batch_and_length_answers_as_torch_does(exported: Exported, lengths: list[int]) -> None:
    rows = random_rows(lengths)
    encoded = Encoded(rows, np.array(lengths))
    found = exported.predictor.logits_of(encoded, batch_tokens=10_000)
    np.testing.assert_allclose(found, torch_logits(exported.classifier, rows), atol=exported.config.export.tolerance, rtol=0)


def test_served_answers_are_those_of_torch_through_the_tokenizer(exported: Exported) -> None:
    pairs = [*texts(30, 5), ("THE  Cat", "an unknownword")]
    model = load_model(exported.model)
    rows = [model.tokenizer.encode(*pair).ids for pair in pairs]
    found = exported.predictor.logits(pairs)
    np.testing.assert_allclose(found, torch_logits(exported.classifier, rows), atol=exported.config.export.tolerance, rtol=0)
    assert np.ptp(found, axis=0).min() > 100 * exported.config.export.tolerance


def test_what_is_told_is_the_largest_difference_and_within_the_tolerance(exported: Exported) -> None:
    settings = json.loads((exported.folder / "config.json").read_text())
    assert settings["parity"] == exported.difference
    assert 0 <= exported.difference <= exported.config.export.tolerance


def test_golden_pairs_are_answered_again(exported: Exported) -> None:
    golden = json.loads((exported.folder / "golden.json").read_text())
    assert [(item["premise"], item["hypothesis"]) for item in golden] == exported.pairs[: exported.config.export.golden]
    exported.predictor.check_golden()
    with pytest.raises(ArtifactError, match="golden pair"):
        exported.predictor.check_golden(tolerance=0.0)


def test_the_folder_is_all_that_serving_needs(exported: Exported) -> None:
    manifest = verify(exported.folder, "onnx")
    assert set(manifest.files) == {"model.onnx", "embeddings.bin", "tokenizer.json", "config.json", "card.json", "golden.json"}
    assert manifest.parents == {"model": read_manifest(exported.model).digest}
    assert manifest.meta == {"language": "sw"}
    settings = json.loads((exported.folder / "config.json").read_text())
    assert settings["id2label"] == {"0": "entailment", "1": "neutral", "2": "contradiction"}
    assert (settings["max_length"], settings["pad_id"], settings["language"]) == (LONGEST, 0, "sw")
    assert exported.predictor.language == "sw"


def test_the_embedding_table_has_a_file_of_its_own(exported: Exported) -> None:
    table = exported.classifier.embeddings.detach()
    content = np.frombuffer((exported.folder / "embeddings.bin").read_bytes(), np.float32)
    np.testing.assert_array_equal(content, table.numpy().ravel())
    graph = onnx.load(exported.folder / "model.onnx", load_external_data=False)
    outside = [tensor for tensor in graph.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    assert len(outside) == 1
    assert list(outside[0].dims) == list(table.shape)
    inside = [tensor for tensor in graph.graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
    assert all(len(tensor.raw_data) < 4 * table.numel() for tensor in inside)


def test_batch_and_length_are_free_in_the_graph(exported: Exported) -> None:
    graph = onnx.load(exported.folder / "model.onnx", load_external_data=False).graph
    assert {node.name for node in graph.input} == {"input_ids", "attention_mask"}
    for node in graph.input:
        assert all(dimension.dim_param for dimension in node.type.tensor_type.shape.dim)
    classes = graph.output[0].type.tensor_type.shape.dim
    assert (bool(classes[0].dim_param), classes[1].dim_value) == (True, 3)


def test_models_of_one_backbone_share_the_table_s_bytes(
    exported: Exported, tmp_path: Path, no_export: Callable[..., None]
) -> None:
    no_export(shift=0.0)
    export_onnx(exported.model, exported.pairs, tmp_path / "again", exported.config)
    entries = [read_manifest(folder).files["embeddings.bin"].sha256 for folder in (exported.folder, tmp_path / "again")]
    assert entries[0] == entries[1]


def test_the_graph_knows_no_path_of_the_machine_it_was_made_on(exported: Exported) -> None:
    assert str(Path(export.__file__).parents[2]).encode() not in (exported.folder / "model.onnx").read_bytes()


@pytest.mark.parametrize("exported", [("bert", "mean")], indirect=True)
def test_the_same_model_makes_the_same_folder(exported: Exported, tmp_path: Path) -> None:
    export_onnx(exported.model, exported.pairs, tmp_path / "again", exported.config)
    assert verify(tmp_path / "again").digest == verify(exported.folder).digest


@pytest.fixture
def no_export(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Take the graph that there is in place of exporting again, and shift its answers."""

    def pretend(shift: float) -> None:
        def copy(_classifier: PairClassifier, _tokens: object, folder: Path, _opset: int) -> None:
            for name in ("model.onnx", "embeddings.bin"):
                shutil.copyfile(exported.folder / name, folder / name)

        answer = export._onnx_logits

        def shifted(*given: Any) -> Tensor:
            logits = answer(*given)
            logits[3, 1] += shift
            return logits

        monkeypatch.setattr(export, "_write_graph", copy)
        monkeypatch.setattr(export, "_onnx_logits", shifted)

    return pretend


@pytest.mark.parametrize("shift", [2e-4, -1.0, float("nan"), float("inf")])
def test_other_answers_are_refused_and_nothing_is_published(
    exported: Exported, tmp_path: Path, no_export: Callable[..., None], shift: float
) -> None:
    no_export(shift)
    with pytest.raises(TrainingError, match=r"ONNX and torch differ .* nothing was exported"):
        export_onnx(exported.model, exported.pairs, tmp_path / "out", exported.config)
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_leaves_the_folder_that_was_there(exported: Exported, tmp_path: Path, no_export: Callable[..., None]) -> None:
    out = Path(shutil.copytree(exported.folder, tmp_path / "out"))
    no_export(1.0)
    with pytest.raises(TrainingError):
        export_onnx(exported.model, exported.pairs, out, exported.config)
    assert verify(out).digest == read_manifest(exported.folder).digest


def test_a_difference_within_the_tolerance_is_told(exported: Exported, tmp_path: Path, no_export: Callable[..., None]) -> None:
    no_export(5e-5)
    assert export_onnx(exported.model, exported.pairs, tmp_path / "out", exported.config) == pytest.approx(5e-5, rel=0.1)


def test_without_pairs_there_is_nothing_to_compare(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got none"):
        export_onnx(exported.model, [], tmp_path / "out", exported.config)
    with pytest.raises(DataError, match="golden"):
        export_onnx(exported.model, [exported.pairs[-1]], tmp_path / "out", exported.config)
    assert not (tmp_path / "out").exists()


def test_an_altered_model_is_not_exported(exported: Exported, tmp_path: Path) -> None:
    model = Path(shutil.copytree(exported.model, tmp_path / "model"))
    content = bytearray((model / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "weights.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"weights\.safetensors"):
        export_onnx(model, exported.pairs, tmp_path / "out", exported.config)
