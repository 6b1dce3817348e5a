"""Backbones in Hugging Face form against transformers' own models, and what is said of those that cannot be used."""

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, GPT2Config, GPT2Model

from conlst.contract.config import Backbone
from conlst.contract.errors import BackendError, ConfigError
from conlst.model.backbones import load_backbone
from conlst.model.dropout import Dropout
from conlst.model.folder import Model
from tiny import tiny_backbone

KINDS = ("bert", "xlm-roberta")
SEPARATOR = 3  # of the tiny tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: tiny_backbone(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def load(folder: Path, seed: int = 0, **settings: object) -> Model:
    return load_backbone(Backbone.model_validate({"name": str(folder), "max_length": 32, "projection": 16, **settings}), seed)


def batch() -> tuple[Tensor, Tensor]:
    """Three rows of 9, 6 and 4 tokens, with one separator or two between the texts, as BERT and XLM-R have it."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 50, (3, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor([[9], [6], [4]])).long()
    for row, column in ((0, 4), (0, 5), (0, 8), (1, 3), (2, 2)):
        ids[row, column] = SEPARATOR
    return ids * mask, mask


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_of_transformers(folders: dict[str, Path], kind: str) -> None:
    reference = AutoModel.from_pretrained(folders[kind]).eval()
    model = load(folders[kind])
    assert not model.classifier.training
    ids, mask = batch()
    with torch.inference_mode():
        expected = reference(input_ids=ids, attention_mask=mask).last_hidden_state
        found = model.classifier.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found[mask == 1], expected[mask == 1], atol=1e-5, rtol=0)


def slow_pooling(pooling: str, ids: list[int], hidden: torch.Tensor) -> torch.Tensor:
    if pooling != "pair":
        return hidden[0] if pooling == "cls" else hidden.mean(0)
    first = ids.index(SEPARATOR)
    premise = hidden[1:first].mean(0)
    hypothesis = hidden[[place for place in range(first, len(ids)) if ids[place] != SEPARATOR]].mean(0)
    return torch.cat([premise, hypothesis, (premise - hypothesis).abs(), premise * hypothesis])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["cls", "mean", "pair"])
def test_pooling_is_that_of_each_row_alone(folders: dict[str, Path], kind: str, pooling: str) -> None:
    reference = AutoModel.from_pretrained(folders[kind]).eval()
    classifier = load(folders[kind], pooling=pooling).classifier
    ids, mask = batch()
    with torch.inference_mode():
        pooled = classifier.encode(ids, mask)
        for row, length in enumerate(mask.sum(1).tolist()):
            hidden = reference(input_ids=ids[row : row + 1, :length]).last_hidden_state[0]
            expected = slow_pooling(pooling, ids[row, :length].tolist(), hidden)
            torch.testing.assert_close(pooled[row], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["cls", "mean", "pair"])
def test_padding_and_what_stands_in_it_changes_no_logit(folders: dict[str, Path], kind: str, pooling: str) -> None:
    model = load(folders[kind], pooling=pooling)
    ids, mask = batch()
    longer = torch.cat([ids, torch.full((3, 7), model.text.pad_id)], 1)
    wider = torch.cat([mask, torch.zeros(3, 7, dtype=torch.int64)], 1)
    with torch.inference_mode():
        expected = model.classifier(ids, mask)
        torch.testing.assert_close(model.classifier(longer, wider), expected, atol=1e-6, rtol=0)
        if kind == "bert":  # XLM-R counts its positions by the padding id
            torch.testing.assert_close(model.classifier(longer.masked_fill(wider == 0, 17), wider), expected, atol=1e-6, rtol=0)


def test_heads_and_shapes(folders: dict[str, Path]) -> None:
    classifier = load(folders["bert"]).classifier
    ids, mask = batch()
    pooled = classifier.encode(ids, mask)
    assert pooled.shape == (3, 32)
    assert classifier.classify(pooled).shape == (3, 3)
    assert classifier.project(pooled).shape == (3, 16)
    assert {id(p) for p in classifier.heads()} == {
        id(p) for name, p in classifier.named_parameters() if not name.startswith("encoder.")
    }


def test_the_seed_draws_the_heads_and_leaves_the_encoder(folders: dict[str, Path]) -> None:
    first, again, other = (load(folders["bert"], seed).classifier.state_dict() for seed in (1, 1, 2))
    assert all(first[name].equal(again[name]) for name in first)
    assert {name for name in first if not first[name].equal(other[name])} == {
        "classifier.weight",
        "classifier.bias",
        "projector.weight",
        "projector.bias",
    }


def test_freezing_and_dropout_are_the_configuration_s(folders: dict[str, Path]) -> None:
    frozen, free = (load(folders["bert"], freeze_embeddings=value) for value in (True, False))
    assert [name for name, p in frozen.classifier.named_parameters() if not p.requires_grad] == [
        "encoder.embeddings.word_embeddings.weight"
    ]
    assert all(p.requires_grad for p in free.classifier.parameters())
    rates = {child.p for child in load(folders["bert"], dropout=0.25).classifier.modules() if isinstance(child, Dropout)}
    assert rates == {0.25}


def test_every_parameter_but_the_contrastive_head_gets_a_gradient_from_the_logits(folders: dict[str, Path]) -> None:
    for kind in KINDS:
        classifier = load(folders[kind], freeze_embeddings=False).classifier.train()
        classifier(*batch()).sum().backward()
        without = {name for name, p in classifier.named_parameters() if p.grad is None}
        assert without == {"projector.weight", "projector.bias"}


def test_text_settings_are_the_tokenizer_s(folders: dict[str, Path]) -> None:
    model = load(folders["bert"])
    assert (model.text.max_length, model.text.pad_id, model.text.mask_id) == (32, 0, 4)
    assert set(model.text.special_ids) == {0, 1, 2, 3, 4}
    assert model.digest == str(folders["bert"])


@pytest.mark.parametrize(("kind", "positions"), [("bert", 64), ("xlm-roberta", 63)])
def test_max_length_may_not_exceed_the_positions(folders: dict[str, Path], kind: str, positions: int) -> None:
    # XLM-R's positions start behind its padding id
    longest = load(folders[kind], max_length=positions)
    ids = torch.full((1, positions), 7)
    assert torch.isfinite(longest.classifier(ids, torch.ones_like(ids))).all()
    with pytest.raises(ConfigError, match=f"max_length {positions + 1} exceeds the {positions} positions"):
        load(folders[kind], max_length=positions + 1)


def test_names_that_are_no_backbone() -> None:
    with pytest.raises(ConfigError, match="embedded:e5-small"):
        load_backbone(Backbone(name="embedded:e5-large"), 0)
    with pytest.raises(ConfigError, match="write hub:google-bert/some"):
        load_backbone(Backbone(name="google-bert/some"), 0)


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BackendError, match="hub:nobody/nothing"):
        load_backbone(Backbone(name="hub:nobody/nothing", revision="0" * 40), 0)


def test_a_hub_backbone_without_a_revision_is_told(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    load(folders["bert"])
    with pytest.raises(BackendError, match="hub:nobody/nothing"):
        load_backbone(Backbone(name="hub:nobody/nothing", revision="0" * 40), 0)
    assert "revision" not in caplog.text
    with pytest.raises(BackendError, match="hub:nobody/nothing"):
        load_backbone(Backbone(name="hub:nobody/nothing"), 0)
    assert "backbone hub:nobody/nothing names no revision and may change" in caplog.text


def test_a_tokenizer_without_a_mask_token_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["bert"], tmp_path / "b"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["mask_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(BackendError, match="padding, a mask and a separator token"):
        load(folder)


def test_a_folder_without_weights_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["bert"], tmp_path / "b"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackendError, match=r"model\.safetensors"):
        load(folder)


def test_a_backbone_that_lacks_a_tensor_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["bert"], tmp_path / "b"))
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackendError, match=r"layer\.1\.output\.dense"):
        load(folder)


@pytest.mark.parametrize("model_type", [None, "nonesuch"])
def test_a_folder_that_is_no_model_is_named(tmp_path: Path, model_type: str | None) -> None:
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(BackendError, match=str(tmp_path)):
        load(tmp_path)


def test_a_folder_without_a_tokenizer_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["bert"], tmp_path / "b"))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BackendError, match="tokenizer"):
        load(folder)


def test_a_decoder_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["bert"], tmp_path / "b"))
    sizes = GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=3)
    GPT2Model(sizes).save_pretrained(folder)
    with pytest.raises(BackendError, match="encoder"):
        load(folder)
