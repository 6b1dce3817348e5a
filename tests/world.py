"""A small world to test stages in, folder by folder: a tiny backbone, pairs in every role, a source model."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conlst.contract.artifacts import verify
from conlst.contract.config import Config, config_from_dict
from conlst.stages import folders
from tiny import tiny_backbone, tiny_config, tiny_pairs, write_tsv

Rows = list[dict[str, str]]
STAGES = [folders.calibrate_model, folders.self_train_model, folders.self_learn_model]
TABLE, WEIGHTS = "embeddings.safetensors", "weights.safetensors"


class Interrupted(Exception):
    """Stands for a kill."""


def stop_at(count: int) -> Callable[[dict[str, float], int], None]:
    """A sink that interrupts the stage when it tells its ``count``-th step."""
    told = 0

    def sink(_metrics: dict[str, float], _step: int) -> None:
        nonlocal told
        told += 1
        if told == count:
            raise Interrupted

    return sink


@dataclass(frozen=True)
class World:
    """A trained source model, and pairs in every role."""

    backbone: Path
    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "source-model"

    def pairs(self, name: str) -> Path:
        return self.folder / name

    def config(self, **sections: Any) -> Config:
        base: dict[str, Any] = {
            "backbone": {"name": str(self.backbone), "max_length": 32, "projection": 16, "freeze_embeddings": True},
            "compute": {"device": "cpu", "precision": "fp32", "threads": 1, "checkpoint_every": 1},
            "source": {"lr": 5e-3, "batch_tokens": 256, "epochs": 12},
            "calibrate": {"lr": 1e-3, "threshold": 0.5, "batch_tokens": 96, "negatives": 2},
            "selftrain": {"lr": 1e-3, "threshold": 0.6, "floor": 0.4, "batch_tokens": 96, "max_iterations": 2},
            "selflearn": {"lr": 1e-3, "share": 0.2, "batch_tokens": 96, "rounds": 2, "epochs": 1},
            "evaluate": {"batch_tokens": 1024},
        }
        merged = {name: {**base.get(name, {}), **value} if isinstance(value, dict) else value for name, value in sections.items()}
        return config_from_dict(tiny_config(self.backbone, **{**base, **merged}))


def ingest(config: Config, rows: Rows, role: str, out: Path) -> Path:
    """Publish rows as pairs."""
    language = "en" if role.startswith("source") else "sw"
    folders.ingest(config, role, [str(write_tsv(out.with_suffix(".tsv"), rows))], language, out)
    return out


def relabelled(rows: Rows, turn: int | None) -> Rows:
    """The same texts with every label turned by some classes, or with none."""
    names = ["entailment", "neutral", "contradiction"]
    return [{**row, "label": "" if turn is None else names[(names.index(row["label"]) + turn) % 3]} for row in rows]


POOL = tiny_pairs(45, 3)
KINDS_OF_POOL = {"pool": POOL, "pool-turned": relabelled(POOL, 1), "pool-unlabelled": relabelled(POOL, None)}


def history(model: Path) -> dict[str, Any]:
    return json.loads((model / "history.json").read_text())


def digest(folder: Path) -> str:
    return verify(folder).digest


def evaluation(world: World, model: Path, pairs: Path, out: Path, before: Path | None = None) -> dict[str, Any]:
    return folders.evaluate_model(world.config(), model, pairs, "sw", out, before)


def train_source(world: World, config: Config, out: Path, sink: Any) -> None:
    folders.train_source_model(config, world.pairs("source"), out, world.pairs("dev"), sink=sink)


def translations_through(file: Path, rows: Rows, there: str) -> str:
    """A TSV backend that goes to ``there`` and back for every text of ``rows``."""
    lines = ["source_text\ttarget_text\tsource_language\ttarget_language"]
    for text in {row[side] for row in rows for side in ("premise", "hypothesis")}:
        lines += [f"{text}\t{there} {text}\tsw\ten", f"{there} {text}\t{there} {text}\ten\tsw"]
    file.write_text("\n".join(lines) + "\n")
    return f"tsv:{file}"


def make_world(folder: Path) -> World:
    """Ingest the pairs of every role and train the source model."""
    world = World(tiny_backbone(folder / "backbone"), folder)
    config = world.config()
    ingest(config, tiny_pairs(90, 1), "source", folder / "source")
    ingest(config, tiny_pairs(30, 2), "source_dev", folder / "dev")
    ingest(config, tiny_pairs(45, 4), "test", folder / "test")
    ingest(config, tiny_pairs(60, 6), "source", folder / "more-source")
    for name, rows in KINDS_OF_POOL.items():
        ingest(config, rows, "pool", folder / name)
    folders.train_source_model(config, world.pairs("source"), world.model, world.pairs("dev"))
    return world
