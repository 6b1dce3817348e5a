"""Figures and the page: the same bytes every time, the numbers they stand for, nothing fetched from elsewhere."""

import os
import re
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from conlst.contract.config import Evaluate
from conlst.contract.errors import ConfigError, DataError
from conlst.reports import describe, figures
from conlst.reports.metrics import compare, evaluate_probabilities
from conlst.reports.page import SMALL_SAMPLE, evaluation_markdown, evaluation_page

NAMES: dict[str, Any] = {"language": "sw", "protocol": "transductive"}
HOSTILE = "<script>alert(1)</script> | **x** [y](http://example.org)\n# z $1 & $2"


def example(n: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """An evaluation and a comparison with an earlier model, of ``n`` pairs."""
    generator = np.random.default_rng(n)
    labels = generator.integers(0, 3, n)
    noise, truth = generator.normal(size=(n, 3)), np.eye(3)[labels]

    def softmax(logits: np.ndarray) -> np.ndarray:
        powers = np.exp(logits)
        return powers / powers.sum(1, keepdims=True)

    before, after = softmax(2 * noise + truth), softmax(1.5 * noise + 2 * truth)
    return NAMES | evaluate_probabilities(after, labels, Evaluate()), compare(before, after, labels, Evaluate())


EVALUATION, COMPARISON = example(2000)
TRACE = [(0, 0.61), (100, 0.64), (200, 0.66)]
# one drawing of every kind: file to be written, language and protocol in
DRAWINGS: dict[str, Callable[..., Path]] = {
    "reliability": lambda path, **names: figures.reliability_diagram(EVALUATION, path, **names),
    "confusion": lambda path, **names: figures.confusion_matrix(EVALUATION, path, **names),
    "noise": lambda path, **names: figures.noise_histograms(COMPARISON, path, **names),
    "bands": lambda path, **names: figures.accuracy_by_band(COMPARISON, path, **names),
    "coverage": lambda path, **names: figures.equal_coverage_curves(COMPARISON, path, **names),
    "training": lambda path, **names: figures.accuracy_along_training(TRACE, path, n=2000, **names),
}


def words(path: Path) -> list[str]:
    """The lines of text in an SVG: matplotlib notes each in a comment above its outlines."""
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", path.read_text(encoding="utf-8"), re.DOTALL)]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
@pytest.mark.parametrize("kind", DRAWINGS)
def test_the_same_numbers_give_the_same_bytes(kind: str, suffix: str, tmp_path: Path) -> None:
    one, other = (DRAWINGS[kind](tmp_path / f"{name}{suffix}", **NAMES) for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


def test_another_process_with_its_own_matplotlibrc_gives_the_same_bytes(tmp_path: Path) -> None:
    here = figures.accuracy_along_training(TRACE, tmp_path / "here.svg", n=9, **NAMES)
    (tmp_path / "matplotlibrc").write_text("font.size: 21\naxes.facecolor: black\nlines.linewidth: 9\nsvg.fonttype: none\n")
    there = tmp_path / "there.svg"
    code = (
        "import sys; from pathlib import Path; from conlst.reports import figures; "
        f"figures.accuracy_along_training({TRACE!r}, Path({str(there)!r}), n=9, language='sw', protocol='transductive'); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    settings = {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | settings, cwd=Path(__file__).parents[1])
    assert there.read_bytes() == here.read_bytes()


@pytest.mark.parametrize("kind", DRAWINGS)
def test_drawing_leaves_the_process_settings_alone(kind: str, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    DRAWINGS[kind](tmp_path / "figure.svg", **NAMES)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("kind", DRAWINGS)
def test_every_title_names_language_protocol_and_count(kind: str, tmp_path: Path) -> None:
    lines = words(DRAWINGS[kind](tmp_path / "figure.svg", **NAMES))
    (title,) = [place for place, line in enumerate(lines) if line.endswith("· sw, transductive")]
    assert lines[title + 1].startswith("n = 2,000")


@pytest.mark.parametrize("kind", DRAWINGS)
def test_a_png_is_a_picture_on_white(kind: str, tmp_path: Path) -> None:
    picture = imread(DRAWINGS[kind](tmp_path / "figure.png", **NAMES))
    assert min(picture.shape[:2]) > 500
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert picture[corner].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("kind", DRAWINGS)
def test_an_unknown_protocol_is_refused_before_a_file_is_there(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'magic' is not one of supervised, zero-shot, inductive, transductive"):
        DRAWINGS[kind](tmp_path / "figure.svg", language="sw", protocol="magic")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", DRAWINGS)
def test_another_kind_of_file_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"figure\.pdf.*\.svg or \.png"):
        DRAWINGS[kind](tmp_path / "figure.pdf", **NAMES)


def test_a_language_name_is_no_formula(tmp_path: Path) -> None:
    path = figures.confusion_matrix(EVALUATION, tmp_path / "figure.svg", language=r"$\frac{$ & <b>", protocol="zero-shot")
    ElementTree.parse(path)


def test_bands_print_accuracy_and_count_of_both_sides(tmp_path: Path) -> None:
    text = "\n".join(words(DRAWINGS["bands"](tmp_path / "figure.svg", **NAMES)))
    for row in COMPARISON["bands"]:
        for side in ("before", "after"):
            assert f"{100 * row[side]['accuracy']:.1f} %" in text
            assert f"n = {row[side]['count']:,}" in text


def test_the_legend_of_the_bands_wears_the_colours_of_the_bars(tmp_path: Path) -> None:
    svg = DRAWINGS["bands"](tmp_path / "figure.svg", **NAMES).read_text()
    bars, legend = (re.findall(r'style="fill: (#(?:9a9a9a|009e73|1f77b4))', part) for part in svg.split('id="legend_1"'))
    assert bars == ["#9a9a9a"] * 3 + ["#009e73"] * 3
    assert legend == ["#9a9a9a", "#009e73"]


def test_an_empty_band_is_drawn_as_empty(tmp_path: Path) -> None:
    row = np.array([[0.6, 0.3, 0.1]] * 3)
    comparison = compare(row, row, np.array([0, 0, 1]), Evaluate())
    text = "\n".join(words(figures.accuracy_by_band(comparison, tmp_path / "figure.svg", **NAMES)))
    assert text.count("pairs") == 4
    assert "nan" not in text.lower()


def test_histograms_print_the_counts_of_both_sides(tmp_path: Path) -> None:
    text = "\n".join(words(DRAWINGS["noise"](tmp_path / "figure.svg", **NAMES)))
    for side in ("before", "after"):
        right = COMPARISON[side]["correct"]
        assert f"{side}: {2000 - right:,} noisy, {right:,} clean" in text


def test_reliability_prints_the_count_of_every_bin_and_the_error(tmp_path: Path) -> None:
    text = words(DRAWINGS["reliability"](tmp_path / "figure.svg", **NAMES))
    for row in EVALUATION["reliability"][3:]:
        assert f"{row['count']:,}" in text
    assert any(f"expected calibration error {EVALUATION['ece']:.3f}" in line for line in text)


def test_confusion_prints_every_cell(tmp_path: Path) -> None:
    text = "\n".join(words(DRAWINGS["confusion"](tmp_path / "figure.svg", **NAMES)))
    for row in EVALUATION["confusion"]:
        for count in row:
            assert f"{count:,}\n{100 * count / sum(row):.0f} %" in text


def test_coverage_prints_the_number_of_pairs_at_every_share(tmp_path: Path) -> None:
    text = "\n".join(words(DRAWINGS["coverage"](tmp_path / "figure.svg", **NAMES)))
    for row in COMPARISON["coverage"]:
        assert f"{row['percent']} %\n{row['count']:,}" in text


def test_a_training_without_a_point_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="recorded no accuracy"):
        figures.accuracy_along_training([], tmp_path / "figure.svg", n=9, **NAMES)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_handful_of_pairs_can_be_drawn(n: int, tmp_path: Path) -> None:
    evaluation, comparison = example(n)
    figures.reliability_diagram(evaluation, tmp_path / "1.png", **NAMES)
    figures.confusion_matrix(evaluation, tmp_path / "2.png", **NAMES)
    figures.noise_histograms(comparison, tmp_path / "3.png", **NAMES)
    figures.accuracy_by_band(comparison, tmp_path / "4.png", **NAMES)
    figures.equal_coverage_curves(comparison, tmp_path / "5.png", **NAMES)
    figures.accuracy_along_training([(0, 1.0)], tmp_path / "6.png", n=n, **NAMES)
    assert len(list(tmp_path.iterdir())) == 6


class Reader(HTMLParser):
    """What a browser would find: tags, addresses, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.notes = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.notes += ("class", "note") in attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_carries_all_it_shows(tmp_path: Path) -> None:
    drawn = [draw(tmp_path / f"{kind}.svg", **NAMES) for kind, draw in DRAWINGS.items()]
    page = evaluation_page("sw", EVALUATION, COMPARISON, drawn)
    reader = Reader(page)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(reader.tags)
    assert not re.search(r"url\(|@import", page)
    prefix = "data:image/svg+xml;base64,"
    assert [b64decode(address.removeprefix(prefix)) for address in reader.addresses] == [path.read_bytes() for path in drawn]


def test_the_page_tells_zero_shot_from_adapted_with_counts_and_protocol() -> None:
    for text in (
        Reader(evaluation_page("sw", EVALUATION, COMPARISON, [])).text,
        evaluation_markdown("sw", EVALUATION, COMPARISON),
    ):
        assert "transductive" in text
        assert describe("transductive") in text
        for side in ("before", "after"):
            summary = COMPARISON[side]
            assert f"{summary['correct']:,} of 2,000" in text
            assert f"{100 * summary['accuracy']:.1f} %" in text
            assert f"{100 * summary['macro_f1']:.1f} %" in text
            assert f"{summary['ece']:.3f}" in text
        for row in COMPARISON["bands"]:
            assert f"{row['before']['count']:,} → {row['after']['count']:,}" in text
            assert f"{100 * row['before']['accuracy']:.1f} % → {100 * row['after']['accuracy']:.1f} %" in text
        for row in COMPARISON["coverage"] + COMPARISON["high_band_coverage"]:
            assert f"{row['count']:,}" in text
            assert f"{100 * row['after']:.1f} %" in text
        changed = COMPARISON["mcnemar"]
        assert f"{changed['only_after']:,} became right and {changed['only_before']:,} became wrong" in text


def test_a_page_of_one_model_compares_nothing() -> None:
    text = Reader(evaluation_page("sw", EVALUATION, None, [])).text
    assert f"{100 * EVALUATION['accuracy']:.1f} %" in text
    assert "before" not in text.lower()
    assert "McNemar" not in text


@pytest.mark.parametrize(("n", "small"), [(SMALL_SAMPLE - 1, True), (SMALL_SAMPLE, False)])
def test_a_small_sample_is_said_to_be_one(n: int, small: bool) -> None:
    evaluation, comparison = example(n)
    page, table = evaluation_page("sw", evaluation, comparison, []), evaluation_markdown("sw", evaluation, comparison)
    assert Reader(page).notes == small
    assert (f"Small sample: {n:,} pairs only" in page) is small
    assert (f"Small sample: {n:,} pairs only" in table) is small


def test_names_are_text_on_the_page() -> None:
    reader = Reader(evaluation_page(HOSTILE, EVALUATION | {"language": HOSTILE}, COMPARISON, []))
    assert "script" not in reader.tags
    assert reader.addresses == []
    assert "<script>alert(1)</script>" in reader.text


def test_names_are_text_in_markdown() -> None:
    table = evaluation_markdown(HOSTILE, EVALUATION | {"language": HOSTILE}, COMPARISON)
    assert "<script" not in table
    assert "**x**" not in table
    assert "[y](" not in table
    headings = [line for line in table.splitlines() if line.startswith("# ")]
    assert len(headings) == 1


@pytest.mark.parametrize("compared", [True, False])
def test_every_row_of_a_markdown_table_has_as_many_cells_as_its_head(compared: bool) -> None:
    blocks = evaluation_markdown("sw", EVALUATION, COMPARISON if compared else None).split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    assert len(tables) == 4
    for head, rule, *rows in tables:
        assert set(rule) <= set("|-: ")
        assert rows
        assert {line.count("|") for line in (head, rule, *rows)} == {head.count("|")}


def test_what_has_no_value_is_a_dash_and_no_nan() -> None:
    row = np.array([[0.6, 0.3, 0.1]] * 3)
    labels = np.array([0, 0, 0])
    evaluation = NAMES | evaluate_probabilities(row, labels, Evaluate())
    for comparison in (None, compare(row, row, labels, Evaluate())):
        text = Reader(evaluation_page("sw", evaluation, comparison, [])).text + evaluation_markdown("sw", evaluation, comparison)
        assert "–" in text
        assert not re.search(r"\b(nan|None|inf)\b", text)


def test_a_page_refuses_an_unknown_protocol_and_a_figure_that_is_no_svg(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'magic'"):
        evaluation_page("sw", EVALUATION | {"protocol": "magic"}, None, [])
    with pytest.raises(ConfigError, match=r"figure\.png"):
        evaluation_page("sw", EVALUATION, None, [DRAWINGS["confusion"](tmp_path / "figure.png", **NAMES)])
