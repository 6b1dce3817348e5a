"""The experiment matrix: systems × languages × seeds × pools, read from YAML."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from conlst.bench.cell import NAME, cell_path
from conlst.contract.config import Section
from conlst.contract.errors import ConfigError
from conlst.reports import Protocol
from conlst.stages.evaluate import SOURCE_LANGUAGE

_DEFAULT = "default"

# what a cell's file can be named after
Name = Annotated[str, Field(pattern=NAME)]


def _not_adapt(settings: dict[str, Any]) -> dict[str, Any]:
    if found := sorted(key for key in settings if key.partition(".")[0] == "adapt"):
        raise ValueError(f"{', '.join(found)} is for the pipeline; in a matrix the stages and joint of a system say it")
    return settings


Settings = Annotated[dict[str, Any], AfterValidator(_not_adapt)]


class Translate(Section):
    """Labelled English pairs translated by machine, for stage 0.

    Attributes:
        backend: as ``selftrain.back_translation.backend`` has it.
        path: languages that a text goes through, English first; the last one is what stage 0 gets.
        pairs: how many of the source pairs are translated.
        as_auxiliary: give them to meta-learning as an auxiliary language, in place of adding them to the training pairs.
    """

    backend: str
    path: tuple[str, ...] = Field(min_length=2)
    pairs: int = Field(20_000, ge=1)
    as_auxiliary: bool = False

    @model_validator(mode="after")
    def _path_leads_away_from_english(self) -> Self:
        if self.path[0] != SOURCE_LANGUAGE or any(one == other for one, other in pairwise(self.path)):
            raise ValueError(f"path is {' to '.join(self.path)}; it begins with {SOURCE_LANGUAGE} and changes in every step")
        return self


class Stage0(Section):
    """How a source model is made: settings on top of the profile, or a model that exists.

    Attributes:
        settings: ``section.key`` to value.
        model: a model folder, or ``starter``; then nothing is trained here.
        pairs: train on this many of the source pairs, here and along in later stages; all if not given.
        translate: machine-translated training data.
    """

    describes: str
    settings: Settings = Field(default_factory=dict)
    model: str | None = None
    pairs: int | None = Field(None, ge=1)
    translate: Translate | None = None

    @model_validator(mode="after")
    def _translations_are_trained_on(self) -> Self:
        if self.model is not None and self.translate is not None:
            raise ValueError(f"{self.model} is not trained here, so translate has no use; take one of the two out")
        return self


class System(Section):
    """A row of the table: a source model and what is done with it.

    Attributes:
        start: name of the :class:`Stage0`.
        stages: in this order; none is zero-shot transfer.
        settings: ``section.key`` to value, on top of the profile's and the source model's.
        joint: one model for all the languages of a run that it can run on, trained on all their pools.
        teachers: seeds of further source models whose mean prediction gives the first round's pseudo-labels.
        only: the languages that it can run on, for example those a translator knows; empty for all.
    """

    describes: str
    start: str = "plain"
    stages: tuple[Literal["calibrate", "selftrain", "selflearn"], ...] = ()
    settings: Settings = Field(default_factory=dict)
    joint: bool = False
    teachers: tuple[int, ...] = ()
    only: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_the_stages_that_it_changes(self) -> Self:
        if self.joint and not self.stages:
            raise ValueError("joint needs stages; without them there is one model for all languages anyway")
        if self.teachers and "selftrain" not in self.stages:
            raise ValueError("teachers need the stage selftrain, which learns from them")
        return self


class Run(Section):
    """A block of cells.

    Attributes:
        pool: splits whose pairs are the unlabelled pool.
        tested: split whose labels measure the result.
    """

    systems: tuple[str, ...] = Field(min_length=1)
    languages: tuple[Name, ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((13,), min_length=1)
    pool: tuple[str, ...] = ("dev",)
    tested: str = "test"


@dataclass(frozen=True)
class Planned:
    """One cell to compute; ``languages`` are those of the pool, ``language`` is the one measured."""

    system: str
    language: str
    languages: tuple[str, ...]
    seed: int
    pool: tuple[str, ...]
    tested: str

    @property
    def protocol(self) -> Protocol:
        """What the evaluation must find by itself, from the texts that the model has seen."""
        if not self.pool:
            return "supervised" if self.language == SOURCE_LANGUAGE else "zero-shot"
        return "transductive" if self.tested in self.pool else "inductive"

    @property
    def path(self) -> Path:
        """Where the cell lies below the folder of results."""
        return cell_path(self.system, self.language, self.protocol, self.tested, self.seed)


class Matrix(Section):
    """Everything that an experiment runs.

    Attributes:
        config: the profile that all systems share.
        settings: ``section.key`` to value, on top of it.
        source, source_dev: labelled English files; ``{data}`` is filled in, and patterns with ``*`` are expanded.
        splits: name of a split to the file of each language, with ``{language}``; ``default`` is for those not named.
        runs: blocks of cells, computed in this order.
        development: languages that choices are made on; they are shown apart.
        groups: names for the tables: which systems decide, which are rivals, which leave out a part.
    """

    config: str
    settings: Settings = Field(default_factory=dict)
    source: tuple[str, ...] = Field(min_length=1)
    source_dev: str
    splits: dict[Name, dict[str, str]]
    stage0: dict[Name, Stage0]
    systems: dict[Name, System]
    runs: tuple[Run, ...] = Field(min_length=1)
    development: tuple[str, ...] = ()
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for name, system in self.systems.items():
            _known(system.start, self.stage0, f"systems.{name}.start")
            if system.teachers and self.stage0[system.start].model is not None:
                raise ValueError(f"systems.{name}.teachers: {system.start} is one model whatever the seed")
        for number, run in enumerate(self.runs):
            for name in run.systems:
                _known(name, self.systems, f"runs.{number}.systems")
            for split in (*run.pool, run.tested):
                _known(split, self.splits, f"runs.{number}")
        for group, names in self.groups.items():
            for name in names:
                _known(name, self.systems, f"groups.{group}")
        return self

    @model_validator(mode="after")
    def _cells_have_their_own_places(self) -> Self:
        places: dict[Path, Planned] = {}
        for cell in self.plan():
            if cell.pool and cell.language == SOURCE_LANGUAGE:
                raise ValueError(f"{cell.system} adapts to {SOURCE_LANGUAGE}, which the source model has labels of; leave it out")
            if places.setdefault(cell.path, cell) != cell:
                raise ValueError(f"runs with other pools or languages make the same {cell.path}; name their systems apart")
        return self

    def plan(self) -> list[Planned]:
        """All cells, each once, in the order of the runs."""
        return list(dict.fromkeys(cell for run in self.runs for cell in self._cells(run)))

    def _cells(self, run: Run) -> Iterator[Planned]:
        # the systems of a language and seed follow one another, and so do the languages of a joint model: they share their stages
        separate = [name for name in run.systems if not self.systems[name].joint]
        joint = [name for name in run.systems if self.systems[name].joint]
        for seed in run.seeds:
            for language in run.languages:
                for name in separate:
                    if language in self._languages(name, run):
                        pool = run.pool if self.systems[name].stages else ()
                        yield Planned(name, language, (language,), seed, pool, run.tested)
            for name in joint:
                languages = self._languages(name, run)
                for language in languages:
                    yield Planned(name, language, languages, seed, run.pool, run.tested)

    def _languages(self, system: str, run: Run) -> tuple[str, ...]:
        only = self.systems[system].only
        return tuple(language for language in run.languages if not only or language in only)

    def file(self, split: str, language: str) -> str:
        """The file of a split in a language, ``{data}`` not yet filled in.

        Raises:
            ConfigError: if the split has no file for it.
        """
        files = self.splits[split]
        if found := files.get(language) or files.get(_DEFAULT):
            return found.replace("{language}", language)
        raise ConfigError(f"splits.{split} has no file for {language} and no default; add one")


def read_matrix(path: Path) -> Matrix:
    """Read and check a matrix.

    Raises:
        ConfigError: if the file is not YAML or does not fit; every wrong key is named.
    """
    try:
        return Matrix.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"the matrix {path} cannot be read: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the matrix {path} is not YAML in UTF-8: {error}") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'matrix'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: {problems}") from None


def _known(name: str, names: dict[str, Any], where: str) -> None:
    if name not in names:
        raise ValueError(f"{where} names {name!r}; there are {', '.join(sorted(names))}")
