"""A report for people: one HTML page that asks nothing of the network, and the same tables as Markdown.

Both are made of the same :class:`_Table` objects in plain text; escaping is the business of the two renderers alone.
"""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from conlst.contract.errors import ConfigError
from conlst.contract.labels import NAMES
from conlst.reports import band_edges, describe

# below this, 95 % intervals of an accuracy reach more than about 3 points to either side
SMALL_SAMPLE = 1000
_NOTHING = "–"
_CAPTIONS = {
    "reliability": "Accuracy of the pairs in each bin of confidence. Below the dashed line the model is too sure of itself.",
    "confusion": "What each true class is taken for. The diagonal is right.",
    "noise": "Pairs over confidence, wrong ones at the bottom. Fewer wrong pairs on the right make cleaner pseudo-labels.",
    "bands": "Accuracy in three bands of confidence, with the number of pairs in each: a band can get clean by being emptied.",
    "coverage": "Accuracy of equally many most confident pairs: what remains of the gain when no band can be emptied.",
    "training": "Accuracy at steps of the training.",
}
# the page may load nothing but the pictures it carries itself
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1c2126; --quiet: #58626d; --line: #dce1e6;
  --mark: #00664b; --note: #fff4d6; --note-line: #d39a00; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1e2327; --ink: #e8ebee; --quiet: #a3adb7;
  --line: #353c43; --mark: #4fd1a8; --note: #3a2f10; --note-line: #d39a00; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem 1rem 3rem; max-width: 72rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.2rem 0 .3rem; font-size: 1.15rem; }
p { margin: .4rem 0; max-width: 52rem; }
.quiet, figcaption { color: var(--quiet); font-size: .9rem; }
.note { padding: .6rem .9rem; background: var(--note); border-left: 4px solid var(--note-line); border-radius: 4px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.tile { padding: .8rem 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.3; color: var(--mark); }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .8rem; border-top: 1px solid var(--line); text-align: right; white-space: nowrap; }
thead th { border-top: 0; color: var(--quiet); font-size: .85rem; font-weight: 600; }
th:first-child { text-align: left; font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: .8rem; margin-top: .8rem; }
figure { margin: 0; padding: .6rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
figure img { display: block; width: 100%; height: auto; padding: .4rem; background: #fff; border-radius: 4px; }
figcaption { padding: .5rem .3rem 0; }
"""


_UNLABELLED = (
    "No label of this language was read. The accuracy is estimated as the share of pairs that are as sure as the "
    "English pairs that the model has right; it assumes that confidence means here what it means there."
)


class _Tile(NamedTuple):
    name: str
    value: str
    facts: str


class _Table(NamedTuple):
    """``rows`` hold as many cells as ``columns``; the first cell names the row."""

    heading: str
    explanation: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def evaluation_page(
    title: str, evaluation: Mapping[str, Any], comparison: Mapping[str, Any] | None, figures: Sequence[Path]
) -> str:
    """One HTML page that holds all it shows, light or dark as its reader likes.

    Args:
        evaluation: ``language``, ``protocol`` and the measures of :func:`conlst.reports.metrics.evaluate_probabilities`.
        comparison: what :func:`conlst.reports.metrics.compare` says of the same pairs, if there was an earlier model.
        figures: SVG files, shown in this order.

    Raises:
        ConfigError: if a figure is no SVG file or the protocol has no known name.
    """
    small = _small_sample(evaluation)
    body = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in _introduction(evaluation, comparison)),
        *([f'<p class="note" role="note">{escape(small)}</p>'] if small else []),
        f'<div class="tiles">{"".join(map(_html_tile, _tiles(evaluation, comparison)))}</div>',
        *([f"<p>{escape(_mcnemar(comparison))}</p>"] if comparison else []),
        *([f'<div class="figures">{"".join(map(_html_figure, figures))}</div>'] if figures else []),
        *map(_html_table, _tables(evaluation, comparison)),
    ]
    return _document(title, body)


def evaluation_markdown(title: str, evaluation: Mapping[str, Any], comparison: Mapping[str, Any] | None) -> str:
    """The page's words and tables as Markdown, with the arguments of :func:`evaluation_page`.

    Raises:
        ConfigError: if the protocol has no known name.
    """
    small = _small_sample(evaluation)
    blocks = [
        f"# {_markdown_text(title)}",
        *map(_markdown_text, _introduction(evaluation, comparison)),
        *([f"> **Note.** {_markdown_text(small)}"] if small else []),
        *([_markdown_text(_mcnemar(comparison))] if comparison else []),
        *map(_markdown_table, _tables(evaluation, comparison)),
    ]
    return "\n\n".join(blocks) + "\n"


def estimate_page(estimate: Mapping[str, Any]) -> str:
    """One HTML page of what :func:`conlst.stages.folders.estimate_model` found without labels."""
    title, table = f"{estimate['language']}, without labels", _estimates(estimate)
    return _document(title, [f"<h1>{escape(title)}</h1>", f"<p>{escape(_UNLABELLED)}</p>", _html_table(table)])


def estimate_markdown(estimate: Mapping[str, Any]) -> str:
    """The page's words and table as Markdown."""
    blocks = [f"# {_markdown_text(estimate['language'])}, without labels", _UNLABELLED, _markdown_table(_estimates(estimate))]
    return "\n\n".join(blocks) + "\n"


def _estimates(estimate: Mapping[str, Any]) -> _Table:
    shares = ", ".join(f"{name} {_percent(share)}" for name, share in estimate["label_shares"].items())
    rows = [
        ("accuracy, estimated", _percent(estimate["estimated_accuracy"]), "average thresholded confidence"),
        ("accuracy on English dev", _percent(estimate["english_accuracy"]), _pairs(estimate["english_n"])),
        ("rarest label", _percent(estimate["least_label_share"]), shares),
        ("two dropout views agree", _percent(estimate["view_agreement"]), _pairs(estimate["unlabelled_n"])),
    ]
    return _Table("What is known", "Shares of the unlabelled pairs, but for the English ones.", ("", "value", "of"), rows)


def _document(title: str, body: Sequence[str]) -> str:
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            *body,
            "</body>",
            "</html>",
            "",
        ]
    )


def _introduction(evaluation: Mapping[str, Any], comparison: Mapping[str, Any] | None) -> list[str]:
    protocol = evaluation["protocol"]
    lines = [
        f"Language {evaluation['language']}, {_pairs(evaluation['n'])} with labels. "
        f"Protocol: {protocol}, that is, {describe(protocol)}."
    ]
    if comparison:
        lines.append("“Before” is the earlier model, “after” the model of this report, both on the same pairs.")
    return lines


def _small_sample(evaluation: Mapping[str, Any]) -> str | None:
    if evaluation["n"] >= SMALL_SAMPLE:
        return None
    return (
        f"Small sample: {_pairs(evaluation['n'])} only. The 95 % interval of the accuracy is {_interval(evaluation)}. "
        "These numbers show that everything runs; they cannot rank models that lie close together."
    )


def _mcnemar(comparison: Mapping[str, Any]) -> str:
    test = comparison["mcnemar"]
    p_value = "p below 0.001" if test["p_value"] < 0.001 else f"p = {test['p_value']:.3f}"
    return (
        f"Of {_pairs(comparison['n'])}, {test['only_after']:,} became right and {test['only_before']:,} became wrong; "
        f"{test['both_correct']:,} were right and {test['both_wrong']:,} wrong both times "
        f"(McNemar's exact test: {p_value}; it takes the pairs to be independent of each other)."
    )


def _tiles(evaluation: Mapping[str, Any], comparison: Mapping[str, Any] | None) -> list[_Tile]:
    n, high = evaluation["n"], evaluation["bands"][0]
    name = f"Accuracy above {high['lower']:g} confidence"
    if comparison is None:
        return [
            _Tile("Accuracy", _percent(evaluation["accuracy"]), f"{evaluation['correct']:,} of {_pairs(n)} right"),
            _Tile(name, _percent(high["accuracy"]), _pairs(high["count"])),
            _Tile("Calibration error", f"{evaluation['ece']:.3f}", f"over {_pairs(n)}; 0 is perfect"),
        ]
    old, new = comparison["before"], comparison["after"]
    old_high, new_high = (comparison["bands"][0][side] for side in ("before", "after"))
    return [
        _Tile(
            "Accuracy",
            _arrow(_percent(old["accuracy"]), _percent(new["accuracy"])),
            f"{old['correct']:,} → {new['correct']:,} of {_pairs(n)} right, {_points(comparison['accuracy_gain'])}",
        ),
        _Tile(
            name,
            _arrow(_percent(old_high["accuracy"]), _percent(new_high["accuracy"])),
            f"{old_high['count']:,} → {_pairs(new_high['count'])}",
        ),
        _Tile("Calibration error", _arrow(f"{old['ece']:.3f}", f"{new['ece']:.3f}"), f"over {_pairs(n)}; 0 is perfect"),
    ]


def _tables(evaluation: Mapping[str, Any], comparison: Mapping[str, Any] | None) -> list[_Table]:
    if comparison is None:
        return [_overall(evaluation), _bands(evaluation), _coverage(evaluation), _classes(evaluation)]
    return [_overall_compared(comparison), _bands_compared(comparison), _coverage_compared(comparison), _classes(evaluation)]


def _overall(evaluation: Mapping[str, Any]) -> _Table:
    rows = [
        ("right", _share_of(evaluation)),
        ("accuracy", _percent(evaluation["accuracy"])),
        ("its 95 % interval", _interval(evaluation)),
        ("macro F1", _percent(evaluation["macro_f1"])),
        ("expected calibration error (lower is better)", f"{evaluation['ece']:.3f}"),
    ]
    return _Table("Overall", f"{_pairs(evaluation['n'])}.", ("measure", "value"), rows)


def _overall_compared(comparison: Mapping[str, Any]) -> _Table:
    before, after = _overall(comparison["before"]).rows, _overall(comparison["after"]).rows
    changes = {
        "right": f"{comparison['after']['correct'] - comparison['before']['correct']:+,}".replace("-", "−"),
        "accuracy": _points(comparison["accuracy_gain"]),
        "macro F1": _gain(comparison["before"]["macro_f1"], comparison["after"]["macro_f1"]),
        "expected calibration error (lower is better)": _signed(comparison["after"]["ece"] - comparison["before"]["ece"], 3),
    }
    rows = [(name, old, new, changes.get(name, "")) for (name, old), (_, new) in zip(before, after, strict=True)]
    return _Table("Before and after", f"{_pairs(comparison['n'])}.", ("measure", "before", "after", "change"), rows)


def _bands(evaluation: Mapping[str, Any]) -> _Table:
    rows = [
        (_band_name(row), f"{row['count']:,}", _percent(row["share"]), f"{row['correct']:,}", _percent(row["accuracy"]))
        for row in evaluation["bands"]
    ]
    return _Table(
        "Confidence bands",
        f"{_pairs(evaluation['n'])} by the probability of the predicted class.",
        ("confidence", "pairs", "share of all", "right", "accuracy"),
        rows,
    )


def _bands_compared(comparison: Mapping[str, Any]) -> _Table:
    rows = [
        (
            _band_name(row),
            _arrow(f"{old['count']:,}", f"{new['count']:,}"),
            _arrow(_percent(old["share"]), _percent(new["share"])),
            _arrow(f"{old['correct']:,}", f"{new['correct']:,}"),
            _arrow(_percent(old["accuracy"]), _percent(new["accuracy"])),
            _gain(old["accuracy"], new["accuracy"]),
        )
        for row in comparison["bands"]
        for old, new in [(row["before"], row["after"])]
    ]
    return _Table(
        "Confidence bands, before → after",
        f"{_pairs(comparison['n'])} by the probability of the predicted class. A band can get cleaner by being emptied: "
        "read its accuracy with its number of pairs.",
        ("confidence", "pairs", "share of all", "right", "accuracy", "change"),
        rows,
    )


def _coverage(evaluation: Mapping[str, Any]) -> _Table:
    rows = [(f"top {row['percent']} %", f"{row['count']:,}", _percent(row["accuracy"])) for row in evaluation["coverage"]]
    return _Table(
        "Accuracy by coverage",
        f"The most confident of {_pairs(evaluation['n'])}.",
        ("most confident", "pairs", "accuracy"),
        rows,
    )


def _coverage_compared(comparison: Mapping[str, Any]) -> _Table:
    takings = [(f"top {row['percent']} %", row) for row in comparison["coverage"]]
    takings += [(f"as many as the high band held {row['size_of']}", row) for row in comparison["high_band_coverage"]]
    rows = [
        (
            name,
            f"{row['count']:,}",
            _percent(row["before"]),
            _percent(row["after"]),
            _gain(row["before"], row["after"]),
        )
        for name, row in takings
    ]
    return _Table(
        "Accuracy at equal coverage",
        f"Equally many most confident of {_pairs(comparison['n'])} on both sides: emptying a band gains nothing here.",
        ("most confident", "pairs", "before", "after", "change"),
        rows,
    )


def _classes(evaluation: Mapping[str, Any]) -> _Table:
    rows = []
    for name, cells in zip(NAMES, evaluation["confusion"], strict=True):
        row = evaluation["per_class"][name]
        scores = (_percent(row[score]) for score in ("precision", "recall", "f1"))
        rows.append((name, f"{row['labelled']:,}", *(f"{count:,}" for count in cells), *scores))
    predicted = (f"{evaluation['per_class'][name]['predicted']:,}" for name in NAMES)
    rows.append(("all", f"{evaluation['n']:,}", *predicted, "", "", ""))
    return _Table(
        "Classes",
        "A row holds the pairs of one true class, by what the model of this report takes them for.",
        ("truth", "pairs", *(f"as {name}" for name in NAMES), "precision", "recall", "F1"),
        rows,
    )


def _band_name(row: Mapping[str, Any]) -> str:
    return f"{row['band']}, {band_edges(row)}"


def _pairs(count: int) -> str:
    return "1 pair" if count == 1 else f"{count:,} pairs"


def _share_of(summary: Mapping[str, Any]) -> str:
    return f"{summary['correct']:,} of {summary['n']:,}"


def _percent(share: float | None) -> str:
    return _NOTHING if share is None else f"{100 * share:.1f} %"


def _interval(summary: Mapping[str, Any]) -> str:
    lower, upper = summary["accuracy_interval"]
    return f"{100 * lower:.1f} to {100 * upper:.1f} %"


def _signed(value: float, digits: int) -> str:
    # the z keeps a loss too small to show from being written as -0
    return f"{value:+z.{digits}f}".replace("-", "−")


def _points(gain: float) -> str:
    return f"{_signed(100 * gain, 1)} points"


def _gain(before: float | None, after: float | None) -> str:
    return _NOTHING if before is None or after is None else _points(after - before)


def _arrow(before: str, after: str) -> str:
    return f"{before} → {after}"


def _html_tile(tile: _Tile) -> str:
    return (
        f'<div class="tile">{escape(tile.name)}<b>{escape(tile.value)}</b><span class="quiet">{escape(tile.facts)}</span></div>'
    )


def _html_table(table: _Table) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in table.rows
    )
    return (
        f'<h2>{escape(table.heading)}</h2>\n<p class="quiet">{escape(table.explanation)}</p>\n'
        # a wide table scrolls in its own box, reachable by keyboard, so that the page itself never does
        f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'
    )


def _html_figure(path: Path) -> str:
    if path.suffix != ".svg":
        raise ConfigError(f"{path} cannot be shown on a page: figures of a page are .svg files")
    # an <img> of its own keeps the ids of one SVG out of another's, which inline markup would not
    picture = b64encode(path.read_bytes()).decode("ascii")
    caption = escape(_CAPTIONS.get(path.stem, path.stem))
    return f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{picture}"><figcaption>{caption}</figcaption></figure>'


def _markdown_table(table: _Table) -> str:
    rule = ["---", *("---:" for _ in table.columns[1:])]
    rows = [[_markdown_text(cell) for cell in row] for row in (table.columns, *table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]
    return "\n".join([f"## {_markdown_text(table.heading)}", "", _markdown_text(table.explanation), "", *lines])


def _markdown_text(text: str) -> str:
    """One line without markup: neither HTML nor Markdown's signs, nor a cell's border, can come from a name."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", escape(" ".join(text.split()), quote=False))
