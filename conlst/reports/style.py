"""How all pictures of conlst look: colours, number formats, and the card that they are drawn on.

The same numbers give the same bytes. Colours are from Okabe and Ito's palette, which colour-blind readers can tell apart; the
card is white, so that a picture stays readable on a dark page.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from conlst.contract.errors import ConfigError
from conlst.reports import Protocol, describe

CLEAN, NOISY, BEFORE, AFTER = "#0072B2", "#E69F00", "#9A9A9A", "#009E73"
INK, QUIET, GRID = "#222222", "#5A5A5A", "#DDDDDD"
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    # ids inside an SVG are random without a salt, and its letters depend on the viewer's fonts unless they are paths
    "svg.hashsalt": "conlst",
    "svg.fonttype": "path",
}
# without these, a file holds the moment it was made or matplotlib's version
_METADATA: dict[str, dict[str, None]] = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}
# left to itself, a locator of integers counts pairs in steps of 8 or 150
WHOLE: dict[str, Any] = {"integer": True, "steps": (1, 2, 5, 10)}
percent = FuncFormatter(lambda value, _: f"{100 * value:.0f} %")
tenths = FuncFormatter(lambda value, _: f"{100 * value:.1f} %")
thousands = FuncFormatter(lambda value, _: f"{value:,.0f}")


@contextmanager
def card(path: Path, size: tuple[float, float], title: str, facts: str, language: str, protocol: Protocol) -> Iterator[Figure]:
    """Yield an empty figure in our style; on leaving give it its heading and write it."""
    describe(protocol)
    if path.suffix not in _METADATA:
        raise ConfigError(f"{path} is no picture that can be drawn: figures are {' or '.join(_METADATA)} files")
    # "default" first: a matplotlibrc of the machine must not show in the bytes
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        yield figure
        # a language name is no formula, whatever dollar signs it holds
        figure.suptitle(f"{title} · {language}, {protocol}\n{facts}", fontsize=12, parse_math=False)
        figure.savefig(path, metadata=_METADATA[path.suffix])


def legend_below(figure: Figure, handles: Sequence[Artist]) -> None:
    # outside the axes it can cover no data, whatever the numbers are
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
