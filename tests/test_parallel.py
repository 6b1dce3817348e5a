"""Training in several processes: the batches, losses and weights of one process with the larger batch, and one writer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import multiprocessing
from torch.multiprocessing import ProcessContext

from conlst.contract.artifacts import publish, read_manifest
from conlst.contract.config import Config, with_settings
from conlst.contract.errors import ArtifactError, TrainingError
from conlst.parallel import MetricSink, World
from conlst.stages import folders
from tiny import tiny_backbone, tiny_pairs


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_cover_a_batch_once_and_average_to_its_mean(count: int, size: int) -> None:
    shares = [World(rank, size).share(count) for rank in range(size)]
    counted = [row for share in shares if share.weight for row in share.rows.tolist()]
    assert sorted(counted) == list(range(count))
    values = torch.rand(count, dtype=torch.float64)
    parts = [share.weight * values[share.rows].mean() for share in shares]
    assert torch.stack(parts).mean().item() == pytest.approx(values.mean().item())


def test_one_process_averages_and_agrees_with_itself() -> None:
    tensor = torch.tensor([1.0, 2.0])
    World().average([tensor])
    assert tensor.tolist() == [1.0, 2.0]
    assert World().agree(tensor) is tensor


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """No dropout, nothing drawn row by row: what differs between the processes by intent."""
    backbone = tiny_backbone(tmp_path_factory.mktemp("backbone"))
    return with_settings(
        Config(name="parallel"),
        {
            **{"backbone.name": str(backbone), "backbone.max_length": 32, "backbone.projection": 8, "backbone.dropout": 0.0},
            **{"compute.precision": "fp32", "compute.threads": 1, "compute.checkpoint_every": 2, "compute.device": "cpu"},
            **{"source.epochs": 2, "source.batch_tokens": 256, "source.lr": 1e-3, "source.masking": None},
            **{"calibrate.batch_tokens": 256, "calibrate.threshold": 0.34, "calibrate.source_term": "complementary"},
            **{
                "selftrain.batch_tokens": 256,
                "selftrain.epochs": 2,
                "selftrain.coverage": 0.8,
                "selftrain.rule": "quantile",
                "selftrain.floor": 0.34,
                "selftrain.mixup": None,
            },
        },
    )


@pytest.fixture(scope="module")
def work(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English pairs, a pool, and a source model made by one process."""
    work = tmp_path_factory.mktemp("work")
    for role, language, seed in (("source", "en", 1), ("pool", "sw", 2)):
        file = work / f"{role}.jsonl"
        file.write_text("".join(json.dumps(pair) + "\n" for pair in tiny_pairs(48, seed)))
        folders.ingest(config, role, [str(file)], language, work / role)
    folders.train_source_model(config, work / "source", work / "model")
    return work


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "history.json").read_text())
    if "losses" in history:
        return history["losses"]
    if "selftrain" in history:
        return [loss for done in history["selftrain"]["rounds"] for loss in done["losses"]]
    return [step["loss"] for step in history["calibrate"]["steps"]]


def make(stage: str, config: Config, work: Path, out: Path, sink: MetricSink | None = None) -> None:
    if stage == "source":
        return folders.train_source_model(config, work / "source", out, sink=sink)
    adapt = folders.calibrate_model if stage == "calibrate" else folders.self_train_model
    return adapt(config, work / "model", work / "pool", "sw", out, work / "source", sink=sink)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["source", "calibrate", "selftrain"])
def test_two_processes_train_as_one_with_the_doubled_batch(config: Config, work: Path, tmp_path: Path, stage: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    make(stage, with_settings(config, {f"{stage}.batch_tokens": 512}), work, one)
    steps: list[int] = []
    make(stage, with_settings(config, {"compute.processes": 2}), work, two, lambda _metrics, step: steps.append(step))
    assert len(losses(one)) > 1
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    left, right = (load_file(folder / "weights.safetensors") for folder in (one, two))
    assert left.keys() == right.keys()
    for weight, tensor in left.items():
        torch.testing.assert_close(right[weight], tensor, rtol=1e-3, atol=1e-4)
    # told by one process: every step once, and of self-training every round
    rounds = len(json.loads((two / "history.json").read_text()).get("selftrain", {}).get("rounds", []))
    assert sorted(steps) == sorted([*range(1, len(losses(two)) + 1), *range(rounds)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.slow
def test_an_error_of_a_process_is_told_as_it_is(
    config: Config, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = multiprocessing.start_processes

    def ended(*arguments, **more) -> ProcessContext:
        """Processes that are gone before anything of what they told is read, as on a busy machine."""
        context = start(*arguments, **more)
        for process in context.processes:
            process.join()
        return context

    monkeypatch.setattr(multiprocessing, "start_processes", ended)
    unsure = with_settings(config, {"compute.processes": 2, "calibrate.threshold": 0.999})
    # from its first word to the last: a traceback of the process would hold these words too
    with pytest.raises(TrainingError, match=r"^no pool pair is surer than 0\.999[^\n]*$"):
        folders.calibrate_model(unsure, work / "model", work / "pool", "sw", tmp_path / "out", work / "source")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_launcher_starts_the_processes_of_several_pods(config: Config, work: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config.to_json())
    code = (
        "import sys; from pathlib import Path; from conlst.contract.config import config_from_json; "
        "from conlst.stages import folders; "
        "made, pairs, out = sys.argv[1:]; "
        "folders.train_source_model(config_from_json(Path(made).read_text()), Path(pairs), Path(out))"
    )
    (tmp_path / "train.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "train.py")]
    ended = subprocess.run(
        [*command, str(tmp_path / "config.json"), str(work / "source"), str(tmp_path / "model")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert read_manifest(tmp_path / "model", "model").meta["pairs"] == 48
    doubled = with_settings(config, {"source.batch_tokens": 512})
    folders.train_source_model(doubled, work / "source", tmp_path / "one")
    assert losses(tmp_path / "model") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


_ON_ITS_OWN_DISK = """
import json, sys
from pathlib import Path
import torch.distributed as dist
from conlst.contract.config import Config
from conlst.contract.errors import TrainingError
from conlst.stages.folders.checkpoints import is_made_from
from conlst.training import Checkpoints

dist.init_process_group("gloo")
disk = Path(sys.argv[1]) / str(dist.get_rank())
told = {}
for name in ("missing", "other", "same", "none"):
    try:
        found = Checkpoints(disk / name, 1, "this run").load()
        told[name] = found and found.step
    except TrainingError as error:
        told[name] = str(error)
told["made"] = [is_made_from(disk / name, Config(name="x"), {"pairs": "ab"}) for name in ("made", "made by another")]
(disk / "told.json").write_text(json.dumps(told))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_that_share_no_disk_refuse_their_checkpoints_and_agree_on_what_is_made(tmp_path: Path) -> None:
    def keep(rank: int, name: str, loss: float) -> None:
        meta = {"identity": "this run", "step": 4, "state": {"losses": [loss]}}
        with publish(tmp_path / str(rank) / name, kind="checkpoint", meta=meta) as staging:
            save_file({"model/weight": torch.ones(2)}, staging / "checkpoint.safetensors")

    for rank, name, loss in ((0, "missing", 1.0), (0, "other", 1.0), (1, "other", 2.0), (0, "same", 1.0), (1, "same", 1.0)):
        keep(rank, name, loss)
    for rank, name in ((0, "made"), (1, "made by another")):
        with publish(tmp_path / str(rank) / name, kind="model", config=Config(name="x").to_dict(), parents={"pairs": "ab"}):
            pass
    (tmp_path / "each.py").write_text(_ON_ITS_OWN_DISK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "each.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    for rank in (0, 1):
        told = json.loads((tmp_path / str(rank) / "told.json").read_text())
        assert told["missing"].startswith(f"{tmp_path / str(rank) / 'missing'} holds other checkpoints")
        assert "(steps 4, 0); put --out on a volume that all processes share, or remove the checkpoint" in told["missing"]
        assert "(steps 4, 4)" in told["other"]
        assert (told["same"], told["none"]) == (4, None)
        assert told["made"] == [True, False]


@pytest.mark.slow
def test_a_checkpoint_of_another_number_of_processes_is_refused(config: Config, work: Path, tmp_path: Path, monkeypatch) -> None:
    from conlst.training import Trainer

    save = Trainer.save

    def killed(self, *arguments, **more) -> None:
        save(self, *arguments, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            folders.train_source_model(config, work / "source", tmp_path / "model")
    with pytest.raises(ArtifactError, match="the checkpoint of another run"):
        folders.train_source_model(with_settings(config, {"compute.processes": 2}), work / "source", tmp_path / "model")


_WITH_ITS_OWN_INSTRUCTIONS = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from conlst.contract.config import Config
from conlst.training import settled

dist.init_process_group("gloo")
own = sys.argv[2].split(",")[dist.get_rank()] == "bf16"
torch.cpu.get_capabilities = lambda: {"avx512_bf16": own}
told = settled(Config(name="x", compute={"device": "cpu"})).compute.precision
(Path(sys.argv[1]) / str(dist.get_rank())).write_text(told)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("own", "taken"), [("bf16,fp32", "fp32"), ("bf16,bf16", "bf16")])
def test_processes_take_bf16_if_all_have_it(tmp_path: Path, own: str, taken: str) -> None:
    (tmp_path / "each.py").write_text(_WITH_ITS_OWN_INSTRUCTIONS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "each.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [*command, str(tmp_path), own]
    ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert [(tmp_path / rank).read_text() for rank in ("0", "1")] == [taken, taken]
