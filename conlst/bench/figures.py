"""Cells as pictures: the paper's figures 3 to 5 in small multiples, and the gain of each system by language with every seed."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from conlst.bench.cell import Cell
from conlst.bench.pairing import Adapted, Results, group, series
from conlst.reports.style import (
    AFTER,
    CLEAN,
    INK,
    NOISY,
    QUIET,
    WHOLE,
    card,
    legend_below,
    percent,
    tenths,
    thousands,
)

_COLUMNS = 3
_LEAST_HEIGHT = 0.02  # of an axis of accuracies
# the calibrating systems of figure 5, then markers: a grey copy still tells them apart
_LINES = ((CLEAN, "o"), (NOISY, "s"), (AFTER, "^"), ("#CC79A7", "D"), ("#56B4E9", "v"), (QUIET, "x"))
_points = FuncFormatter(lambda value, _: f"{100 * value:+z.1f}" if value else "0")


def draw(cells: Iterable[Cell], groups: Mapping[str, Sequence[str]], languages: Sequence[str], folder: Path) -> list[Path]:
    """Draw all figures that the cells allow.

    Args:
        groups: ``calibration`` for figures 3 to 5, ``deciding`` for the gains; see :mod:`conlst.bench.tables`.
        languages: shown in figures 3 to 5, in this order. The gains show all.

    Returns:
        The files: ``noise-<system>-<protocol>-<split>.svg``, ``training-<protocol>-<split>.svg``, ``gain-<protocol>.svg``.

    Raises:
        DataError: if cells do not go together, as :class:`~conlst.bench.pairing.Results` says.
        ConfigError: if a group is missing.
    """
    results = Results(cells)
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[Path] = []
    for protocol in get_args(Adapted):
        for tested in sorted({cell.tested for cell in results.cells}):
            calibrated = {system: results.of(system, protocol, tested) for system in group(groups, "calibration")}
            for system, found in calibrated.items():
                if shown := _first_seeds(found, languages):
                    path = folder / f"noise-{system}-{protocol}-{tested}.svg"
                    drawn.append(noise_by_confidence(shown, path))
            if traced := _traced(calibrated, languages):
                drawn.append(accuracy_along_stage_1(traced, folder / f"training-{protocol}-{tested}.svg"))
        gained = {system: results.of(system, protocol, "test") for system in group(groups, "deciding")}
        gained = {system: found for system, found in gained.items() if series(found, results.gain)}
        if gained:
            drawn.append(gain_by_language(results, gained, folder / f"gain-{protocol}.svg"))
    return drawn


def noise_by_confidence(cells: Sequence[Cell], path: Path) -> Path:
    """Noisy and clean pairs over confidence, a row a language, before and after (the paper's figures 3 and 4).

    Args:
        cells: of one system, protocol and split with their comparisons, one a language.
    """
    one = cells[0]
    title, facts = f"{one.system}: clean and noisy pairs by confidence", f"{_pairs(cells)} of {one.tested}, {_adapted_on(cells)}"
    with card(path, (9.6, 1.6 + 2.3 * len(cells)), title, facts, _languages(cells), one.protocol) as figure:
        panels = figure.subplots(len(cells), 2, sharex=True, sharey=True, squeeze=False)
        for cell, row in zip(cells, panels, strict=True):
            for side, panel in zip(("before", "after"), row, strict=True):
                noisy, clean = _noise(panel, (cell.comparison or {})["histogram"], side)
                heading = f"{cell.language} {side}, seed {cell.seed}: {noisy:,} noisy, {clean:,} clean"
                panel.set_title(heading, loc="left", fontsize=9)
            row[0].set_ylabel("pairs")
        for panel in panels[-1]:
            panel.set_xlabel("confidence")
        panels[0][0].xaxis.set_major_formatter(percent)
        panels[0][0].yaxis.set_major_locator(MaxNLocator("auto", **WHOLE))
        panels[0][0].yaxis.set_major_formatter(thousands)
        legend_below(figure, panels[0][0].get_legend_handles_labels()[0])
    return path


def accuracy_along_stage_1(traced: Mapping[str, Mapping[str, Sequence[Cell]]], path: Path) -> Path:
    """Accuracy of the pool along stage 1, a panel a language, a line a seed (the paper's figure 5).

    Args:
        traced: language → system → cells with a trace, of one protocol and split.
    """
    systems = list(dict.fromkeys(system for panel in traced.values() for system in panel))
    cells = [cell for panel in traced.values() for found in panel.values() for cell in found]
    protocol = cells[0].protocol
    columns = min(_COLUMNS, len(traced))
    rows = -(-len(traced) // columns)
    title, facts = "Accuracy along stage 1", f"{_adapted_on(cells)}, whose accuracy this is; a line a seed"
    with card(path, (max(6.4, 3.4 * columns), 1.8 + 2.4 * rows), title, facts, _languages(cells), protocol) as figure:
        panels = figure.subplots(rows, columns, squeeze=False)
        for panel, language in zip_longest(panels.flat, traced):
            if language is None:
                panel.set_visible(False)
                continue
            _traces(panel, traced[language], systems)
            seeds = {cell.seed for found in traced[language].values() for cell in found}
            panel.set_title(f"{language}, {_count(len(seeds), 'seed')}", loc="left", fontsize=10)
            panel.set_xlabel("optimiser step")
        for row in panels:
            row[0].set_ylabel("accuracy")
        legend_below(figure, [_line(place, system) for place, system in enumerate(systems)])
    return path


def gain_by_language(results: Results, gained: Mapping[str, Sequence[Cell]], path: Path) -> Path:
    """Gain over the zero-shot model that each system started from, a panel a system, a dot a seed and a line for their mean."""
    cells = [cell for found in gained.values() for cell in found]
    languages = sorted({cell.language for cell in cells})
    title, facts = "Accuracy gained over zero-shot", f"{_pairs(cells)} of {cells[0].tested}; a dot a seed, lines: their mean"
    size = (max(6.4, 2 + 0.55 * len(languages)), 1.6 + 2.0 * len(gained))
    with card(path, size, title, facts, _languages(cells), cells[0].protocol) as figure:
        panels = figure.subplots(len(gained), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for panel, (system, found) in zip(panels, gained.items(), strict=True):
            table = series(found, results.gain)
            seeds = {seed for row in table.values() for seed in row}
            panel.axhline(0, color=INK, linewidth=1)
            for place, language in enumerate(languages):
                _gains(panel, place, list(table.get(language, {}).values()))
            panel.set_title(f"{system}, {_count(len(table), 'language')}, {_count(len(seeds), 'seed')}", loc="left", fontsize=10)
            panel.set_ylabel("points")
            panel.grid(visible=False, axis="x")
            panel.margins(y=0.15)
        panels[0].yaxis.set_major_formatter(_points)
        panels[-1].set_xticks(range(len(languages)), languages)
        panels[-1].set_xlim(-0.6, len(languages) - 0.4)
        handles = [
            Line2D([], [], color=colour, marker="o", label=name) for colour, name in ((AFTER, "mean gain"), (NOISY, "mean loss"))
        ]
        legend_below(figure, handles)
    return path


def _noise(panel: Axes, histogram: Mapping[str, Any], side: str) -> tuple[int, int]:
    """One side of one comparison; returns the numbers of noisy and clean pairs."""
    edges, noisy, clean = (
        np.asarray(values) for values in (histogram["edges"], *(histogram[side][k] for k in ("noisy", "clean")))
    )
    width = np.diff(edges)
    # noisy pairs stand on the axis, so that their heights compare across bins and panels
    panel.bar(edges[:-1], noisy, width, align="edge", color=NOISY, edgecolor="white", hatch="//", label="noisy (wrong)")
    panel.bar(edges[:-1], clean, width, noisy, align="edge", color=CLEAN, edgecolor="white", label="clean (right)")
    panel.set_xlim(edges[0], edges[-1])
    panel.grid(visible=False, axis="x")
    return int(noisy.sum()), int(clean.sum())


def _traces(panel: Axes, found: Mapping[str, Sequence[Cell]], systems: Sequence[str]) -> None:
    for system, cells in found.items():
        for cell in cells:
            steps, values = zip(*_trace(cell), strict=True)
            panel.add_line(_line(systems.index(system), system, steps, values))
    panel.autoscale_view()
    panel.margins(y=0.15)
    panel.xaxis.set_major_locator(MaxNLocator(4, **WHOLE))
    # an axis fitted to a wiggle of tenths would make noise look like a trend
    low, high = panel.get_ylim()
    spare = max(0.0, _LEAST_HEIGHT - (high - low)) / 2
    panel.set_ylim(low - spare, high + spare)
    panel.yaxis.set_major_formatter(tenths)


def _gains(panel: Axes, place: int, values: list[float]) -> None:
    """A panel without values at a place stays empty there: a gain of nothing is not a gain of 0."""
    if not values:
        return
    mean = sum(values) / len(values)
    colour = AFTER if mean >= 0 else NOISY
    panel.hlines(mean, place - 0.3, place + 0.3, color=colour, linewidth=2)
    panel.plot([place] * len(values), values, linestyle="none", marker="o", markersize=5, color=colour, alpha=0.6)


def _line(place: int, name: str, steps: Sequence[int] = (), values: Sequence[float] = ()) -> Line2D:
    colour, marker = _LINES[place % len(_LINES)]
    return Line2D(steps, values, color=colour, marker=marker, markersize=4, linewidth=1.5, label=name)


def _first_seeds(cells: Sequence[Cell], languages: Sequence[str]) -> list[Cell]:
    """Of each language the cell of its lowest seed: counts of several seeds in one histogram would be of no model."""
    compared = [cell for cell in cells if cell.comparison is not None]
    first = [
        min((cell for cell in compared if cell.language == language), key=lambda cell: cell.seed, default=None)
        for language in languages
    ]
    return [cell for cell in first if cell is not None]


def _traced(calibrated: Mapping[str, Sequence[Cell]], languages: Sequence[str]) -> dict[str, dict[str, list[Cell]]]:
    found = {
        language: {
            system: traced
            for system, cells in calibrated.items()
            if (traced := [cell for cell in cells if cell.language == language and _trace(cell)])
        }
        for language in languages
    }
    return {language: systems for language, systems in found.items() if systems}


def _trace(cell: Cell) -> tuple[tuple[int, float], ...]:
    """The accuracies along the first stage that recorded any."""
    return next((stage.trace for stage in cell.stages if stage.trace), ())


def _languages(cells: Sequence[Cell]) -> str:
    return ", ".join(dict.fromkeys(cell.language for cell in cells))


def _pairs(cells: Sequence[Cell]) -> str:
    return f"n = {_range({cell.n for cell in cells})}"


def _adapted_on(cells: Sequence[Cell]) -> str:
    return f"pool of {_range({cell.pool for cell in cells})} pairs"


def _range(counts: set[int]) -> str:
    lowest, highest = min(counts), max(counts)
    return f"{lowest:,}" if lowest == highest else f"{lowest:,} to {highest:,}"


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"
