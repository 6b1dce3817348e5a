"""A model on disk: what goes in comes out, and what does not fit is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conlst.contract.artifacts import MANIFEST, publish, read_manifest
from conlst.contract.config import Backbone
from conlst.contract.errors import ArtifactError, LabelError
from conlst.model.backbones import load_backbone
from conlst.model.dropout import Dropout
from conlst.model.folder import Model, load_model, save_model
from tiny import tiny_backbone, tiny_pairs, tokens_of

TABLE, WEIGHTS = "embeddings.safetensors", "weights.safetensors"


def tiny_model(folder: Path, kind: str = "bert", **settings: object) -> Model:
    backbone = {"name": str(tiny_backbone(folder, kind)), "max_length": 32, "projection": 16, **settings}
    return load_backbone(Backbone.model_validate(backbone), 3)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with frozen embeddings."""
    folder = tmp_path_factory.mktemp("models")
    save_model(tiny_model(folder / "backbone"), folder / "model", config={"name": "x"})
    return folder / "model"


def logits(model: Model) -> Tensor:
    tokens, _ = tokens_of(model, tiny_pairs(6, 1))
    with torch.inference_mode():
        return model.classifier(*tokens.batch(torch.arange(6)))


def republished(folder: Path, out: Path, change: Callable[[Path], None]) -> Path:
    """A folder with a right manifest of changed content."""
    with publish(out, kind="model") as staging:
        for file in folder.iterdir():
            if file.name != MANIFEST:
                shutil.copyfile(file, staging / file.name)
        change(staging)
    return out


def edit_json(name: str, **values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        raw = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**raw, **values}))

    return change


def edit_weights(change: Callable[[dict[str, Tensor]], object], name: str = WEIGHTS) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return rewrite


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "pair"])
@pytest.mark.parametrize("frozen", [True, False])
def test_round_trip_keeps_every_weight_and_setting(tmp_path: Path, kind: str, pooling: str, frozen: bool) -> None:
    model = tiny_model(tmp_path / "backbone", kind, pooling=pooling, freeze_embeddings=frozen, dropout=0.2)
    seen = {"source": torch.tensor([5, -7], dtype=torch.int64)}
    save_model(replace(model, seen=seen), tmp_path / "m", config={"name": "x"}, parents={"pairs": "ab"}, meta={"language": "en"})
    again = load_model(tmp_path / "m")
    assert logits(again).equal(logits(model))
    assert (again.classifier.pooling, again.freeze_embeddings, again.text) == (pooling, frozen, model.text)
    assert again.classifier.embeddings.requires_grad is not frozen
    assert {child.p for child in again.classifier.modules() if isinstance(child, Dropout)} == {0.2}
    assert not again.classifier.training
    assert again.seen["source"].equal(seen["source"])
    assert again.digest == read_manifest(tmp_path / "m", "model").digest
    assert again.tokenizer.to_str() == model.tokenizer.to_str()
    assert (read_manifest(tmp_path / "m").parents, read_manifest(tmp_path / "m").meta) == ({"pairs": "ab"}, {"language": "en"})


def test_the_same_model_has_the_same_digest_wherever_it_is_written(published: Path, tmp_path: Path) -> None:
    digest = read_manifest(published).digest
    again = load_model(published)
    save_model(again, tmp_path / "copy", config={"name": "x"})
    assert read_manifest(tmp_path / "copy").digest == digest
    with torch.no_grad():
        again.classifier.classifier.bias[0] += 1e-3
    save_model(again, tmp_path / "other", config={"name": "x"})
    assert read_manifest(tmp_path / "other").digest != digest


def test_a_frozen_table_is_linked_not_written_again(published: Path, tmp_path: Path) -> None:
    save_model(load_model(published), tmp_path / "adapted", config={})
    assert (tmp_path / "adapted" / TABLE).stat().st_ino == (published / TABLE).stat().st_ino
    assert (tmp_path / "adapted" / WEIGHTS).stat().st_ino != (published / WEIGHTS).stat().st_ino


def test_a_table_that_trains_is_written_anew(tmp_path: Path) -> None:
    save_model(tiny_model(tmp_path / "backbone", freeze_embeddings=False), tmp_path / "start", config={})
    model = load_model(tmp_path / "start")
    with torch.no_grad():
        model.classifier.embeddings[7] += 1
    save_model(model, tmp_path / "trained", config={})
    assert (tmp_path / "trained" / TABLE).stat().st_ino != (tmp_path / "start" / TABLE).stat().st_ino
    assert load_model(tmp_path / "trained").classifier.embeddings.equal(model.classifier.embeddings)


def test_the_table_is_kept_once(published: Path) -> None:
    assert set(load_file(published / TABLE)) == {"table"}
    assert not [name for name in load_file(published / WEIGHTS) if "word_embeddings" in name]


def test_every_file_but_safetensors_is_text(published: Path) -> None:
    names = {path.name for path in published.iterdir()}
    assert names == {TABLE, WEIGHTS, "seen.safetensors", "encoder.json", "model.json", "tokenizer.json", MANIFEST}
    for path in published.glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))


def test_a_model_knows_no_path_of_the_machine_it_was_made_on(published: Path) -> None:
    for path in published.glob("*.json"):
        assert str(published.parent) not in path.read_text(encoding="utf-8"), path.name


def test_more_files_are_covered_by_the_manifest(published: Path, tmp_path: Path) -> None:
    def write_history(folder: Path) -> None:
        (folder / "history.json").write_text("{}")

    save_model(load_model(published), tmp_path / "m", config={}, write_more=write_history)
    assert "history.json" in read_manifest(tmp_path / "m").files
    (tmp_path / "m" / "history.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"history\.json"):
        load_model(tmp_path / "m")


def test_a_failure_while_writing_publishes_nothing(published: Path, tmp_path: Path) -> None:
    def fail(_folder: Path) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_model(load_model(published), tmp_path / "m", config={}, write_more=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [WEIGHTS, TABLE, "tokenizer.json", "model.json", "seen.safetensors"])
def test_an_altered_byte_is_refused(published: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(published, tmp_path / "m"))
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        load_model(folder)


def test_swapped_labels_are_refused(published: Path, tmp_path: Path) -> None:
    swapped = {"0": "contradiction", "1": "neutral", "2": "entailment"}
    folder = republished(published, tmp_path / "m", edit_json("model.json", id2label=swapped))
    with pytest.raises(LabelError, match=r"model\.json orders its labels"):
        load_model(folder)


@pytest.mark.parametrize("name", ["classifier.weight", "encoder.encoder.layer.1.output.dense.bias"])
def test_a_missing_tensor_is_refused(published: Path, tmp_path: Path, name: str) -> None:
    folder = republished(published, tmp_path / "m", edit_weights(lambda tensors: tensors.pop(name)))
    with pytest.raises(ArtifactError, match=name):
        load_model(folder)


def test_a_surplus_tensor_is_refused(published: Path, tmp_path: Path) -> None:
    folder = republished(published, tmp_path / "m", edit_weights(lambda tensors: tensors.update(extra=torch.zeros(1))))
    with pytest.raises(ArtifactError, match="extra"):
        load_model(folder)


def test_a_tensor_of_another_shape_is_refused(published: Path, tmp_path: Path) -> None:
    def shrink(tensors: dict[str, Tensor]) -> None:
        tensors["classifier.weight"] = tensors["classifier.weight"][:2].clone()

    folder = republished(published, tmp_path / "m", edit_weights(shrink))
    with pytest.raises(ArtifactError, match=r"classifier\.weight"):
        load_model(folder)


def test_a_table_with_too_few_rows_is_refused(published: Path, tmp_path: Path) -> None:
    def shrink(tensors: dict[str, Tensor]) -> None:
        tensors["table"] = tensors["table"][:20].clone()

    folder = republished(published, tmp_path / "m", edit_weights(shrink, TABLE))
    with pytest.raises(ArtifactError, match="embeddings"):
        load_model(folder)


def test_another_kind_of_folder_and_none_at_all_are_refused(tmp_path: Path) -> None:
    with publish(tmp_path / "pairs", kind="pairs") as staging:
        (staging / "x").write_text("")
    with pytest.raises(ArtifactError, match="expected 'model'"):
        load_model(tmp_path / "pairs")
    with pytest.raises(ArtifactError, match="never published"):
        load_model(tmp_path / "nothing")


def test_both_heads_answer_in_float32_whatever_the_autocast(published: Path) -> None:
    classifier = load_model(published).classifier
    pooled = torch.randn(4, classifier.config.hidden_size)
    with torch.autocast("cpu", torch.bfloat16):
        assert classifier.classify(pooled).equal(classifier.classifier(pooled.float()).float()) is False
        assert classifier.classify(pooled).dtype == classifier.project(pooled).dtype == torch.float32
