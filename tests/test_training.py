"""The optimiser step that the training stages share: its rates, its refusals and its checkpoints."""

import copy
import json
import platform
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conlst.contract.artifacts import read_manifest
from conlst.contract.config import Backbone, Compute, Optimisation
from conlst.contract.errors import ArtifactError, ConfigError, TrainingError
from conlst.model.backbones import load_backbone
from conlst.model.encoder import PairClassifier
from conlst.training import Checkpoints, Trainer, autocast, derived_seed, precision_on, set_up_compute, step_generator
from tiny import tiny_backbone


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("b"))


@pytest.fixture
def model(backbone: Path) -> PairClassifier:
    return load_backbone(Backbone(name=str(backbone), max_length=32, projection=8), 0).classifier.train()


def weights(model: PairClassifier) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


def push(model: PairClassifier) -> Tensor:
    """A loss with the same gradient at every weight and every step: Adam then moves each weight by the rate itself."""
    return torch.stack([parameter.sum() for parameter in model.parameters() if parameter.requires_grad]).sum()


def moves(model: PairClassifier, trainer: Trainer, parameter: Tensor, steps: int) -> list[float]:
    """By how much a weight near zero moves at each step."""
    with torch.no_grad():
        parameter.zero_()
    seen = [0.0]
    for _ in range(steps):
        trainer.update(push(model), [0])
        seen.append(parameter.flatten()[0].item())
    return [before - after for before, after in pairwise(seen)]


def test_rates_rise_linearly_and_fall_linearly_to_nearly_zero(model: PairClassifier) -> None:
    trainer = Trainer(model, Optimisation(lr=1e-3, head_lr=1e-2, warmup=0.2, max_grad_norm=1e9), total_steps=10)
    shape = [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    found = moves(model, trainer, model.classifier.bias, 10)
    assert found == pytest.approx([1e-2 * share for share in shape], rel=1e-3)


def test_encoder_has_the_rate_lr_and_heads_too_without_head_lr(model: PairClassifier) -> None:
    bias = dict(model.named_parameters())["encoder.encoder.layer.0.output.dense.bias"]
    trainer = Trainer(model, Optimisation(lr=1e-3, head_lr=1e-2, warmup=0.0, max_grad_norm=1e9), total_steps=4)
    assert moves(model, trainer, bias, 4) == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3], rel=1e-3)
    trainer = Trainer(model, Optimisation(lr=1e-3, warmup=0.0, max_grad_norm=1e9), total_steps=4)
    assert moves(model, trainer, model.projector.bias, 1) == pytest.approx([1e-3], rel=1e-3)


def test_weight_decay_shrinks_weights_beside_the_gradient(model: PairClassifier) -> None:
    bias = model.classifier.bias
    trainer = Trainer(model, Optimisation(lr=1e-2, warmup=0.0, weight_decay=0.5, max_grad_norm=1e9), total_steps=100)
    with torch.no_grad():
        bias.fill_(10.0)
    trainer.update(push(model), [0])
    assert bias[0].item() == pytest.approx(10 - 1e-2 * 0.5 * 10 - 1e-2, rel=1e-5)


def test_gradients_are_scaled_down_to_the_norm(model: PairClassifier) -> None:
    def norm(limit: float) -> float:
        Trainer(model, Optimisation(lr=1e-9, max_grad_norm=limit), 1).update(push(model), [0])
        return float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm())

    whole = norm(1e9)
    assert norm(0.5) == pytest.approx(0.5, rel=1e-4)
    assert norm(2 * whole) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_a_weight_moves(model: PairClassifier, bad: float) -> None:
    trainer = Trainer(model, Optimisation(lr=1e-2), total_steps=10)
    trainer.update(push(model), [0])
    before = weights(model)
    with pytest.raises(TrainingError, match=r"step 1: loss (nan|-?inf).*\[7, 3, 9, 1, 2, 4, 5, 6\]"):
        trainer.update(push(model) * bad, [7, 3, 9, 1, 2, 4, 5, 6, 8])
    assert equal(weights(model), before)
    assert trainer.step == 1


def test_a_gradient_that_is_no_number_stops_too(model: PairClassifier) -> None:
    trainer = Trainer(model, Optimisation(lr=1e-2), total_steps=10)
    before = weights(model)
    zero = (model.classifier.bias * 0).sum()
    with pytest.raises(TrainingError, match=r"gradient norm (nan|inf)"):
        trainer.update(zero.sqrt(), [0])
    assert equal(weights(model), before)
    # and the trainer can go on
    expected = push(model).item()
    assert trainer.update(push(model), [0]) == expected
    assert not equal(weights(model), before)


def checkpoints(folder: Path, identity: str = "this run", every: int = 2) -> Checkpoints:
    return Checkpoints(folder / "c", every, identity)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's heap keeps holes and can be told to return them")
def test_holes_that_batches_of_other_shapes_left_go_back_to_the_system(model: PairClassifier) -> None:
    trainer = Trainer(model, Optimisation(lr=1e-6), 8)
    # too small to be mapped by itself, and each hole is held below the top of the heap by a block that stays
    blocks = [torch.ones(16_000) for _ in range(4000)]
    stays = blocks[1::20]
    del blocks
    resident = [_resident_mb()]
    for _ in range(8):
        trainer.update(push(model), [0])
        resident.append(_resident_mb())
    assert len(stays) == 200
    assert resident[8] < resident[7] - 100, resident


def _resident_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


def test_checkpoints_are_due_every_so_many_steps(model: PairClassifier, tmp_path: Path) -> None:
    def due(kept: Checkpoints | None) -> list[bool]:
        trainer = Trainer(model, Optimisation(lr=1e-6), 6, kept)
        found = []
        for _ in range(6):
            trainer.update(push(model), [0])
            found.append(trainer.checkpoint_due())
        return found

    assert due(checkpoints(tmp_path, every=2)) == [False, True] * 3
    assert due(checkpoints(tmp_path, every=0)) == [False] * 6
    assert due(None) == [False] * 6


def test_a_run_goes_on_from_its_checkpoint_as_if_it_had_never_stopped(model: PairClassifier, tmp_path: Path) -> None:
    kept = checkpoints(tmp_path)
    trainer = Trainer(model, Optimisation(lr=1e-2, weight_decay=0.1), 8, kept)
    for _ in range(3):
        trainer.update(push(model) + model.classifier.weight.square().sum(), [0])
    trainer.save({"q": torch.tensor([0.25])}, {"losses": [0.1, 1 / 3]})
    saved = weights(model)
    for _ in range(3):
        trainer.update(push(model) + model.classifier.weight.square().sum(), [0])
    straight = weights(model)
    with torch.no_grad():
        for parameter in trainer._parameters.values():
            parameter.add_(1)

    resumed = Trainer(model, Optimisation(lr=1e-2, weight_decay=0.1), 8, kept)
    found = kept.load()
    assert found is not None
    assert (found.step, found.state, found.stage["q"].tolist()) == (3, {"losses": [0.1, 1 / 3]}, [0.25])
    resumed.restore(found)
    assert resumed.step == 3
    assert equal(weights(model), saved)
    for _ in range(3):
        resumed.update(push(model) + model.classifier.weight.square().sum(), [0])
    assert equal(weights(model), straight)


def test_a_checkpoint_holds_what_trains_and_nothing_else(model: PairClassifier, tmp_path: Path) -> None:
    trainer = Trainer(model, Optimisation(lr=1e-2), 8, checkpoints(tmp_path))
    trainer.update(push(model), [0])
    trainer.save()
    names = set(load_file(tmp_path / "c" / "checkpoint.safetensors"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.removeprefix("model/") for name in names if name.startswith("model/")} == trained
    assert not [name for name in names if "word_embeddings" in name]
    assert {name.rpartition("/")[0].removeprefix("adam/") for name in names if name.startswith("adam/")} == trained


def test_an_average_of_the_weights_ends_the_training(model: PairClassifier) -> None:
    bias = model.classifier.bias
    with torch.no_grad():
        bias.zero_()
    ema = 0.25  # reached at step 3: (1 + 2) / (10 + 2)
    trainer = Trainer(model, Optimisation(lr=1e-2, ema=ema, max_grad_norm=1e9), total_steps=8)
    average = 0.0
    for step in range(6):
        trainer.update(push(model), [0])
        decay = min(ema, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * bias[0].item()
    last = bias[0].item()
    trainer.finish()
    assert bias[0].item() == pytest.approx(average, rel=1e-5)
    assert abs(average - last) > 1e-3


def test_without_an_average_the_last_weights_stay(model: PairClassifier) -> None:
    trainer = Trainer(model, Optimisation(lr=1e-2), total_steps=8)
    for _ in range(3):
        trainer.update(push(model), [0])
    last = weights(model)
    trainer.finish()
    assert equal(weights(model), last)


def test_averaging_does_not_touch_the_training_nor_frozen_weights(model: PairClassifier) -> None:
    model.freeze_embeddings(True)
    start = copy.deepcopy(model)

    def walked(ema: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        walker = copy.deepcopy(start)
        trainer = Trainer(walker, Optimisation(lr=1e-2, ema=ema), 8)
        for _ in range(3):
            trainer.update(push(walker), [0])
        last = weights(walker)
        trainer.finish()
        return last, weights(walker)

    plain, averaged = walked(0.0), walked(0.9)
    assert equal(plain[0], averaged[0])
    moved = {name for name, tensor in averaged[1].items() if not tensor.equal(averaged[0][name])}
    assert moved == {name for name, parameter in start.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("after", [3, 6])
def test_an_average_goes_on_from_its_checkpoint(model: PairClassifier, tmp_path: Path, after: int) -> None:
    start, settings = copy.deepcopy(model), Optimisation(lr=1e-2, ema=0.9)

    def step(walker: PairClassifier, trainer: Trainer) -> None:
        trainer.update(push(walker) + walker.classifier.weight.square().sum(), [0])

    kept = checkpoints(tmp_path)
    trainer = Trainer(model, settings, 6, kept)
    for number in range(1, 7):
        step(model, trainer)
        if number == after:
            trainer.save()
    trainer.finish()

    found = kept.load()
    assert found is not None
    resumed = Trainer(start, settings, 6, kept)
    resumed.restore(found)
    for _ in range(after, 6):
        step(start, resumed)
    resumed.finish()
    assert equal(weights(start), weights(model))


def test_without_an_average_the_checkpoint_has_none(model: PairClassifier, tmp_path: Path) -> None:
    for ema in (0.0, 0.5):
        trainer = Trainer(model, Optimisation(lr=1e-2, ema=ema), 8, checkpoints(tmp_path))
        trainer.update(push(model), [0])
        trainer.save()
        names = set(load_file(tmp_path / "c" / "checkpoint.safetensors"))
        assert any(name.startswith("ema/") for name in names) is (ema > 0)


def test_a_new_checkpoint_replaces_the_old_one(model: PairClassifier, tmp_path: Path) -> None:
    kept = checkpoints(tmp_path)
    trainer = Trainer(model, Optimisation(lr=1e-2), 8, kept)
    for _ in range(2):
        trainer.update(push(model), [0])
        trainer.save()
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    found = kept.load()
    assert found is not None
    assert found.step == 2
    kept.discard()
    assert kept.load() is None


def test_another_run_s_checkpoint_is_refused(model: PairClassifier, tmp_path: Path) -> None:
    trainer = Trainer(model, Optimisation(lr=1e-2), 8, checkpoints(tmp_path))
    trainer.update(push(model), [0])
    trainer.save()
    with pytest.raises(ArtifactError, match="another run"):
        checkpoints(tmp_path, "other data").load()


@pytest.mark.parametrize("damage", ["flip", "cut", "manifest"])
def test_a_damaged_checkpoint_is_refused(model: PairClassifier, tmp_path: Path, damage: str) -> None:
    kept = checkpoints(tmp_path)
    trainer = Trainer(model, Optimisation(lr=1e-2), 8, kept)
    trainer.update(push(model), [0])
    trainer.save()
    file = tmp_path / "c" / "checkpoint.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-8])
    else:
        (tmp_path / "c" / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="checkpoint"):
        kept.load()


def test_a_kill_while_saving_leaves_the_checkpoint_before(
    model: PairClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = checkpoints(tmp_path)
    trainer = Trainer(model, Optimisation(lr=1e-2), 8, kept)
    trainer.update(push(model), [0])
    trainer.save()
    trainer.update(push(model), [0])

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("conlst.training.save_file", die)
    with pytest.raises(KeyboardInterrupt):
        trainer.save()
    found = kept.load()
    assert found is not None
    assert found.step == 1


def test_saving_without_a_place_does_nothing(model: PairClassifier, tmp_path: Path) -> None:
    trainer = Trainer(model, Optimisation(lr=1e-2), 8)
    trainer.update(push(model), [0])
    trainer.save()
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_s_manifest_is_plain_json(model: PairClassifier, tmp_path: Path) -> None:
    trainer = Trainer(model, Optimisation(lr=1e-2), 8, checkpoints(tmp_path))
    trainer.update(push(model), [0])
    trainer.save(state={"losses": [1.5]})
    assert read_manifest(tmp_path / "c", "checkpoint").meta == {"identity": "this run", "step": 1, "state": {"losses": [1.5]}}
    json.loads((tmp_path / "c" / "manifest.json").read_text())


def test_seeds_depend_on_every_part() -> None:
    parts: list[tuple[int | str, ...]] = [(1, "a", 2), (1, "a", 3), (2, "a", 2), (1, "b", 2), (1, "a"), (12, "a", 2)]
    assert len({derived_seed(*part) for part in parts}) == len(parts)
    assert derived_seed(1, "a", 2) == derived_seed(1, "a", 2)


def test_a_step_generator_seeds_dropout_too() -> None:
    first = step_generator(1, "x")
    draws = torch.rand(3, generator=first), torch.rand(3)
    torch.rand(10)
    again = step_generator(1, "x")
    assert torch.rand(3, generator=again).equal(draws[0])
    assert torch.rand(3).equal(draws[1])


def test_compute_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    try:
        assert set_up_compute(Compute(device="cpu", threads=1)).type == "cpu"
        assert torch.get_num_threads() == 1
        # flushed to zero: 1e-40 is denormal in float32
        assert (torch.tensor([1e-38]) * 0.01).item() == 0
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert set_up_compute(Compute(device="auto", threads=1)).type == "cpu"
        with pytest.raises(ConfigError, match="sees no GPU"):
            set_up_compute(Compute(device="cuda"))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision(precision: str, dtype: torch.dtype) -> None:
    with autocast(Compute.model_validate({"precision": precision}), torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize(
    ("instructions", "native"),
    [
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bf16"),
        ({"architecture": "arm64", "bf16": True}, "bf16"),
        ({"avx512_f": True, "avx512_bf16": False}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto_is_bf16_only_where_the_cpu_has_it(
    monkeypatch: pytest.MonkeyPatch, instructions: dict[str, bool], native: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    assert precision_on(Compute(), torch.device("cpu")) == native
    other = "fp32" if native == "bf16" else "bf16"
    assert precision_on(Compute.model_validate({"precision": other}), torch.device("cpu")) == other


@pytest.mark.parametrize(("native", "taken"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_no_bf16_that_a_gpu_only_emulates(monkeypatch: pytest.MonkeyPatch, native: bool, taken: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or native)
    assert precision_on(Compute(), torch.device("cuda")) == taken
