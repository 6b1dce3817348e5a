"""Which cells can be compared, and what comparable cells say together. Nothing is compared but equal language, seed and split."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median, stdev
from typing import Any, Literal, NamedTuple

from conlst.bench.cell import PLAIN, Cell
from conlst.contract.config import Config
from conlst.contract.errors import ConfigError, DataError

Series = dict[str, dict[int, float]]
"""Language → seed → value."""

Adapted = Literal["inductive", "transductive"]

# two evaluations of one model by other numbers of threads may differ in a near-tie or two, another model differs by more
_SAME_ACCURACY = 0.001
# differences of accuracies that are equal by count can miss 0 by rounding
_ROUNDING = 1e-9
_DEFAULTS: dict[str, Any] = Config(name="defaults").to_dict()


class Summary(NamedTuple):
    """``deviation`` is the sample standard deviation; one value has none."""

    mean: float
    deviation: float | None
    n: int


def summary(values: Sequence[float]) -> Summary | None:
    """Mean and sample standard deviation; ``None`` for no values."""
    if not values:
        return None
    return Summary(math.fsum(values) / len(values), stdev(values) if len(values) > 1 else None, len(values))


def group(groups: Mapping[str, Sequence[str]], name: str) -> Sequence[str]:
    """The systems of a group.

    Raises:
        ConfigError: if there is no such group.
    """
    if name not in groups:
        raise ConfigError(f"no group of systems is named {name!r}; there are {', '.join(groups) or 'none'}")
    return groups[name]


def single(groups: Mapping[str, Sequence[str]], name: str) -> str:
    """The one system of a group.

    Raises:
        ConfigError: if the group is missing or not one system.
    """
    systems = group(groups, name)
    if len(systems) != 1:
        raise ConfigError(f"the group {name!r} is one system, not {len(systems)}: {', '.join(systems)}")
    return systems[0]


class Results:
    """Cells that go together.

    Attributes:
        cells: by system, language, split, protocol and seed.

    Raises:
        DataError: if two cells are of the same run or the same zero-shot model, if a split has another number of pairs in another
            cell, or if the seeds of a system differ in the settings of a stage that they ran.
    """

    def __init__(self, cells: Iterable[Cell]) -> None:
        self.cells = sorted(cells, key=lambda cell: (*_run(cell), cell.seed))
        _refuse_twins(self.cells, lambda cell: (*_run(cell), cell.seed))
        zero_shot = [cell for cell in self.cells if not cell.adapted]
        _refuse_twins(zero_shot, _stage_0)
        self._zero_shot = {_stage_0(cell): cell.accuracy for cell in zero_shot}
        _refuse_differences(self.cells, lambda cell: (cell.language, cell.tested), lambda cell: {"number of pairs": cell.n})
        _refuse_differences(self.cells, _run, _settings)

    def of(self, system: str, protocol: Adapted, tested: str) -> list[Cell]:
        """The cells of a system for a table of ``protocol``. A system that adapts to nothing stands in the tables of both.

        Raises:
            DataError: if the system has cells of ``protocol`` and zero-shot ones.
        """
        found = [cell for cell in self.cells if cell.system == system and cell.tested == tested]
        found = [cell for cell in found if cell.protocol == protocol or not cell.adapted]
        if len({cell.adapted for cell in found}) > 1:
            raise DataError(f"{system} has both {protocol} and zero-shot cells; give the zero-shot ones a system of their own")
        return found

    def gain(self, cell: Cell) -> float | None:
        """Accuracy gained over the zero-shot model that the cell started from; ``None`` if that is unknown or it is one itself.

        Raises:
            DataError: if the cell's comparison and the zero-shot cell are of different models.
        """
        if not cell.adapted:
            return None
        measured = self._zero_shot.get(_stage_0(cell))
        if cell.comparison is None:
            return None if measured is None else cell.accuracy - measured
        before = float(cell.comparison["before"]["accuracy"])
        if measured is not None and abs(before - measured) > _SAME_ACCURACY:
            raise DataError(
                f"{cell} was compared with a {cell.started_from} model of accuracy {before:.4f}, but the zero-shot cell of that"
                f" model and seed says {measured:.4f}; run the older of the two again"
            )
        return cell.accuracy - before

    def gain_over_plain(self, cell: Cell) -> float | None:
        """Accuracy gained over the plain zero-shot model of the same seed, for cells that started from another stage-0 model."""
        if cell.started_from == PLAIN:
            return None
        plain = self._zero_shot.get((PLAIN, cell.language, cell.tested, cell.seed))
        return None if plain is None else cell.accuracy - plain


def series(cells: Iterable[Cell], value: Callable[[Cell], float | None]) -> Series:
    """A value of each cell by language and seed; cells without it are left out."""
    table: Series = defaultdict(dict)
    for cell in cells:
        if (number := value(cell)) is not None:
            table[cell.language][cell.seed] = number
    return dict(table)


def difference(one: Series, other: Series) -> Series:
    """``one - other`` for the languages and seeds that both have."""
    shared = {
        language: {seed: number - other[language][seed] for seed, number in seeds.items() if seed in other[language]}
        for language, seeds in one.items()
        if language in other
    }
    return {language: seeds for language, seeds in shared.items() if seeds}


def over_languages(table: Series, languages: Iterable[str]) -> tuple[Summary | None, int]:
    """Mean over those of ``languages`` that ``table`` has, summarised over the seeds that all of them have; their number.

    A seed that lacks a language would be averaged over easier or harder languages than the others, so it is left out.
    """
    rows = [table[language] for language in languages if language in table]
    seeds = sorted(set.intersection(*(set(row) for row in rows))) if rows else []
    return summary([math.fsum(row[seed] for row in rows) / len(rows) for seed in seeds]), len(rows)


def worse(gains: Series, languages: Iterable[str]) -> tuple[int, int]:
    """How many of ``languages`` lost, by the mean over their seeds; how many there are to judge by."""
    means = [math.fsum(gains[language].values()) / len(gains[language]) for language in languages if language in gains]
    return sum(mean < -_ROUNDING for mean in means), len(means)


def grouped(cells: Iterable[Cell], key: Callable[[Cell], Any]) -> dict[Any, list[Cell]]:
    """Cells of equal ``key``, by ``key``."""
    found: dict[Any, list[Cell]] = defaultdict(list)
    for cell in sorted(cells, key=key):
        found[key(cell)].append(cell)
    return dict(found)


def standard_errors(cells: Sequence[Cell]) -> str:
    """How far chance alone moves an accuracy, and a difference of two models on the same pairs, by number of pairs."""
    sentences = []
    for n, some in sorted(grouped(cells, lambda cell: cell.n).items()):
        sentence = _standard_error(n, [cell.accuracy for cell in some])
        if errors := [_paired_error(cell.comparison) for cell in some if cell.comparison is not None]:
            sentence += (
                f" and {100 * median(errors):.2f} points for a gain over zero-shot, from the pairs that changed sides as in"
                f" McNemar's test ({'one cell' if len(errors) == 1 else f'median of {len(errors)} cells'})"
            )
        sentences.append(sentence + ".")
    return " ".join(sentences)


def standard_errors_of_changes(pairs: Sequence[tuple[Cell, Cell]]) -> str:
    """How far chance alone moves an accuracy of these cells and a difference within a pair of them, by number of tested pairs."""
    sentences = []
    for n in sorted({cell.n for cell, _ in pairs}):
        some = [pair for pair in pairs if pair[0].n == n]
        sentence = _standard_error(n, [cell.accuracy for pair in some for cell in pair])
        # cells do not hold which pairs changed sides between two adapted systems, only between each and where it started
        errors = [
            math.hypot(_paired_error(one.comparison), _paired_error(other.comparison))
            for one, other in some
            if one.comparison is not None and other.comparison is not None and one.started_from == other.started_from
        ]
        if errors:
            sentence += (
                f" and at most about {100 * median(errors):.2f} points for the change in one language and seed"
                f" ({'one change' if len(errors) == 1 else f'median of {len(errors)} changes'})"
            )
        sentences.append(sentence + ".")
    if any("change" in sentence for sentence in sentences):
        sentences.append(
            "That takes the gains of the two systems over their one zero-shot model as independent; as a rule they go together,"
            " and the error of their difference is smaller."
        )
    return " ".join(sentences)


def _standard_error(n: int, accuracies: Sequence[float]) -> str:
    share = math.fsum(accuracies) / len(accuracies)
    return f"One standard error at {n:,} pairs is {100 * math.sqrt(share * (1 - share) / n):.2f} points for an accuracy"


def _paired_error(comparison: Mapping[str, Any]) -> float:
    """Standard error of a difference of two shares of the same ``n`` pairs, from the pairs that changed sides."""
    n, lost, won = comparison["n"], comparison["mcnemar"]["only_before"], comparison["mcnemar"]["only_after"]
    return math.sqrt(lost + won - (won - lost) ** 2 / n) / n


def _run(cell: Cell) -> tuple[str, str, str, str]:
    return cell.system, cell.language, cell.tested, cell.protocol


def _stage_0(cell: Cell) -> tuple[str, str, str, int]:
    return cell.started_from, cell.language, cell.tested, cell.seed


def _settings(cell: Cell) -> dict[str, Any]:
    """Only of the stages that ran: settings of others may have changed between two runs and decide nothing.

    A setting that a cell is too old to have is at its default, with which a new option changes nothing.
    """
    ran = {stage.name: _DEFAULTS.get(stage.name, {}) | (cell.config.get(stage.name) or {}) for stage in cell.stages}
    return {f"{name}.{key}": value for name, section in ran.items() for key, value in section.items()}


def _refuse_twins(cells: Iterable[Cell], key: Callable[[Cell], Any]) -> None:
    seen: dict[Any, Cell] = {}
    for cell in cells:
        if (twin := seen.setdefault(key(cell), cell)) is not cell:
            raise DataError(f"two cells stand for the same: {twin} and {cell}; name the systems or their stage-0 models apart")


def _refuse_differences(cells: Iterable[Cell], key: Callable[[Cell], Any], facts: Callable[[Cell], dict[str, Any]]) -> None:
    first: dict[Any, Cell] = {}
    for cell in cells:
        other = first.setdefault(key(cell), cell)
        old, new = facts(other), facts(cell)
        if differing := sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name)):
            name = differing[0]
            raise DataError(
                f"{other} and {cell} cannot be compared: {name} is {old.get(name)} and {new.get(name)}; run the older again"
            )
