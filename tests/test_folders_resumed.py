"""Stages that were interrupted or killed: they end with the digest of a straight run, and take no other run's checkpoint."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conlst.cli import main
from conlst.contract.artifacts import read_manifest
from conlst.contract.config import Config
from conlst.contract.errors import ArtifactError, ConlstError
from conlst.stages import folders
from tiny import write_tsv
from world import POOL, STAGES, Interrupted, World, digest, stop_at, train_source


def train_calibrate(world: World, config: Config, out: Path, sink: Any) -> None:
    folders.calibrate_model(config, world.model, world.pairs("pool"), "sw", out, sink=sink)


def train_self(world: World, config: Config, out: Path, sink: Any) -> None:
    folders.self_train_model(config, world.model, world.pairs("pool"), "sw", out, sink=sink)


def train_self_learning(world: World, config: Config, out: Path, sink: Any) -> None:
    folders.self_learn_model(config, world.model, world.pairs("pool"), "sw", out, sink=sink)


TRAININGS = [train_source, train_calibrate, train_self, train_self_learning]


@pytest.mark.parametrize("train", TRAININGS)
def test_an_interrupted_stage_is_finished_with_the_digest_of_a_straight_one(
    world: World, tmp_path: Path, train: Callable[..., None]
) -> None:
    # with probes: what was measured before the interruption must not be lost either
    config = world.config(evaluate={"probes": 3}, source={"epochs": 1})
    train(world, config, tmp_path / "straight", None)
    with pytest.raises(Interrupted):
        train(world, config, tmp_path / "broken", stop_at(3))
    assert not (tmp_path / "broken").exists()
    train(world, config, tmp_path / "broken", None)
    assert digest(tmp_path / "broken") == digest(tmp_path / "straight")
    assert {path.name for path in tmp_path.iterdir()} == {"straight", "broken"}


@pytest.mark.parametrize("train", TRAININGS)
@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 14},
        {"backbone": {"max_length": 31}},
        {"source": {"lr": 1e-4}, "calibrate": {"lr": 1e-4}, "selftrain": {"lr": 1e-4}, "selflearn": {"lr": 1e-4}},
        {"compute": {"precision": "bf16"}},
    ],
    ids=["seed", "backbone", "rate", "precision"],
)
def test_a_checkpoint_of_another_configuration_is_refused(
    world: World, tmp_path: Path, train: Callable[..., None], changed: dict[str, Any]
) -> None:
    with pytest.raises(Interrupted):
        train(world, world.config(), tmp_path / "out", stop_at(3))
    with pytest.raises(ArtifactError, match=r"out\.\w+-checkpoint is the checkpoint of another run"):
        train(world, world.config(**changed), tmp_path / "out", None)


@pytest.mark.parametrize("train", TRAININGS)
def test_a_machine_that_chooses_another_precision_continues_nothing(
    world: World, tmp_path: Path, train: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = world.config(compute={"precision": "auto"})
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    with pytest.raises(Interrupted):
        train(world, config, tmp_path / "out", stop_at(3))
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(ArtifactError, match=r"out\.\w+-checkpoint is the checkpoint of another run"):
        train(world, config, tmp_path / "out", None)
    train(world, config, tmp_path / "other", None)
    assert read_manifest(tmp_path / "other").config["compute"]["precision"] == "fp32"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("changed", ["model", "pool", "source"])
def test_a_checkpoint_of_other_data_is_refused(
    world: World, calibrated: Path, tmp_path: Path, stage: Callable[..., None], changed: str
) -> None:
    model, pool, source = world.model, world.pairs("pool"), world.pairs("source")
    with pytest.raises(Interrupted):
        stage(world.config(), model, pool, "sw", tmp_path / "out", source, sink=stop_at(3))
    if changed == "model":
        model = calibrated
    elif changed == "pool":
        pool = world.pairs("pool-turned")
    else:
        source = world.pairs("more-source")
    with pytest.raises(ArtifactError, match="another run"):
        stage(world.config(), model, pool, "sw", tmp_path / "out", source)


_KILLED = """
import os, signal, sys
from conlst import training
from conlst.contract import artifacts
from conlst.cli import main

saves, publishes, arguments = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
save, swap = training.Trainer.save, artifacts._swap

def counted(*given, **more):
    global saves
    save(*given, **more)
    saves -= 1
    if saves == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def named(staging, folder):
    if folder.name == publishes:
        os.kill(os.getpid(), signal.SIGKILL)
    swap(staging, folder)

training.Trainer.save, artifacts._swap = counted, named
sys.exit(main(arguments))
"""


@pytest.mark.slow
def test_adapt_killed_again_and_again_ends_with_the_digest_of_a_straight_run(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "tiny.yaml"
    profile.write_text(json.dumps(world.config().to_dict()))  # JSON is YAML
    pool = write_tsv(tmp_path / "pool.tsv", POOL)

    def arguments(out: Path) -> list[str]:
        return [
            *("adapt", "--config", str(profile), "--source-model", str(world.model)),
            *("--pool", str(pool), "--language", "sw", "--out", str(out)),
        ]

    assert main(arguments(tmp_path / "straight")) == 0
    straight = json.loads(capsys.readouterr().out.splitlines()[-1])

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    broken = arguments(tmp_path / "broken")
    calibration = tmp_path / "broken.work" / "calibrate.calibrate-checkpoint"
    self_training = tmp_path / "broken.selftrain-checkpoint"
    kills = (("2", "", calibration), ("0", "calibrate", calibration), ("9", "", self_training), ("0", "broken", self_training))
    for saves, publishes, left in kills:
        command = [sys.executable, "-c", _KILLED, saves, publishes, *broken]
        killed = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
        assert not (tmp_path / "broken").exists()
        assert left.is_dir()
    with pytest.raises(ConlstError):
        read_manifest(tmp_path / "broken")

    assert main(broken) == 0
    resumed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert resumed["digest"] == straight["digest"]
    assert digest(tmp_path / "broken.work" / "calibrate") == digest(tmp_path / "straight.work" / "calibrate")
    assert not calibration.exists()
    assert not self_training.exists()
