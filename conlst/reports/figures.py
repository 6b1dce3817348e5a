"""The pictures of a report, drawn from the dicts of :mod:`conlst.reports.metrics` into ``.svg`` or ``.png`` files.

Every function returns the path it wrote.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from conlst.contract.errors import DataError
from conlst.contract.labels import NAMES
from conlst.reports import Protocol, band_edges
from conlst.reports.metrics import wilson_interval
from conlst.reports.style import AFTER, BEFORE, CLEAN, INK, NOISY, QUIET, WHOLE, card, legend_below, percent, tenths, thousands


def reliability_diagram(evaluation: Mapping[str, Any], path: Path, *, language: str, protocol: Protocol) -> Path:
    """Accuracy against confidence by bin with 95 % intervals, above the number of pairs in each bin."""
    rows = [row for row in evaluation["reliability"] if row["upper"] > 1 / len(NAMES)]
    filled = [row for row in rows if row["count"]]
    facts = f"n = {evaluation['n']:,}, expected calibration error {evaluation['ece']:.3f}"
    with card(path, (6.4, 6.2), "Reliability", facts, language, protocol) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        start = rows[0]["lower"]
        upper.plot([start, 1], [start, 1], linestyle="--", color=QUIET, label="confidence = accuracy")
        upper.bar(
            [row["lower"] for row in filled],
            [row["accuracy"] for row in filled],
            width=[row["upper"] - row["lower"] for row in filled],
            align="edge",
            color=CLEAN,
            alpha=0.3,
            edgecolor="white",
        )
        upper.errorbar(
            [row["confidence"] for row in filled],
            [row["accuracy"] for row in filled],
            yerr=_reach(filled),
            fmt="o",
            color=CLEAN,
            capsize=3,
            label="accuracy, at the bin's mean confidence",
        )
        upper.set(ylabel="accuracy", ylim=(0, 1.02))
        upper.yaxis.set_major_formatter(percent)
        legend_below(figure, upper.get_legend_handles_labels()[0])
        counts = lower.bar(
            [row["lower"] for row in rows],
            [row["count"] for row in rows],
            width=[row["upper"] - row["lower"] for row in rows],
            align="edge",
            color=BEFORE,
            edgecolor="white",
        )
        lower.bar_label(counts, labels=[f"{row['count']:,}" for row in rows], fontsize=8, padding=2)
        lower.margins(y=0.25)
        lower.yaxis.set_major_locator(MaxNLocator(3, **WHOLE))
        lower.yaxis.set_major_formatter(thousands)
        lower.set(xlabel="confidence", ylabel="pairs", xlim=(start, 1))
        lower.xaxis.set_major_formatter(percent)
    return path


def noise_histograms(comparison: Mapping[str, Any], path: Path, *, language: str, protocol: Protocol) -> Path:
    """Noisy and clean pairs over confidence, before and after, with one scale (the paper's figure 3)."""
    histogram = comparison["histogram"]
    edges = np.asarray(histogram["edges"])
    facts = f"n = {comparison['n']:,}"
    with card(path, (9.6, 4.6), "Clean and noisy pairs by confidence", facts, language, protocol) as figure:
        axes = figure.subplots(1, 2, sharey=True)
        for side, panel in zip(("before", "after"), axes, strict=True):
            clean, noisy = np.asarray(histogram[side]["clean"]), np.asarray(histogram[side]["noisy"])
            width = np.diff(edges)
            # noisy pairs stand on the axis, so that their heights compare across bins and panels
            panel.bar(edges[:-1], noisy, width, align="edge", color=NOISY, edgecolor="white", hatch="//", label="noisy (wrong)")
            panel.bar(edges[:-1], clean, width, noisy, align="edge", color=CLEAN, edgecolor="white", label="clean (right)")
            panel.set_title(f"{side}: {noisy.sum():,} noisy, {clean.sum():,} clean", loc="left", fontsize=10)
            panel.set(xlabel="confidence", xlim=(edges[0], edges[-1]))
            panel.xaxis.set_major_formatter(percent)
            panel.grid(visible=False, axis="x")
        axes[0].set_ylabel("pairs")
        axes[0].yaxis.set_major_locator(MaxNLocator("auto", **WHOLE))
        axes[0].yaxis.set_major_formatter(thousands)
        legend_below(figure, axes[0].get_legend_handles_labels()[0])
    return path


def accuracy_by_band(comparison: Mapping[str, Any], path: Path, *, language: str, protocol: Protocol) -> Path:
    """Accuracy and number of pairs in the three confidence bands, before and after (the paper's table 4)."""
    facts = f"n = {comparison['n']:,}, whiskers: 95 % interval"
    rows = comparison["bands"]
    with card(path, (7.6, 4.8), "Accuracy by confidence band", facts, language, protocol) as figure:
        axes = figure.subplots()
        for side, colour, offset in (("before", BEFORE, -0.2), ("after", AFTER, 0.2)):
            for place, row in enumerate(rows):
                _band_bar(axes, place + offset, row[side], colour)
        axes.set_xticks(range(len(rows)), [f"{row['band']}\n{band_edges(row)}" for row in rows])
        axes.set(
            xlabel="confidence", ylabel="accuracy", ylim=(0, 1.22), yticks=np.linspace(0, 1, 6), xlim=(-0.5, len(rows) - 0.5)
        )
        axes.yaxis.set_major_formatter(percent)
        axes.grid(visible=False, axis="x")
        legend_below(figure, [Patch(color=BEFORE, label="before"), Patch(color=AFTER, label="after")])
    return path


def equal_coverage_curves(comparison: Mapping[str, Any], path: Path, *, language: str, protocol: Protocol) -> Path:
    """Accuracy of equally many most confident pairs, before and after."""
    rows = comparison["coverage"]
    facts = f"n = {comparison['n']:,}"
    with card(path, (7.2, 4.6), "Accuracy at equal coverage", facts, language, protocol) as figure:
        axes = figure.subplots()
        for side, colour, marker in (("before", BEFORE, "s"), ("after", AFTER, "o")):
            axes.plot(
                [row["percent"] for row in rows],
                [row[side] for row in rows],
                color=colour,
                marker=marker,
                linewidth=2,
                label=side,
            )
        axes.set_xticks([row["percent"] for row in rows], [f"{row['percent']} %\n{row['count']:,}" for row in rows])
        axes.set(xlabel="most confident pairs taken: share and number", ylabel="accuracy of these pairs")
        axes.margins(y=0.15)
        axes.yaxis.set_major_formatter(tenths)
        legend_below(figure, axes.get_legend_handles_labels()[0])
    return path


def confusion_matrix(evaluation: Mapping[str, Any], path: Path, *, language: str, protocol: Protocol) -> Path:
    """Counts of truth (rows) against prediction (columns), coloured by the share of the row."""
    matrix = np.asarray(evaluation["confusion"])
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    facts = f"n = {evaluation['n']:,}, accuracy {100 * evaluation['accuracy']:.1f} %"
    with card(path, (6.0, 5.2), "Confusion matrix", facts, language, protocol) as figure:
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(matrix):
            share = shares[row, column]
            text = f"{count:,}\n{100 * share:.0f} %" if matrix[row].any() else "no pairs"
            axes.text(column, row, text, ha="center", va="center", color="white" if share > 0.55 else INK)
        axes.set_xticks(range(len(NAMES)), NAMES)
        axes.set_yticks(range(len(NAMES)), NAMES)
        axes.set(xlabel="prediction", ylabel="truth")
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes, shrink=0.8, format=percent, label="share of the truth's row")
    return path


def accuracy_along_training(curve: Sequence[tuple[int, float]], path: Path, *, n: int, language: str, protocol: Protocol) -> Path:
    """Accuracy of ``n`` pairs at steps of a training (the paper's figure 5).

    Raises:
        DataError: if the curve has no point.
    """
    if not curve:
        raise DataError(f"{path} cannot be drawn: the training recorded no accuracy")
    steps, values = zip(*curve, strict=True)
    facts = f"n = {n:,}, from {100 * values[0]:.1f} % to {100 * values[-1]:.1f} %"
    with card(path, (7.2, 4.4), "Accuracy along training", facts, language, protocol) as figure:
        axes = figure.subplots()
        axes.axhline(values[0], linestyle="--", color=BEFORE, label="before training")
        axes.plot(steps, values, color=AFTER, marker="o", markersize=4, linewidth=2, label="during training")
        axes.set(xlabel="optimiser step", ylabel="accuracy")
        axes.margins(y=0.15)
        axes.xaxis.set_major_locator(MaxNLocator("auto", **WHOLE))
        axes.yaxis.set_major_formatter(tenths)
        legend_below(figure, axes.get_legend_handles_labels()[0])
    return path


def _band_bar(axes: Axes, place: float, row: Mapping[str, Any], colour: str) -> None:
    if not row["count"]:
        axes.text(place, 0.02, "no\npairs", ha="center", va="bottom", color=QUIET, fontsize=9)
        return
    axes.bar(place, row["accuracy"], width=0.38, color=colour)
    axes.errorbar(place, row["accuracy"], yerr=_reach([row]), color=INK, capsize=3, linewidth=1)
    top = wilson_interval(row["correct"], row["count"])[1]
    text = f"{100 * row['accuracy']:.1f} %\nn = {row['count']:,}"
    axes.text(place, top + 0.02, text, ha="center", va="bottom", fontsize=9)


def _reach(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Distances ``[2, rows]`` from the accuracy down and up to the ends of its interval."""
    intervals = np.asarray([wilson_interval(row["correct"], row["count"]) for row in rows]).reshape(-1, 2)
    accuracy = np.asarray([row["accuracy"] for row in rows])
    # rounding can put an accuracy of 0 or 1 a hair outside its interval, and matplotlib refuses a negative reach
    return np.maximum([accuracy - intervals[:, 0], intervals[:, 1] - accuracy], 0)
