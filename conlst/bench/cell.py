"""A cell: all that one run of one system on one language leaves behind, as one JSON file that tables and figures are made of."""

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AwareDatetime, ConfigDict, Field, ValidationError, model_validator

from conlst.contract.config import Section
from conlst.contract.errors import DataError
from conlst.reports import Protocol

SCHEMA: Literal[1] = 1
PLAIN = "plain"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"
_MEASURES = {"n", "correct", "accuracy", "ece", "bands", "coverage"}
_CHANGES = {"n", "before", "after", "accuracy_gain", "bands", "histogram", "coverage", "mcnemar"}


class Stage(Section):
    """What one training stage took and showed.

    Attributes:
        seconds: wall time of the stage; ``None`` if it was interrupted, or killed right after it, for then nobody knows.
        steps: optimiser steps.
        trace: optimiser step and accuracy of the pool after it (figure 5).
        selected, precision: what self-training took and how much of it was right, a round each.
    """

    name: str = Field(min_length=1)
    seconds: float | None = Field(ge=0)
    steps: int = Field(ge=0)
    trace: tuple[tuple[int, float], ...] | None = None
    selected: list[Any] | None = None
    precision: list[Any] | None = None


class Machine(Section):
    """What a cell ran on.

    Attributes:
        threads: of the process that computed the cell.
        jobs: such processes at the same time; times of one cell are comparable within one number only.
    """

    cores: int = Field(ge=1)
    threads: int = Field(ge=1)
    jobs: int = Field(1, ge=1)
    model: str


class Cell(Section):
    """One system, language, protocol, tested split and seed.

    Attributes:
        schema_: version of this form; ``schema`` in the file.
        describes: the system in one clause, for a reader.
        protocol: as :mod:`conlst.reports` has them; a model that was not adapted is ``supervised`` on English.
        pool: unlabelled pairs that the model was adapted on; 0 if it was not.
        tested: the split that ``evaluation`` measures.
        started_from: name of the stage-0 model; ``plain`` is ordinary fine-tuning.
        languages_joint: the languages, if one model was trained for several.
        evaluation: of :func:`conlst.reports.metrics.evaluate_probabilities`.
        comparison: of :func:`conlst.reports.metrics.compare`, with the zero-shot model that it started from.
        dirty: whether the code differed from ``commit``.
    """

    model_config = ConfigDict(
        validate_by_name=True, validate_by_alias=True, serialize_by_alias=True, ser_json_inf_nan="constants"
    )

    schema_: Literal[1] = Field(SCHEMA, alias="schema")
    system: str = Field(pattern=NAME)
    describes: str
    language: str = Field(pattern=NAME)
    protocol: Protocol
    pool: int = Field(ge=0)
    tested: str = Field(pattern=NAME)
    seed: int = Field(ge=0)
    started_from: str = Field(pattern=NAME)
    languages_joint: tuple[str, ...] | None
    evaluation: dict[str, Any]
    comparison: dict[str, Any] | None
    stages: tuple[Stage, ...]
    config: dict[str, Any]
    config_digest: str
    commit: str
    dirty: bool
    versions: dict[str, str]
    machine: Machine
    finished: AwareDatetime

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if (self.protocol in ("inductive", "transductive")) != self.adapted:
            raise ValueError(f"the protocol {self.protocol} does not go with a pool of {self.pool} pairs")
        if missing := sorted(_MEASURES - self.evaluation.keys()):
            raise ValueError(f"evaluation lacks {', '.join(missing)}")
        if self.comparison is None:
            return self
        if not self.adapted:
            raise ValueError("a model that was not adapted started from no other; its comparison must be null")
        if missing := sorted(_CHANGES - self.comparison.keys()):
            raise ValueError(f"comparison lacks {', '.join(missing)}")
        after = self.comparison["after"]
        if (after["n"], after["correct"]) != (self.evaluation["n"], self.evaluation["correct"]):
            raise ValueError("comparison and evaluation are of other pairs or other predictions")
        return self

    @property
    def path(self) -> Path:
        """Where the cell lies in its folder."""
        return cell_path(self.system, self.language, self.protocol, self.tested, self.seed)

    @property
    def adapted(self) -> bool:
        """Whether the model saw unlabelled pairs of the language; else it is its stage-0 model."""
        return self.pool > 0

    @property
    def accuracy(self) -> float:
        return float(self.evaluation["accuracy"])

    @property
    def n(self) -> int:
        """Pairs that the accuracy is measured on."""
        return int(self.evaluation["n"])

    def __str__(self) -> str:
        return f"{self.system}, {self.language}, {self.protocol}, seed {self.seed}, tested on {self.tested}"


def cell_path(system: str, language: str, protocol: Protocol, tested: str, seed: int) -> Path:
    """Where a cell lies below the folder of results."""
    return Path(system) / f"{language}-{protocol}-{tested}-{seed}.json"


def write_cell(folder: Path, cell: Cell) -> Path:
    """Write a cell to its place below ``folder``, whole or not at all; returns the file.

    Raises:
        ValueError: if a number is not finite.
    """
    path = folder / cell.path
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(cell.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text + "\n", encoding="utf-8")
    return partial.replace(path)


def read_cell(path: Path) -> Cell:
    """Read one cell.

    Raises:
        DataError: if the file is no cell, or one of another schema.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:
        raise DataError(f"{path} is not JSON in UTF-8 ({error}); delete it and run its cell again") from None
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if schema != SCHEMA:
        raise DataError(
            f"{path} has the schema {schema!r} and this conlst reads {SCHEMA}; run the cell again, or read it with its own commit"
        )
    try:
        return Cell.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'cell'}: {e['msg']}" for e in error.errors())
        raise DataError(f"{path} is no cell ({problems}); delete it and run the cell again") from None


def read_cells(folder: Path) -> list[Cell]:
    """All cells ``<system>/<language>-<protocol>-<tested>-<seed>.json`` below ``folder``, by path.

    Raises:
        DataError: as :func:`read_cell`, if ``folder`` is none, or if a file holds another cell than its name says.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder of cells; run an experiment first")
    cells = []
    for path in sorted(folder.glob("*/*.json")):
        cell = read_cell(path)
        if path.relative_to(folder) != cell.path:
            raise DataError(f"{path} holds the cell of {cell.path}; move it there")
        cells.append(cell)
    return cells


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
