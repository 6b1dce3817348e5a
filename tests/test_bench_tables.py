"""Tables and figures of invented cells: what they say, what they compare, and what they refuse."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from conlst.bench import figures, tables
from conlst.bench.cell import Cell, cell_path, read_cell, read_cells, write_cell
from conlst.bench.pairing import Results, difference, over_languages, worse
from conlst.contract.config import Evaluate
from conlst.contract.errors import ConfigError, DataError
from conlst.reports.metrics import compare, evaluate_probabilities

N = 200
LABELS = np.arange(N) % 3
GROUPS = {
    "method": ["conlst"],
    "deciding": ["zero-shot", "robust", "sl-evi", "sl-lou", "conlst"],
    "rivals": ["robust", "sl-evi", "sl-lou"],
    "ablations": ["no-mixup", "no-source", "never-run"],
    "base": ["conl"],
    "variants": ["nl", "sl-lou"],
    "calibration": ["conl", "nl"],
}
# right pairs of N; Urdu gets worse, French has three seeds for the method and its zero-shot, Urdu and Swahili one
ZERO_SHOT = {"fr": {13: 140, 14: 142, 15: 138}, "sw": {13: 120}, "ur": {13: 118}}
CONLST = {"fr": {13: 144, 14: 143, 15: 145}, "sw": {13: 126}, "ur": {13: 112}}


def probabilities(right: int, shift: int = 0) -> np.ndarray:
    """``[N, 3]`` with exactly ``right`` correct argmaxes, at confidences from 0.35 to 0.99 in an order that ``shift`` turns."""
    confidence = np.roll(np.linspace(0.35, 0.99, N), shift)
    truth = np.where((np.arange(N) * 77) % N < right, LABELS, (LABELS + 1) % 3)
    rows = np.repeat((1 - confidence)[:, None] / 2, 3, axis=1)
    rows[np.arange(N), truth] = confidence
    return rows


def cell(system: str, language: str, seed: int, right: int, before: int | None = None, **changes: Any) -> Cell:
    """A cell with ``right`` of N pairs; adapted and inductive if it began at ``before`` right pairs, else zero-shot."""
    after = probabilities(right, shift=7)
    stages = [{"name": "source", "seconds": 900.0, "steps": 500}]
    if before is not None:
        trace = [[0, before / N], [10, right / N]]
        stages.append({"name": "calibrate", "seconds": 60.0 + seed, "steps": 40, "trace": trace})
        stages.append({"name": "selftrain", "seconds": 30.0, "steps": 20, "selected": [[5, 6, 7]], "precision": [[0.9, None, 1]]})
    raw = {
        "schema": 1,
        "system": system,
        "describes": f"the {system} | of <tests>",
        "language": language,
        "protocol": "zero-shot" if before is None else "inductive",
        "pool": 0 if before is None else 2490,
        "tested": "test",
        "seed": seed,
        "started_from": "plain",
        "languages_joint": None,
        "evaluation": evaluate_probabilities(after, LABELS, Evaluate()),
        "comparison": None if before is None else compare(probabilities(before), after, LABELS, Evaluate()),
        "stages": stages,
        "config": {"seed": seed, "calibrate": {"temperature": 1.0}, "selftrain": {"rule": "flexmatch"}},
        "config_digest": f"digest{seed}",
        "commit": "0123456789abcdef",
        "dirty": False,
        "versions": {"torch": "2.8"},
        "machine": {"cores": 4, "threads": 2, "model": "x86_64"},
        "finished": "2026-11-22T18:00:00Z",
    }
    return Cell.model_validate(raw | changes)


def example() -> list[Cell]:
    cells = [cell("zero-shot", lang, seed, right) for lang, row in ZERO_SHOT.items() for seed, right in row.items()]
    cells += [
        cell("conlst", lang, seed, right, ZERO_SHOT[lang][seed]) for lang, row in CONLST.items() for seed, right in row.items()
    ]
    # the stronger rival lacks Urdu, the weaker one has all languages
    cells += [cell("sl-evi", "fr", 13, 150, 140), cell("sl-evi", "sw", 13, 124, 120)]
    cells += [cell("sl-lou", lang, 13, right, ZERO_SHOT[lang][13]) for lang, right in {"fr": 141, "sw": 121, "ur": 119}.items()]
    cells += [cell("robust", lang, 13, right, started_from="robust") for lang, right in {"fr": 143, "sw": 122, "ur": 117}.items()]
    cells += [cell("no-mixup", "fr", 13, 142, 140), cell("no-mixup", "fr", 14, 144, 142), cell("no-mixup", "sw", 13, 121, 120)]
    cells += [cell("no-source", "ur", 13, 110, 118), cell("no-source", "sw", 13, 126, 120)]
    cells += [cell("conl", lang, 13, right, ZERO_SHOT[lang][13]) for lang, right in {"fr": 141, "ur": 117}.items()]
    cells += [cell("nl", "fr", 13, 131, 140)]
    return cells


def lines(block: str) -> list[dict[str, str]]:
    """The rows of the first table of a block by the names of its columns."""
    found = [[part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines() if line.startswith("|")]
    assert all(len(row) == len(found[0]) for row in found)
    return [dict(zip(found[0], row, strict=True)) for row in found[2:]]


def row_of(block: str, **wanted: str) -> dict[str, str]:
    (row,) = [row for row in lines(block) if all(row[name.replace("_", " ")] == value for name, value in wanted.items())]
    return row


def shown(counts: Sequence[float], *, gain: bool = False) -> str:
    """A summary of counts of N pairs, written out slowly."""
    shares = [100 * count / N for count in counts]
    spread = f" ± {stdev(shares):.2f}" if len(shares) > 1 else ""
    value = f"{mean(shares):+.2f}".replace("-", "−") if gain else f"{mean(shares):.2f}"
    return f"{value}{spread} ({len(shares)})"


@pytest.fixture(scope="module")
def blocks() -> dict[str, str]:
    return tables.blocks(example(), GROUPS, ["sw", "ur"])


class TestCell:
    def test_what_is_written_is_read_again(self, tmp_path: Path) -> None:
        cells = example()
        for one in cells:
            assert write_cell(tmp_path, one) == tmp_path / cell_path(one.system, one.language, one.protocol, "test", one.seed)
        found = read_cells(tmp_path)
        assert sorted(found, key=str) == sorted(cells, key=str)
        assert json.loads((tmp_path / "conlst/fr-inductive-test-13.json").read_text())["schema"] == 1
        assert not list(tmp_path.rglob("*.partial"))

    def test_an_unknown_schema_is_refused_with_the_file(self, tmp_path: Path) -> None:
        path = write_cell(tmp_path, cell("conlst", "sw", 13, 126, 120))
        raw = json.loads(path.read_text())
        path.write_text(json.dumps(raw | {"schema": 2}))
        with pytest.raises(DataError, match=r"sw-inductive-test-13\.json has the schema 2 and this conlst reads 1"):
            read_cells(tmp_path)
        path.write_text(json.dumps({key: value for key, value in raw.items() if key != "schema"}))
        with pytest.raises(DataError, match="schema None"):
            read_cell(path)

    @pytest.mark.parametrize("text", ["{", "[]", '"schema"', "\udcff", '{"schema": 1, "config": {"rate": NaN}}'])
    def test_what_is_no_cell_is_refused(self, text: str, tmp_path: Path) -> None:
        path = tmp_path / "cell.json"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(DataError, match=r"cell\.json"):
            read_cell(path)

    def test_unknown_and_missing_keys_are_named(self, tmp_path: Path) -> None:
        path = write_cell(tmp_path, cell("conlst", "sw", 13, 126, 120))
        raw = json.loads(path.read_text())
        del raw["seed"]
        path.write_text(json.dumps(raw | {"sead": 13}))
        with pytest.raises(DataError, match=r"seed: Field required.*sead: Extra inputs"):
            read_cell(path)

    def test_a_file_in_the_place_of_another_is_refused(self, tmp_path: Path) -> None:
        path = write_cell(tmp_path, cell("conlst", "sw", 13, 126, 120))
        path.rename(path.with_name("sw-inductive-test-14.json"))
        with pytest.raises(DataError, match=r"sw-inductive-test-14\.json holds the cell of conlst/sw-inductive-test-13\.json"):
            read_cells(tmp_path)

    def test_no_folder_is_not_no_cells(self, tmp_path: Path) -> None:
        assert read_cells(tmp_path) == []
        with pytest.raises(DataError, match="no folder of cells"):
            read_cells(tmp_path / "nothing")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"pool": 0}, "does not go with a pool of 0"),
            ({"protocol": "zero-shot"}, "does not go with a pool of 2490"),
            ({"evaluation": {"n": 1}}, "evaluation lacks accuracy, bands"),
            ({"comparison": {"n": 1}}, "comparison lacks accuracy_gain"),
            ({"evaluation": evaluate_probabilities(probabilities(99), LABELS, Evaluate())}, "other predictions"),
            ({"protocol": "zero-shot", "pool": 0}, "comparison must be null"),
            ({"started_from": "../plain"}, "pattern"),
            ({"config_digest": 5}, "valid string"),
            ({"finished": "2026-11-22T18:00:00"}, "timezone"),
        ],
    )
    def test_a_cell_that_contradicts_itself_is_refused(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            cell("conlst", "sw", 13, 126, 120, **changes)

    def test_a_number_that_is_none_is_not_written(self, tmp_path: Path) -> None:
        one = cell("zero-shot", "sw", 13, 120)
        with pytest.raises(ValueError, match="JSON compliant"):
            write_cell(tmp_path, one.model_copy(update={"config": {"rate": math.nan}}))
        assert not list(tmp_path.rglob("*.json"))


class TestPairing:
    def test_differences_hold_shared_languages_and_seeds_only(self) -> None:
        one = {"fr": {13: 0.7, 14: 0.8}, "sw": {13: 0.5}, "ur": {13: 0.4}}
        other = {"fr": {14: 0.6, 15: 0.1}, "sw": {14: 0.5}, "zh": {13: 0.9}}
        assert difference(one, other) == {"fr": {14: pytest.approx(0.2)}}

    def test_a_mean_over_languages_takes_the_seeds_that_all_have(self) -> None:
        table = {"fr": {13: 0.7, 14: 0.8, 15: 0.9}, "sw": {13: 0.5, 14: 0.4}}
        found, languages = over_languages(table, ["fr", "sw", "ur"])
        assert languages == 2
        assert found == (pytest.approx(0.6), pytest.approx(0), 2)
        assert over_languages({"fr": {13: 0.7}, "sw": {14: 0.5}}, ["fr", "sw"]) == (None, 2)
        assert over_languages(table, ["ur"]) == (None, 0)

    def test_rounding_makes_no_language_worse(self) -> None:
        up = 0.1 + 0.2 - 0.3
        assert up != 0
        assert worse({"fr": {13: -up}, "sw": {13: -0.005}, "ur": {13: 0.01, 14: -0.03}}, ["fr", "sw", "ur", "zh"]) == (2, 3)

    def test_a_gain_needs_no_zero_shot_cell_and_a_zero_shot_cell_no_comparison(self) -> None:
        with_comparison = cell("conlst", "sw", 14, 126, 120)
        without = cell("sl-evi", "sw", 13, 118, 120, comparison=None)
        lonely = cell("sl-evi", "sw", 15, 118, 120, comparison=None)
        results = Results([with_comparison, without, lonely, cell("zero-shot", "sw", 13, 120)])
        assert results.gain(with_comparison) == pytest.approx(6 / N)
        assert results.gain(without) == pytest.approx(-2 / N)
        assert results.gain(lonely) is None

    def test_a_comparison_with_another_model_than_the_zero_shot_cell_is_refused(self) -> None:
        results = Results([cell("zero-shot", "sw", 13, 121), one := cell("conlst", "sw", 13, 126, 120)])
        with pytest.raises(DataError, match=r"conlst, sw.*accuracy 0\.6000, but the zero-shot cell.*0\.6050"):
            results.gain(one)

    def test_the_gain_over_plain_is_of_the_same_seed(self) -> None:
        plain = [cell("zero-shot", "sw", 13, 120), cell("zero-shot", "sw", 14, 110)]
        robust = cell("robust", "sw", 14, 122, started_from="robust")
        ours = cell("conlst-robust", "sw", 14, 125, 122, started_from="robust")
        results = Results([*plain, robust, ours])
        assert results.gain_over_plain(robust) == pytest.approx(12 / N)
        assert results.gain(robust) is None
        assert results.gain(ours) == pytest.approx(3 / N)
        assert results.gain_over_plain(ours) == pytest.approx(15 / N)
        assert results.gain_over_plain(plain[0]) is None

    def test_cells_of_the_same_are_refused(self) -> None:
        with pytest.raises(DataError, match="two cells stand for the same"):
            Results([cell("conlst", "sw", 13, 126, 120), cell("conlst", "sw", 13, 127, 120)])
        with pytest.raises(DataError, match="two cells stand for the same"):
            Results([cell("zero-shot", "sw", 13, 120), cell("copy", "sw", 13, 120)])

    def test_seeds_with_other_settings_are_refused_but_only_of_stages_that_ran(self) -> None:
        one = cell("conlst", "sw", 13, 126, 120)
        unused = one.config | {"seed": 14, "selflearn": {"rounds": 9}}
        Results([one, cell("conlst", "sw", 14, 125, 121, config=unused)])
        with pytest.raises(DataError, match=r"calibrate\.temperature is 1\.0 and 0\.5"):
            Results([one, cell("conlst", "sw", 14, 125, 121, config=one.config | {"calibrate": {"temperature": 0.5}})])

    def test_a_setting_that_came_after_a_cell_is_at_its_default(self) -> None:
        old = cell("conlst", "sw", 13, 126, 120)
        off, on = (old.config | {"selftrain": {"rule": "flexmatch", "rebalance": chosen}} for chosen in (False, True))
        Results([old, cell("conlst", "sw", 14, 125, 121, config=off)])
        with pytest.raises(DataError, match=r"selftrain\.rebalance is False and True"):
            Results([old, cell("conlst", "sw", 14, 125, 121, config=on)])

    def test_another_number_of_pairs_is_refused(self) -> None:
        fewer = evaluate_probabilities(probabilities(120)[:150], LABELS[:150], Evaluate())
        with pytest.raises(DataError, match="number of pairs is 200 and 150"):
            Results([cell("conlst", "sw", 13, 126, 120), cell("zero-shot", "sw", 13, 120, evaluation=fewer)])

    def test_a_system_is_adapted_or_not(self) -> None:
        results = Results([cell("conlst", "sw", 13, 126, 120), cell("conlst", "fr", 13, 126)])
        with pytest.raises(DataError, match="conlst has both inductive and zero-shot cells"):
            results.of("conlst", "inductive", "test")


class TestRows:
    def test_a_row_a_system_of_the_development_languages_only(self, blocks: dict[str, str]) -> None:
        rows = lines(blocks["rows"])
        assert {row["language"] for row in rows} == {"sw", "ur"}
        wanted = {(one.system, one.language) for one in example() if one.language != "fr"}
        assert {(row["system"], row["language"]) for row in rows} == wanted
        assert len(rows) == len(wanted)

    def test_numbers_of_one_seed(self, blocks: dict[str, str]) -> None:
        row = row_of(blocks["rows"], system="conlst", language="ur")
        assert (row["accuracy"], row["gain over zero-shot"]) == (shown([112]), shown([-6], gain=True))
        assert row["gain over zero-shot"] == "−3.00 (1)"
        assert (row["pool"], row["seeds"], row["gain over plain zero-shot"]) == ("2,490", "1", "–")
        assert row["ECE"] == f"{cell('conlst', 'ur', 13, 112, 118).evaluation['ece']:.3f}"
        # 60 + 13 of stage 1 and 30 of stage 2, nothing of stage 0
        assert row["seconds"] == "103"

    def test_another_stage_0_is_held_against_the_plain_one(self, blocks: dict[str, str]) -> None:
        row = row_of(blocks["rows"], system="robust", language="ur")
        assert (row["started from"], row["protocol"], row["gain over zero-shot"]) == ("robust", "zero-shot", "–")
        assert row["gain over plain zero-shot"] == shown([-1], gain=True)
        assert (row["pool"], row["seconds"]) == ("–", "–")

    def test_seeds_splits_and_protocols_do_not_mix(self) -> None:
        cells = [cell("conlst", "fr", seed, right, ZERO_SHOT["fr"][seed]) for seed, right in CONLST["fr"].items()]
        cells += [cell("conlst", "fr", 13, 150, 140, protocol="transductive"), cell("conlst", "fr", 13, 160, 139, tested="dev")]
        block = tables.rows(Results(cells), ["fr"])
        assert row_of(block, tested_on="test", protocol="inductive")["accuracy"] == shown([144, 143, 145])
        assert row_of(block, tested_on="test", protocol="inductive")["gain over zero-shot"] == shown([4, 1, 7], gain=True)
        assert row_of(block, tested_on="test", protocol="inductive")["seconds"] == "104"
        assert row_of(block, tested_on="test", protocol="transductive")["accuracy"] == shown([150])
        assert row_of(block, tested_on="dev")["gain over zero-shot"] == shown([21], gain=True)

    def test_the_caption_says_what_chance_does(self) -> None:
        one = cell("conlst", "sw", 13, 126, 120)
        before, after = (values.argmax(1) == LABELS for values in (probabilities(120), probabilities(126, shift=7)))
        change = after.astype(float) - before
        paired = math.sqrt(((change - change.mean()) ** 2).mean() / N)
        single = math.sqrt(0.63 * 0.37 / N)
        caption = tables.rows(Results([one]), ["sw"]).rsplit("\n\n", 1)[1]
        assert f"One standard error at 200 pairs is {100 * single:.2f} points for an accuracy" in caption
        assert f"{100 * paired:.2f} points for a gain over zero-shot" in caption
        assert paired < single


class TestMain:
    def test_systems_languages_and_spread(self, blocks: dict[str, str]) -> None:
        row = row_of(blocks["main"].split("**Transductive**")[0], system="conlst")
        assert (row["fr"], row["sw*"], row["ur*"]) == (shown([144, 143, 145]), shown([126]), shown([112]))
        # only seed 13 has all three languages, and French alone has all three seeds
        assert row["mean"] == f"{100 * (144 + 126 + 112) / 3 / N:.2f} (1), 3 languages"
        assert row["mean without *"] == f"{shown([144, 143, 145])}, 1 language"
        assert row["worse"] == ""

    def test_missing_cells_are_shown_as_missing(self, blocks: dict[str, str]) -> None:
        row = row_of(blocks["main"].split("**Transductive**")[0], system="sl-evi")
        assert row["ur*"] == "–"
        assert row["mean"] == f"{100 * (150 + 124) / 2 / N:.2f} (1), 2 languages"

    def test_gains_over_zero_shot_count_the_languages_that_got_worse(self, blocks: dict[str, str]) -> None:
        block = blocks["main"].split("**Transductive**")[0]
        row = row_of(block, system="gain of conlst over zero-shot")
        assert (row["fr"], row["ur*"]) == (shown([4, 1, 7], gain=True), shown([-6], gain=True))
        assert row["mean"] == f"{100 * (4 + 6 - 6) / 3 / N:+.2f} (1), 3 languages"
        assert row["worse"] == "1 of 3"
        robust = row_of(block, system="gain of robust over plain zero-shot")
        assert (robust["fr"], robust["worse"]) == (shown([3], gain=True), "1 of 3")

    def test_rivals_are_met_on_what_both_have(self, blocks: dict[str, str]) -> None:
        block = blocks["main"].split("**Transductive**")[0]
        evi = row_of(block, system="gain of conlst over sl-evi")
        assert (evi["fr"], evi["sw*"], evi["ur*"]) == (shown([-6], gain=True), shown([2], gain=True), "–")
        assert (evi["mean"], evi["worse"]) == (f"{100 * -4 / 2 / N:.2f} (1), 2 languages".replace("-", "−"), "1 of 2")
        # robust: 144 - 143, 126 - 122, 112 - 117; sl-lou: 144 - 141, 126 - 121, 112 - 119
        best = row_of(block, system="gain of conlst over robust, the best rival")
        assert (best["mean"], best["worse"]) == ("+0.00 (1), 3 languages", "1 of 3")
        assert row_of(block, system="gain of conlst over sl-lou")["mean"] == f"{100 / 3 / N:+.2f} (1), 3 languages"

    def test_the_best_rival_is_the_one_with_the_least_gain_over_it(self) -> None:
        cells = [cell("conlst", "sw", 13, 126, 120), cell("sl-evi", "sw", 13, 130, 120), cell("sl-lou", "sw", 13, 125, 120)]
        block = tables.main(Results(cells), GROUPS, ["sw"])
        assert (
            row_of(block.split("**Transductive**")[0], system="gain of conlst over sl-evi, the best rival")["worse"] == "1 of 1"
        )

    def test_an_ablation_that_decides_is_met_too_but_is_no_rival(self, blocks: dict[str, str]) -> None:
        groups = GROUPS | {"deciding": ["zero-shot", "conlst", "no-source"]}
        # no-source gives the least to gain of all: 126 - 126, 112 - 110
        block = tables.main(Results(example()), groups, ["sw", "ur"]).split("**Transductive**")[0]
        row = row_of(block, system="gain of conlst over no-source, an ablation of it")
        assert (row["sw*"], row["ur*"], row["worse"]) == (shown([0], gain=True), shown([2], gain=True), "0 of 2")
        assert row_of(block, system="gain of conlst over robust, the best rival")
        assert "an ablation" not in blocks["main"]

    def test_protocols_stand_apart_and_zero_shot_stands_in_both(self) -> None:
        cells = [*example(), cell("conlst", "fr", 13, 150, 140, protocol="transductive", pool=7500)]
        inductive, transductive = tables.main(Results(cells), GROUPS, []).split("**Transductive**")
        assert row_of(inductive, system="conlst")["fr"] == shown([144, 143, 145])
        assert row_of(transductive, system="conlst")["fr"] == shown([150])
        for part in (inductive, transductive):
            row = row_of(part, system="zero-shot")
            assert (row["fr"], row["protocol"]) == (shown([140, 142, 138]), "zero-shot")
        assert row_of(transductive, system="sl-evi")["protocol"] == "–"

    def test_a_protocol_without_adapted_cells_says_so(self, blocks: dict[str, str]) -> None:
        assert blocks["main"].split("**Transductive**\n\n")[1].startswith("No cells yet.")

    def test_pairs_of_development_are_not_test_pairs(self) -> None:
        cells = [cell("conlst", "sw", 13, 126, 120), cell("conlst", "ur", 13, 126, 120, tested="dev")]
        (row, *_) = [row for row in lines(tables.main(Results(cells), GROUPS, [])) if row["system"] == "conlst"]
        assert "ur" not in row

    def test_systems_are_described_without_breaking_the_page(self, blocks: dict[str, str]) -> None:
        assert r"- conlst: the conlst \| of &lt;tests&gt;" in blocks["main"]


class TestTable4:
    def test_bands_with_counts_and_equal_coverage(self, blocks: dict[str, str]) -> None:
        rows = lines(blocks["table4"])
        assert [(row["system"], row["language"]) for row in rows] == [("conl", "fr"), ("conl", "ur"), ("nl", "fr")]
        comparison = cell("conl", "ur", 13, 117, 118).comparison
        assert comparison is not None
        for name, band in zip(("> 0.9", "0.5-0.9", "< 0.5"), comparison["bands"], strict=True):
            sides = (f"{100 * band[side]['accuracy']:.1f} % of {band[side]['count']}" for side in ("before", "after"))
            assert rows[1][name] == " → ".join(sides)
        for percent, place in ((20, 1), (50, 2)):
            found = comparison["coverage"][place]
            assert found["percent"] == percent
            assert rows[1][f"cleanest {percent} %"] == f"{100 * found['before']:.1f} → {100 * found['after']:.1f}"
        assert (rows[1]["pairs"], rows[1]["seeds"]) == ("200", "1")

    def test_several_seeds_pool_their_bands(self) -> None:
        cells = [cell("conl", "fr", seed, right, ZERO_SHOT["fr"][seed]) for seed, right in CONLST["fr"].items()]
        (row,) = lines(tables.table4(Results(cells), GROUPS))
        highs = [(one.comparison or {})["bands"][0]["after"] for one in cells]
        count, right = sum(high["count"] for high in highs), sum(high["correct"] for high in highs)
        assert row["> 0.9"].endswith(f"→ {100 * right / count:.1f} % of {count / 3:.0f}")
        assert row["seeds"] == "3"

    def test_an_emptied_band_is_none_and_not_an_error(self) -> None:
        doubtful = np.full((N, 3), 0.2) + 0.4 * np.eye(3)[LABELS]
        evaluate = Evaluate()
        changes = {
            "evaluation": evaluate_probabilities(doubtful, LABELS, evaluate),
            "comparison": compare(probabilities(120), doubtful, LABELS, evaluate),
        }
        (row,) = lines(tables.table4(Results([cell("conl", "sw", 13, N, 120, **changes)]), GROUPS))
        assert row["> 0.9"].endswith("→ none")
        assert row["0.5-0.9"].endswith("→ 100.0 % of 200")

    def test_bands_of_other_borders_are_refused(self) -> None:
        evaluate = Evaluate(high=0.8)
        other = compare(probabilities(140), probabilities(141, shift=7), LABELS, evaluate)
        cells = [cell("conl", "fr", 13, 141, 140, comparison=other), cell("conl", "ur", 13, 117, 118)]
        with pytest.raises(DataError, match=r"bands > 0\.9.*> 0\.8"):
            tables.table4(Results(cells), GROUPS)


class TestAblations:
    @pytest.fixture
    def parts(self, blocks: dict[str, str]) -> tuple[str, str]:
        """Changes of the method, and of the base."""
        method, base = blocks["ablations"].split("**Changes of conl**")
        return method, base

    def test_changes_are_against_the_same_language_and_seed(self, parts: tuple[str, str]) -> None:
        row = row_of(parts[0], system="no-mixup")
        changes = [142 - 144, 144 - 143, 121 - 126]
        assert row["change"] == shown(changes, gain=True)
        assert (row["lower in"], row["languages"]) == ("2 of 3", "fr, sw")
        assert (row["accuracy"], row["conlst there"]) == tuple(
            f"{100 * mean(counts) / N:.2f}" for counts in ((142, 144, 121), (144, 143, 126))
        )
        # equal is not lower
        source = row_of(parts[0], system="no-source")
        assert (source["change"], source["lower in"]) == (shown([0, -2], gain=True), "1 of 2")

    def test_variants_are_against_the_base(self, parts: tuple[str, str]) -> None:
        assert parts[0].startswith("**Changes of conlst**\n\n")
        assert [row["system"] for row in lines(parts[1])] == ["nl", "sl-lou"]
        assert row_of(parts[1], system="nl")["change"] == shown([131 - 141], gain=True)
        added = row_of(parts[1], system="sl-lou")
        assert (added["change"], added["languages"]) == (shown([0, 2], gain=True), "fr, ur")
        assert "minus that of conl, in points" in parts[1]

    def test_without_a_base_there_are_changes_of_the_method_alone(self, parts: tuple[str, str]) -> None:
        groups = {name: systems for name, systems in GROUPS.items() if name not in ("base", "variants")}
        assert tables.ablations(Results(example()), groups) == parts[0].strip()

    def test_one_without_cells_is_named(self, parts: tuple[str, str]) -> None:
        assert "Without a cell to compare yet: never-run." in parts[0]
        assert "no-mixup." not in parts[0]
        assert "Without a cell" not in parts[1]

    def test_splits_and_protocols_are_not_compared(self) -> None:
        cells = [cell("conlst", "sw", 13, 126, 120), cell("no-mixup", "sw", 13, 125, 120, tested="dev")]
        cells += [cell("no-source", "sw", 13, 125, 120, protocol="transductive")]
        block = tables.ablations(Results(cells), GROUPS)
        assert block == "**Changes of conlst**\n\nNo cells yet.\n\n**Changes of conl**\n\nNo cells yet."

    def test_the_standard_errors_are_of_the_cells_of_the_table(self) -> None:
        changed, full = cell("no-mixup", "sw", 13, 121, 120), cell("conlst", "sw", 13, 126, 120)
        fewer = [probabilities(right)[:150] for right in (120, 126)]
        alone = cell(
            *("conlst", "id", 13, 126, 120),
            evaluation=evaluate_probabilities(fewer[1], LABELS[:150], Evaluate()),
            comparison=compare(*fewer, LABELS[:150], Evaluate()),
        )
        block = tables.ablations(Results([changed, full, alone]), GROUPS)
        before = (probabilities(120).argmax(1) == LABELS).astype(float)
        gains = [(probabilities(right, shift=7).argmax(1) == LABELS) - before for right in (121, 126)]
        error = math.sqrt(sum(((gain - gain.mean()) ** 2).mean() for gain in gains) / N)
        assert f"at most about {100 * error:.2f} points for the change in one language and seed (one change)" in block
        share = (121 + 126) / 2 / N
        assert f"at 200 pairs is {100 * math.sqrt(share * (1 - share) / N):.2f} points for an accuracy" in block
        assert "150 pairs" not in block
        assert "gain over zero-shot" not in block

    def test_a_change_has_no_standard_error_if_the_two_started_apart(self) -> None:
        cells = [cell("conlst", "sw", 13, 126, 120), cell("no-mixup", "sw", 13, 125, 122, started_from="robust")]
        block = tables.ablations(Results(cells), GROUPS)
        assert "points for an accuracy." in block
        assert "at most about" not in block


class TestCost:
    def test_a_run_that_cells_share_counts_once(self, blocks: dict[str, str]) -> None:
        # seeds 13, 14, 15 of French and 13 of the two others, and seven systems that have them in common
        calibrate = row_of(blocks["cost"], stage="calibrate")
        assert (calibrate["runs"], calibrate["pool"]) == ("5", "2,490")
        assert (calibrate["steps"], calibrate["seconds"]) == ("40 (40 to 40)", "73 (73 to 75)")
        assert calibrate["seconds a step"] == f"{73 / 40:.1f} (1.8 to {75 / 40:.1f})"
        assert row_of(blocks["cost"], stage="stage 0, robust")["runs"] == "1"

    def test_runs_of_other_systems_and_pools_count_too(self) -> None:
        calibrate = {"name": "calibrate", "seconds": 73.0, "steps": 40}
        cells = [
            cell("conl", "sw", 13, 126, 120, stages=[calibrate]),
            cell("conlst", "sw", 13, 126, 120, stages=[calibrate, {"name": "selftrain", "seconds": 1000.0, "steps": 20}]),
            cell("again", "sw", 13, 126, 120, stages=[calibrate | {"seconds": 75.0}]),
            cell("wide", "sw", 13, 126, 120, stages=[calibrate | {"seconds": 300.0}], pool=10_330),
        ]
        block = tables.cost(Results(cells))
        assert [(row["stage"], row["pool"], row["runs"], row["seconds"]) for row in lines(block)] == [
            ("calibrate", "2,490", "2", "74 (73 to 75)"),
            ("calibrate", "10,330", "1", "300"),
            ("selftrain", "2,490", "1", "1,000"),
        ]

    def test_stage_0_is_one_run_a_seed_whatever_the_machine(self) -> None:
        other = {"cores": 8, "threads": 8, "model": "other"}
        cells = [
            cell("zero-shot", "sw", 13, 120),
            cell("zero-shot", "fr", 13, 140, machine=other),
            cell("zero-shot", "sw", 14, 120),
        ]
        block = tables.cost(Results(cells))
        row = row_of(block, stage="stage 0, plain")
        assert (row["runs"], row["seconds"], row["pool"]) == ("2", "900 (900 to 900)", "–")
        assert r"other with 8 cores, threads 8, jobs 1 (1 cell); x86\_64 with 4 cores, threads 2, jobs 1 (2 cells)" in block

    def test_a_joint_run_counts_once_for_its_languages(self) -> None:
        joint: dict[str, Any] = {"languages_joint": ["fr", "sw", "ur"], "pool": 7470}
        cells = [cell("joint", "sw", 13, 126, 120, **joint), cell("joint", "fr", 13, 126, 140, **joint)]
        row = row_of(tables.cost(Results(cells)), stage="calibrate")
        assert (row["pool"], row["runs"]) == ("7,470 in 3 languages", "1")

    def test_a_stage_without_a_step_has_no_time_for_one(self) -> None:
        one = cell("rebalanced", "sw", 13, 126, 120, stages=[{"name": "selftrain", "seconds": 8.0, "steps": 0}])
        row = row_of(tables.cost(Results([one])), stage="selftrain")
        assert (row["steps"], row["seconds"], row["seconds a step"]) == ("0", "8", "–")

    def test_what_was_interrupted_has_no_time(self) -> None:
        stopped = {"name": "selftrain", "seconds": None, "steps": 40}
        cells = [
            cell("conl", "sw", 13, 126, 120, stages=[stopped]),
            cell("conlst", "sw", 14, 126, 120, stages=[{"name": "selftrain", "seconds": 30.0, "steps": 20}]),
        ]
        results = Results(cells)
        row = row_of(tables.cost(results), stage="selftrain")
        assert (row["runs"], row["steps"], row["seconds"], row["seconds a step"]) == ("2", "30 (20 to 40)", "30", "1.5")
        assert row_of(tables.rows(results, ["sw"]), system="conl")["seconds"] == "–"

    def test_interrupted_runs_are_told_apart_by_what_they_left(self) -> None:
        def stopped(selected: int) -> list[dict[str, Any]]:
            return [{"name": "selftrain", "seconds": None, "steps": 40, "selected": [[selected, 6, 7]]}]

        cells = [cell(system, "sw", 13, 126, 120, stages=stopped(at)) for system, at in (("a", 1), ("b", 1), ("c", 2))]
        assert row_of(tables.cost(Results(cells)), stage="selftrain")["runs"] == "2"

    def test_where_the_cells_come_from(self) -> None:
        cells = [cell("conlst", "sw", 13, 126, 120), cell("conlst", "sw", 14, 126, 120, dirty=True, commit="fedcba9876543210")]
        block = tables.cost(Results(cells))
        assert "2 cells, by commit: 0123456789 (1), fedcba9876 (1); 1 of them from a tree with changes" in block


class TestFill:
    PAGE = "# Results\n\nprose\n\n<!-- bench:rows -->\nold\n<!-- /bench -->\nmore\n<!-- bench:cost --><!-- /bench -->\nend\n"

    def test_blocks_are_replaced_and_prose_stays(self) -> None:
        filled = tables.fill(self.PAGE, {"cost": "| c |", "rows": "| r |\n\nnote"})
        assert filled == (
            "# Results\n\nprose\n\n<!-- bench:rows -->\n| r |\n\nnote\n<!-- /bench -->\nmore\n"
            "<!-- bench:cost -->\n| c |\n<!-- /bench -->\nend\n"
        )
        assert tables.fill(filled, {"cost": "| c |", "rows": "| r |\n\nnote"}) == filled

    @pytest.mark.parametrize(
        ("page", "message"),
        [
            ("<!-- bench:rows -->", r"bench:rows --> is not closed"),
            ("a\n<!-- /bench -->", r"line 2: <!-- /bench --> without an opening"),
            ("<!-- bench:rows -->\n<!-- bench:cost -->\n<!-- /bench -->", r"line 2: <!-- bench:cost --> without the closing"),
            ("<!-- bench:rows --><!-- /bench -->", "no place for the table cost"),
            ("<!-- bench:rows --><!-- /bench -->\n<!-- bench:rows --><!-- /bench -->", "line 2: .* stands twice"),
            ("<!-- bench:raws --><!-- /bench -->", "bench:raws --> stands for no table"),
        ],
    )
    def test_wrong_markers_are_refused(self, page: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            tables.fill(page, {"rows": "r", "cost": "c"})

    def test_a_block_cannot_bring_a_marker(self) -> None:
        with pytest.raises(DataError, match="rows holds a marker"):
            tables.fill("<!-- bench:rows --><!-- /bench -->", {"rows": "x <!-- /bench -->"})

    def test_no_name_in_a_cell_can_end_a_block(self) -> None:
        one = cell("conlst", "sw", 13, 126, 120, describes="<!-- /bench --> | x", commit="<!-- /bench -->")
        page = "".join(f"<!-- bench:{name} --><!-- /bench -->\n" for name in ("rows", "main", "table4", "ablations", "cost"))
        blocks = tables.blocks([one], GROUPS, ["sw"])
        assert tables.fill(tables.fill(page, blocks), blocks).count("<!-- /bench -->") == 5


class TestBlocks:
    def test_no_cells_make_empty_tables(self) -> None:
        blocks = tables.blocks([], GROUPS, ["sw"])
        assert list(blocks) == ["rows", "main", "table4", "ablations", "cost"]
        assert all("No cells yet." in block and "|" not in block for block in blocks.values())

    def test_the_order_of_the_cells_does_not_show(self, blocks: dict[str, str]) -> None:
        assert tables.blocks(example()[::-1], GROUPS, ["sw", "ur"]) == blocks

    @pytest.mark.parametrize("name", GROUPS)
    def test_every_group_must_be_there(self, name: str) -> None:
        with pytest.raises(ConfigError, match=name):
            tables.blocks(example(), {key: value for key, value in GROUPS.items() if key != name}, ["sw"])

    @pytest.mark.parametrize("name", ["method", "base"])
    def test_there_is_one_method_and_one_base(self, name: str) -> None:
        with pytest.raises(ConfigError, match=f"'{name}' is one system, not 2: conlst, conl"):
            tables.blocks(example(), GROUPS | {name: ["conlst", "conl"]}, ["sw"])


def words(path: Path) -> str:
    """The text in an SVG: matplotlib notes each piece in a comment above its outlines."""
    ElementTree.parse(path)
    return "\n".join(text.strip() for text in re.findall(r"<!--(.*?)-->", path.read_text(encoding="utf-8"), re.DOTALL))


class TestFigures:
    def test_what_the_cells_allow_is_drawn_with_its_facts(self, tmp_path: Path) -> None:
        drawn = figures.draw(example(), GROUPS, ["fr", "ur", "zh"], tmp_path / "figures")
        names = ["noise-conl-inductive-test", "noise-nl-inductive-test", "training-inductive-test", "gain-inductive"]
        assert [path.name for path in drawn] == [f"{name}.svg" for name in names]
        noise, _, training, gain = (words(path) for path in drawn)
        assert "conl: clean and noisy pairs by confidence · fr, ur, inductive" in noise
        assert "n = 200 of test, pool of 2,490 pairs" in noise
        assert "ur after, seed 13: 83 noisy, 117 clean" in noise
        assert "ur before, seed 13: 82 noisy, 118 clean" in noise
        assert "pool of 2,490 pairs" in training
        assert "fr, 1 seed" in training
        assert "nl" in training.splitlines()
        assert "n = 200 of test; a dot a seed" in gain
        assert "conlst, 3 languages, 3 seeds" in gain
        assert "sl-evi, 2 languages, 1 seed" in gain
        assert "robust" not in gain

    def test_the_same_cells_give_the_same_bytes(self, tmp_path: Path) -> None:
        one = figures.draw(example(), GROUPS, ["fr"], tmp_path / "one")
        other = figures.draw(example()[::-1], GROUPS, ["fr"], tmp_path / "other")
        assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]

    def test_every_seed_is_a_dot_and_a_loss_has_its_colour(self, tmp_path: Path) -> None:
        cells = [one for one in example() if one.system == "conlst"]
        (path,) = figures.draw(cells, GROUPS, [], tmp_path)
        # after the axes come the frames and the legend, which has a dot of each colour too
        panel = path.read_text().split('id="legend_1"')[0]
        dots = re.findall(r"<use [^>]*style=\"fill: (#009e73|#e69f00)", panel)
        assert sorted(dots) == ["#009e73"] * 4 + ["#e69f00"]

    def test_histograms_are_of_the_lowest_seed(self, tmp_path: Path) -> None:
        cells = [cell("conl", "fr", seed, right, ZERO_SHOT["fr"][seed]) for seed, right in CONLST["fr"].items()]
        noise, training = figures.draw(cells[::-1], GROUPS, ["fr"], tmp_path)
        assert "seed 13: 56 noisy, 144 clean" in words(noise)
        assert "seed 14" not in words(noise)
        assert "fr, 3 seeds" in words(training)

    def test_nothing_to_draw_draws_nothing(self, tmp_path: Path) -> None:
        assert figures.draw([cell("zero-shot", "sw", 13, 120)], GROUPS, ["sw"], tmp_path) == []
