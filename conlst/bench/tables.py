"""Cells as the Markdown tables of the results page. Every number is computed here from the cells' JSON; none is typed in.

A value with ± is a mean over seeds and their sample standard deviation; the number of seeds stands in brackets. ``groups`` maps
names of groups to names of systems:

* ``method``: the one system that the others are held against;
* ``deciding``: the rows of the main table, in this order; ``rivals``: those that the method must beat;
* ``ablations``: the method without a part;
* ``base`` and ``variants``, if changes were tried on another system than the method: that one, and it with a part changed;
* ``calibration``: the systems whose confidence is looked at (table 4, figures 3 to 5 of the paper).
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from statistics import median
from typing import Any, NamedTuple, get_args

from conlst.bench.cell import Cell
from conlst.bench.pairing import (
    Adapted,
    Results,
    Series,
    Summary,
    difference,
    group,
    grouped,
    over_languages,
    series,
    single,
    standard_errors,
    standard_errors_of_changes,
    summary,
    worse,
)
from conlst.contract.errors import DataError
from conlst.stages.evaluate import SOURCE_LANGUAGE

_NOTHING = "–"
_NO_CELLS = "No cells yet."
_COVERAGE = (20, 50)
_STAGE_0 = "source"
_MARKER = re.compile(r"<!-- (?:bench:([\w-]+)|/bench) -->")


class _Run(NamedTuple):
    """What tells the trainings of a stage apart: cells that agree in all of it share one, for no two take the same seconds.

    Of an interrupted one, whose seconds are not known, ``told`` is all that its cells say of it.
    """

    languages: tuple[str, ...]
    seed: int
    steps: int
    seconds: float | None
    told: str


def blocks(cells: Iterable[Cell], groups: Mapping[str, Sequence[str]], development: Sequence[str]) -> dict[str, str]:
    """All tables by the name of their block.

    Args:
        development: the languages that choices were made on.

    Raises:
        DataError: if cells do not go together, as :class:`~conlst.bench.pairing.Results` says.
        ConfigError: if a group is missing.
    """
    results = Results(cells)
    return {
        "rows": rows(results, development),
        "main": main(results, groups, development),
        "table4": table4(results, groups),
        "ablations": ablations(results, groups),
        "cost": cost(results),
    }


def fill(document: str, tables: Mapping[str, str]) -> str:
    """Put each table between its ``<!-- bench:NAME -->`` and the next ``<!-- /bench -->``; all other text stays.

    Raises:
        DataError: if markers are unbalanced or twice, if a table has no place, or a place no table.
    """
    parts, open_name, done, kept_to = [], None, set(), 0
    for marker in _MARKER.finditer(document):
        name = marker.group(1)
        line = document.count("\n", 0, marker.start()) + 1
        if (name is None) == (open_name is None):
            raise DataError(f"line {line}: {marker.group()} without {'an opening' if name is None else 'the closing'} one before")
        if name is None:
            kept_to = marker.start()
            open_name = None
            continue
        if name in done or name not in tables:
            raise DataError(f"line {line}: {marker.group()} stands {'twice' if name in done else 'for no table'}; take it out")
        if _MARKER.search(tables[name]):
            raise DataError(f"the table {name} holds a marker itself and would break the page")
        parts += [document[kept_to : marker.end()], f"\n{tables[name].strip()}\n"]
        open_name = name
        done.add(name)
    if open_name is not None:
        raise DataError(f"<!-- bench:{open_name} --> is not closed; add <!-- /bench -->")
    if missing := [name for name in tables if name not in done]:
        raise DataError(f"no place for the table {missing[0]}; add <!-- bench:{missing[0]} --> and <!-- /bench -->")
    return "".join([*parts, document[kept_to:]])


def rows(results: Results, development: Sequence[str]) -> str:
    """Every system on the development languages, a row a language, split and protocol."""
    runs = grouped(
        (cell for cell in results.cells if cell.language in development),
        lambda cell: (
            cell.language,
            cell.tested,
            cell.adapted,
            cell.protocol,
            cell.system,
            cell.started_from,
            cell.pool,
        ),
    )
    table = []
    for cells in runs.values():
        one = cells[0]
        taken = [[stage.seconds for stage in cell.stages if stage.name != _STAGE_0] for cell in cells if cell.adapted]
        seconds = [_total(stages) for stages in taken if None not in stages]
        table.append(
            [
                *(one.language, one.tested, one.protocol, _text(one.system), _text(one.started_from)),
                f"{one.pool:,}" if one.pool else _NOTHING,
                f"{len(cells)}",
                _value(summary([cell.accuracy for cell in cells])),
                _gain(_summary_of(cells, results.gain)),
                _gain(_summary_of(cells, results.gain_over_plain)),
                f"{math.fsum(cell.evaluation['ece'] for cell in cells) / len(cells):.3f}",
                f"{median(seconds):,.0f}" if seconds else _NOTHING,
            ]
        )
    head = ["language", "tested on", "protocol", "system", "started from", "pool", "seeds", "accuracy", "gain over zero-shot"]
    note = (
        "Accuracy in % and gains in points, ± the standard deviation over seeds, their number in brackets. The first gain is over"
        " the stage-0 model that the system started from, the second over the plain one if that is another, both with the same"
        " seed. ECE is a mean over seeds. Seconds: median of the stages after stage 0 together, where none was interrupted."
    )
    shown = [cell for cells in runs.values() for cell in cells]
    return _table([*head, "gain over plain zero-shot", "ECE", "seconds"], table, 5, [note, standard_errors(shown)])


def main(results: Results, groups: Mapping[str, Sequence[str]], development: Sequence[str]) -> str:
    """The deciding systems on the test pairs of all languages, inductive and transductive apart."""
    parts = [f"**{protocol.capitalize()}**\n\n{_main(results, groups, development, protocol)}" for protocol in get_args(Adapted)]
    described = _described(results, [single(groups, "method"), *group(groups, "deciding"), *group(groups, "rivals")])
    return "\n\n".join([*parts, *(["\n".join(described)] if described else [])])


def table4(results: Results, groups: Mapping[str, Sequence[str]]) -> str:
    """Confidence bands and accuracy at equal coverage, before and after (the paper's table 4)."""
    systems = group(groups, "calibration")
    runs = grouped(
        (cell for cell in results.cells if cell.system in systems and cell.comparison is not None),
        lambda cell: (cell.tested, cell.protocol, systems.index(cell.system), cell.language, cell.pool),
    )
    names: list[str] = []
    table = []
    for cells in runs.values():
        one, comparisons = cells[0], [cell.comparison for cell in cells if cell.comparison is not None]
        for comparison in comparisons:
            here = [_band_name(band) for band in comparison["bands"]]
            if (names := names or here) != here:
                raise DataError(f"{one} has the bands {', '.join(here)} and others {', '.join(names)}; evaluate all alike")
        table.append(
            [
                *(_text(one.system), one.language, one.protocol, one.tested),
                *(f"{one.n:,}", f"{len(cells)}"),
                *(_band([comparison["bands"][place] for comparison in comparisons]) for place in range(len(names))),
                *(_covered(comparisons, percent) for percent in _COVERAGE),
            ]
        )
    head = ["system", "language", "protocol", "tested on", "pairs", "seeds", *names, *(f"cleanest {p} %" for p in _COVERAGE)]
    note = (
        "Before → after, each band with its number of pairs: a band can get clean by being emptied. The last columns hold equally"
        " many pairs, the most confident ones, on both sides. Over several seeds the counts and the accuracies at equal coverage"
        " are means, and the accuracy of a band is that of all its pairs together."
    )
    return _table(head, table, 4, [note])


def ablations(results: Results, groups: Mapping[str, Sequence[str]]) -> str:
    """What changing a part does, to the method and to the base if there is one, each row against its own of the two."""
    parts = [_changes(results, single(groups, "method"), group(groups, "ablations"))]
    if {"base", "variants"} & groups.keys():
        parts.append(_changes(results, single(groups, "base"), group(groups, "variants")))
    return "\n\n".join(parts)


def cost(results: Results) -> str:
    """Steps and seconds of each stage, the machines, and which code the cells come from."""
    runs: dict[tuple[bool, str, int, int], set[_Run]] = defaultdict(set)
    for cell in results.cells:
        joint = cell.languages_joint or ()
        for stage in cell.stages:
            row, languages = (True, stage.name, cell.pool, len(joint)), joint or (cell.language,)
            if stage.name == _STAGE_0:
                # all the cells that started from a model report the one training of it, whatever their language
                row, languages = (False, f"stage 0, {cell.started_from}", 0, 0), (SOURCE_LANGUAGE,)
            told = stage.model_dump_json() if stage.seconds is None else ""
            runs[row].add(_Run(languages, cell.seed, stage.steps, stage.seconds, told))
    table = [
        [
            _text(name),
            (f"{pool:,}" if pool else _NOTHING) + (f" in {joint} languages" if joint else ""),
            f"{len(found)}",
            _median_and_range([run.steps for run in found], ",.0f"),
            _median_and_range([run.seconds for run in found if run.seconds is not None], ",.0f"),
            _median_and_range([run.seconds / run.steps for run in found if run.seconds is not None and run.steps], ".1f"),
        ]
        for (_, name, pool, joint), found in sorted(runs.items())
    ]
    note = (
        "A run that several cells share, of one system or of many, counts once. Medians over the runs of all systems, with the"
        " least and the most in brackets; what a system took stands in the table of the development languages. Seconds are those"
        " of runs that were not interrupted."
    )
    head = ["stage", "pool", "runs", "steps", "seconds", "seconds a step"]
    return _table(head, table, 1, [note, _machines(results.cells), _provenance(results.cells)])


def _changes(results: Results, base: str, systems: Sequence[str]) -> str:
    """Each system against ``base`` on the same language, seed, split and protocol."""
    described = _descriptions(results)
    table, compared, unmatched = [], [], list(systems)
    for tested in sorted({cell.tested for cell in results.cells}):
        for protocol in get_args(Adapted):
            bases = {(cell.language, cell.seed): cell for cell in results.of(base, protocol, tested)}
            for system in systems:
                cells = results.of(system, protocol, tested)
                pairs = [(cell, bases[place]) for cell in cells if (place := (cell.language, cell.seed)) in bases]
                if not pairs:
                    continue
                compared += pairs
                unmatched = [name for name in unmatched if name != system]
                changes = [cell.accuracy - before.accuracy for cell, before in pairs]
                table.append(
                    [
                        *(tested, protocol, _text(system), described[system]),
                        ", ".join(dict.fromkeys(cell.language for cell, _ in pairs)),
                        *(
                            f"{100 * math.fsum(cell.accuracy for cell in side) / len(side):.2f}"
                            for side in zip(*pairs, strict=True)
                        ),
                        _gain(summary(changes)),
                        f"{sum(change < 0 for change in changes)} of {len(changes)}",
                    ]
                )
    name = _text(base)
    head = ["tested on", "protocol", "system", "what it is", "languages", "accuracy", f"{name} there", "change", "lower in"]
    note = (
        f"Change: the accuracy of the row's system minus that of {name}, in points, whether the system takes a part of {name}"
        f" away, adds one or exchanges one. Above zero the row's system is the better one, below zero {name} is. Both have the"
        " same language, seed, split and protocol; in brackets the number of such pairs of cells, ± the standard deviation over"
        " them; the accuracies are means over these cells alone."
    )
    missing = f"Without a cell to compare yet: {', '.join(map(_text, unmatched))}." if unmatched else ""
    changed = _table(head, table, 5, [note, standard_errors_of_changes(compared), missing])
    return f"**Changes of {name}**\n\n{changed}"


def _main(results: Results, groups: Mapping[str, Sequence[str]], development: Sequence[str], protocol: Adapted) -> str:
    systems, method = group(groups, "deciding"), single(groups, "method")
    cells = {system: results.of(system, protocol, "test") for system in {*systems, method, *group(groups, "rivals")}}
    shown = [cell for found in cells.values() for cell in found]
    if not any(cell.adapted for cell in shown):
        return _NO_CELLS
    languages = sorted({cell.language for cell in shown})
    others = [language for language in languages if language not in development]

    def line(name: str, sees: str, table: Series, show: Callable[[Summary | None], str], *, gain: bool) -> list[str]:
        lost, judged = worse(table, languages)
        return [
            *(name, sees),
            *(show(summary(list(table.get(language, {}).values()))) for language in languages),
            *(_mean(table, some, show) for some in (languages, others)),
            (f"{lost} of {judged}" if judged else _NOTHING) if gain else "",
        ]

    table = []
    for system in systems:
        sees = (protocol if cells[system][0].adapted else "zero-shot") if cells[system] else _NOTHING
        table.append(line(_text(system), sees, series(cells[system], _accuracy), _value, gain=False))
    for system in systems:
        for start, gain in (("zero-shot", results.gain), ("plain zero-shot", results.gain_over_plain)):
            if gains := series(cells[system], gain):
                table.append(line(f"gain of {_text(system)} over {start}", "", gains, _gain, gain=True))
    over_rivals = {
        rival: gains
        for rival in group(groups, "rivals")
        if (gains := difference(series(cells[method], _accuracy), series(cells[rival], _accuracy)))
    }
    best = _best_rival(over_rivals, languages)
    for rival, gains in over_rivals.items():
        name = f"gain of {_text(method)} over {_text(rival)}" + (", the best rival" if rival == best else "")
        table.append(line(name, "", gains, _gain, gain=True))
    for ablation in (name for name in group(groups, "ablations") if name in systems and name not in over_rivals):
        if gains := difference(series(cells[method], _accuracy), series(cells[ablation], _accuracy)):
            table.append(line(f"gain of {_text(method)} over {_text(ablation)}, an ablation of it", "", gains, _gain, gain=True))
    marked = [f"{language}*" if language in development else language for language in languages]
    note = (
        "Accuracy in % on the test pairs and gains in points, ± the standard deviation over seeds, their number in brackets."
        " Gains compare equal languages and seeds only, and a mean holds the seeds that all its languages have. A gain over"
        " zero-shot is over the stage-0 model that the system started from; worse: languages whose mean gain is below zero."
        " The best rival is the one that the method gains least over, among those that share the most languages with it."
        " Means over different numbers of languages do not compare. * development language: choices were made on it."
    )
    care = (
        "The languages are translations of the same pairs and three pairs share a premise, so a mean over languages is less"
        " certain than its many pairs suggest."
    )
    head = ["system", "protocol", *marked, "mean", "mean without *", "worse"]
    return _table(head, table, 2, [note, standard_errors(shown), care])


def _best_rival(over_rivals: Mapping[str, Series], languages: Sequence[str]) -> str | None:
    means = {rival: over_languages(gains, languages) for rival, gains in over_rivals.items()}
    known = {rival: (-shared, mean.mean) for rival, (mean, shared) in means.items() if mean is not None}
    return min(known, key=lambda rival: known[rival], default=None)


def _machines(cells: Sequence[Cell]) -> str:
    if not cells:
        return ""
    machines = Counter(
        f"{_text(cell.machine.model)} with {cell.machine.cores} cores, threads {cell.machine.threads}, jobs {cell.machine.jobs}"
        for cell in cells
    )
    listed = "; ".join(f"{machine} ({count} cell{'s' if count > 1 else ''})" for machine, count in sorted(machines.items()))
    return f"Times compare on one machine and by equal threads and jobs only: {listed}."


def _provenance(cells: Sequence[Cell]) -> str:
    if not cells:
        return ""
    commits = Counter(cell.commit[:10] for cell in cells)
    dirty = sum(cell.dirty for cell in cells)
    listed = ", ".join(f"{_text(commit)} ({count})" for commit, count in sorted(commits.items()))
    return f"{len(cells)} cells, by commit: {listed}; {dirty} of them from a tree with changes that were not committed."


def _described(results: Results, systems: Iterable[str]) -> list[str]:
    descriptions = _descriptions(results)
    return [f"- {_text(system)}: {descriptions[system]}" for system in dict.fromkeys(systems) if system in descriptions]


def _descriptions(results: Results) -> dict[str, str]:
    return {cell.system: _text(cell.describes) for cell in results.cells}


def _band(pairs: Sequence[Mapping[str, Any]]) -> str:
    """One band of several seeds, before → after."""
    return " → ".join(_band_side([pair[side] for pair in pairs]) for side in ("before", "after"))


def _band_side(bands: Sequence[Mapping[str, Any]]) -> str:
    count = sum(band["count"] for band in bands)
    if not count:
        return "none"
    return f"{100 * sum(band['correct'] for band in bands) / count:.1f} % of {count / len(bands):,.0f}"


def _covered(comparisons: Sequence[Mapping[str, Any]], percent: int) -> str:
    found = [row for comparison in comparisons for row in comparison["coverage"] if row["percent"] == percent]
    return " → ".join(f"{100 * math.fsum(row[side] for row in found) / len(found):.1f}" for side in ("before", "after"))


def _band_name(band: Mapping[str, Any]) -> str:
    lower, upper = f"{band['lower']:g}", f"{band['upper']:g}"
    return {"high": f"> {lower}", "middle": f"{lower}-{upper}", "low": f"< {upper}"}[band["band"]]


def _accuracy(cell: Cell) -> float:
    return cell.accuracy


def _summary_of(cells: Iterable[Cell], value: Callable[[Cell], float | None]) -> Summary | None:
    return summary([number for cell in cells if (number := value(cell)) is not None])


def _value(found: Summary | None) -> str:
    return _NOTHING if found is None else f"{100 * found.mean:.2f}{_deviation(found)} ({found.n})"


def _gain(found: Summary | None) -> str:
    if found is None:
        return _NOTHING
    # the z keeps a loss too small to show from being written as -0
    return f"{100 * found.mean:+z.2f}{_deviation(found)} ({found.n})".replace("-", "−")


def _total(seconds: Iterable[float | None]) -> float:
    return math.fsum(each for each in seconds if each is not None)


def _median_and_range(values: Sequence[float], form: str) -> str:
    if not values:
        return _NOTHING
    middle = f"{median(values):{form}}"
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def _deviation(found: Summary) -> str:
    return "" if found.deviation is None else f" ± {100 * found.deviation:.2f}"


def _mean(table: Series, languages: Sequence[str], show: Callable[[Summary | None], str]) -> str:
    found, count = over_languages(table, languages)
    return _NOTHING if not count else f"{show(found)}, {count} language{'s' if count > 1 else ''}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]], texts: int, notes: Sequence[str]) -> str:
    """Markdown; the first ``texts`` columns are left-aligned, the others hold numbers."""
    if not body:
        return _NO_CELLS
    rule = ["---" if place < texts else "---:" for place in range(len(head))]
    lines = [f"| {' | '.join(row)} |" for row in (head, rule, *body)]
    return "\n\n".join(["\n".join(lines), *(note for note in notes if note)])


def _text(name: str) -> str:
    """A name as it is: neither markup nor a marker nor a cell's border can come from it."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", escape(" ".join(name.split()), quote=False))
