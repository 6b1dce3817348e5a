import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from conlst.contract.artifacts import read_manifest
from conlst.contract.errors import ArtifactError, DataError
from conlst.data.pairs import (
    FEATURES,
    SEVERAL,
    Ingested,
    check_no_leak,
    collected_in,
    fingerprint,
    ingest,
    merge_pairs,
    read_pairs,
    require_labels,
    text_hash,
    write_pairs,
)


def row(number: int = 1, **changes: object) -> dict[str, object]:
    return {
        "premise": f"The ferry left pier {number} at noon.",
        "hypothesis": f"A boat set out from pier {number}.",
        "label": "entailment",
        "genre": "travel",
        "pair_id": f"p{number}",
        **changes,
    }


def ingested(*rows: dict[str, object], max_bad_share: float = 1.0, genres: Sequence[str] = ()) -> Ingested:
    return ingest(rows, language="en", max_bad_share=max_bad_share, genres=genres)


def reasons(result: Ingested) -> list[tuple[int, str]]:
    return [(entry["number"], entry["reason"]) for entry in result.quarantine]


def test_good_rows_become_records_in_order() -> None:
    result = ingested(row(1), row(2, label="contradictory"), row(3, label="Neutral"))
    assert result.pairs.features == FEATURES
    assert result.pairs["label"] == [0, 2, 1]
    assert result.pairs["pair_id"] == ["p1", "p2", "p3"]
    assert result.pairs["language"] == ["en"] * 3
    assert result.quarantine == []
    assert result.report["labels"] == {"entailment": 1, "neutral": 1, "contradiction": 1, "unlabelled": 0}


@pytest.mark.parametrize("label", [None, "", "-", " - "])
def test_missing_labels_are_null(label: str | None) -> None:
    result = ingested(row(1, label=label), {"premise": "It rains.", "hypothesis": "It is wet."})
    assert result.pairs["label"] == [None, None]
    assert result.report["labels"]["unlabelled"] == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"premise": ""}, "empty premise"),
        ({"hypothesis": " \t\u00a0"}, "empty hypothesis"),
        ({"hypothesis": "\u200b\u200f"}, "empty hypothesis"),
        ({"premise": None}, "empty premise"),
        ({"premise": 7}, "premise is not text"),
        ({"label": "entails"}, "unknown label"),
        ({"label": 0}, "unknown label"),
        ({"label": "0"}, "unknown label"),
        ({"premise": "T\x00h\x00e"}, "NUL in premise"),
        ({"pair_id": "a\x00"}, "NUL in pair_id"),
        ({"hypothesis": "cut \ud83d"}, "lone surrogate in hypothesis"),
        ({"premise": "a" * 20_001}, "premise too long"),
        ({"language": "fr"}, "wrong language"),
        ({"malformed": "line 2 has 3 fields, the header 5"}, "malformed row"),
    ],
)
def test_bad_rows_are_quarantined_with_number_and_reason(changes: dict[str, object], reason: str) -> None:
    bad = row(2, **changes)
    result = ingested(row(1), bad, row(3))
    assert reasons(result) == [(2, reason)]
    assert result.quarantine[0]["row"] == bad
    assert result.pairs["pair_id"] == ["p1", "p3"]
    assert result.report["bad"] == 1
    assert result.report["set_aside"] == {reason: 1}


def test_text_at_the_limit_and_own_language_are_kept() -> None:
    result = ingested(row(1, premise="a" * 20_000, language="EN"))
    assert len(result.pairs) == 1


def test_unicode_is_composed_and_marks_are_counted() -> None:
    result = ingested(row(1, premise="cafe\u0301 "), row(2, hypothesis="\u200fیہ درست ہے"), row(3, premise="on\x08e\x0btwo"))
    assert result.pairs["premise"][0] == "café"
    assert result.pairs["hypothesis"][1] == "\u200fیہ درست ہے"
    assert result.pairs["premise"][2] == "one two"
    assert result.report["notes"] == {"composed_unicode": 1, "control_characters": 1, "direction_marks": 1}


def test_first_of_exact_duplicates_is_kept_and_they_are_not_bad() -> None:
    result = ingested(row(1), row(1, pair_id="again"), row(1, label=None, pair_id="x"), max_bad_share=0.0)
    assert result.pairs["pair_id"] == ["p1"]
    assert reasons(result) == [(2, "exact duplicate"), (3, "exact duplicate")]
    assert result.report["bad"] == 0
    assert result.report["set_aside"] == {"exact duplicate": 2}


def test_same_texts_under_two_labels_are_kept_and_counted() -> None:
    result = ingested(row(1), row(1, label="neutral", pair_id="p9"))
    assert result.pairs["label"] == [0, 1]
    assert result.report["notes"] == {"label_conflicts": 1}


def test_pair_id_of_other_texts_is_bad() -> None:
    result = ingested(row(1), row(2, pair_id="p1"))
    assert reasons(result) == [(2, "repeated pair_id")]
    assert "row 1" in result.quarantine[0]["detail"]


def test_pair_ids_are_made_from_content() -> None:
    first, second = ingested(row(1, pair_id=""), row(2, pair_id=None)), ingested(row(2, pair_id=""), row(1, pair_id=""))
    assert len(set(first.pairs["pair_id"])) == 2
    assert set(first.pairs["pair_id"]) == set(second.pairs["pair_id"])
    assert first.report["notes"] == {"made_pair_ids": 2}


def test_too_many_bad_rows_name_the_commonest_reason_with_an_example() -> None:
    rows = [row(n) for n in range(1, 96)] + [row(96, premise="")] + [row(n, label="yes") for n in range(97, 101)]
    assert len(ingested(*rows, max_bad_share=0.05).pairs) == 95
    with pytest.raises(DataError, match=r"5 of 100 rows are bad.*unknown label, 4 times, first in row 97 \(label 'yes'"):
        ingested(*rows, max_bad_share=0.049)


def test_genre_filter_counts_apart_from_bad_rows() -> None:
    result = ingested(
        row(1), row(2, genre="Fiction"), row(3, genre="slate"), row(4, genre=""), max_bad_share=0, genres=["fiction"]
    )
    assert result.pairs["pair_id"] == ["p2"]
    assert result.quarantine == []
    assert (result.report["other_genre"], result.report["genres"]) == (3, {"Fiction": 1})


@pytest.mark.parametrize(
    ("rows", "genres", "message"),
    [
        ([], (), "no rows"),
        ([row(1, genre="")], ("travel",), "no row has a genre.*leave data.genres empty"),
        ([row(1)], ("fiction",), "no pair is of the genres fiction; the data has travel"),
        ([row(1, premise="")], (), "no pair is left of 1"),
    ],
)
def test_nothing_left_is_an_error(rows: list[dict[str, object]], genres: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ingested(*rows, genres=genres)


def test_require_labels_counts_the_missing() -> None:
    pairs = ingested(row(1), row(2, label=None)).pairs
    require_labels(pairs.select([0]), "dev")
    with pytest.raises(DataError, match=r"dev: 1 of 2 pairs have no label, first pair_id 'p2'"):
        require_labels(pairs, "dev")


def test_fingerprint_ignores_order_and_sees_every_field() -> None:
    pairs = ingested(row(1), row(2), row(3)).pairs
    assert fingerprint(pairs) == fingerprint(pairs.select([2, 0, 1]))
    others = [
        pairs.select([0, 1]),
        ingested(row(1), row(2), row(3), row(4)).pairs,
        ingested(row(1), row(2), row(3, label=None)).pairs,
        ingested(row(1), row(2), row(3, genre="oup")).pairs,
        ingested(row(1), row(2), row(3, premise="else")).pairs,
    ]
    assert len({fingerprint(other) for other in [pairs, *others]}) == 6


def test_text_hash_ignores_case_space_and_composition_only() -> None:
    assert text_hash("Cafe\u0301  STRASSE", "a b") == text_hash("café straße", " A\tb ")
    assert text_hash("a", "b") != text_hash("b", "a")
    assert text_hash("a b", "c") != text_hash("a", "b c")


@given(st.text(), st.text())
def test_text_hash_is_stable_under_its_own_folding(premise: str, hypothesis: str) -> None:
    assert text_hash(premise, hypothesis) == text_hash(f" {premise.casefold()} ", hypothesis.casefold())


def test_leaks_are_counted() -> None:
    training = ingested(row(1), row(2), row(3)).pairs
    evaluation = ingested(row(9), row(2, premise="THE  ferry left pier 2 at noon.", pair_id="q2")).pairs
    check_no_leak(training, evaluation.select([0]), ("training", "test"))
    with pytest.raises(DataError, match=r"1 of 2 pairs of test also stand in training, first pair_id 'q2'"):
        check_no_leak(training, evaluation, ("training", "test"))


def test_published_pairs_are_read_back_and_bytes_are_equal(tmp_path: Path) -> None:
    result = ingested(row(1), row(2, premise="cut \ud83d and \x00"), row(3, hypothesis="بارش", label=None))
    write_pairs(result, tmp_path / "a", config={"seed": 1}, parents={"raw": "ab"}, meta={"role": "pool"})
    write_pairs(ingested(row(1), row(2, premise="cut \ud83d and \x00"), row(3, hypothesis="بارش", label=None)), tmp_path / "b")
    a, b = read_manifest(tmp_path / "a", "pairs"), read_manifest(tmp_path / "b", "pairs")
    assert a.files == b.files
    assert a.files.keys() == {"pairs.parquet", "quarantine.jsonl", "report.json"}
    assert a.meta == {"language": "en", "pairs": 2, "fingerprint": fingerprint(result.pairs), "role": "pool"}
    assert (a.config, a.parents) == ({"seed": 1}, {"raw": "ab"})
    again = read_pairs(tmp_path / "a")
    assert again.features == FEATURES
    assert again.to_list() == result.pairs.to_list()
    quarantined = json.loads((tmp_path / "a" / "quarantine.jsonl").read_text(encoding="utf-8"))
    assert quarantined["row"]["premise"] == "cut \ud83d and \x00"
    assert json.loads((tmp_path / "a" / "report.json").read_text())["bad"] == 1


def test_a_selection_is_written_in_its_own_order(tmp_path: Path) -> None:
    result = ingested(row(1), row(2), row(3))
    write_pairs(Ingested(result.pairs.select([2, 0]), [], result.report), tmp_path / "a")
    assert read_pairs(tmp_path / "a")["pair_id"] == ["p3", "p1"]


def test_altered_pairs_are_refused(tmp_path: Path) -> None:
    write_pairs(ingested(row(1)), tmp_path / "a")
    path = tmp_path / "a" / "pairs.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"pairs\.parquet"):
        read_pairs(tmp_path / "a")


def test_pairs_without_rows_lack_no_label() -> None:
    require_labels(Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES), "nothing")


def published(folder: Path, *rows: dict[str, object], language: str = "en") -> Path:
    write_pairs(ingest(rows, language=language, max_bad_share=0.0), folder)
    return folder


def test_merged_pairs_of_one_language_are_as_they_were_in_their_order(tmp_path: Path) -> None:
    parts = [published(tmp_path / "a", row(2), row(1)), published(tmp_path / "b", row(3, label=None))]
    merge_pairs(parts, tmp_path / "out")
    merged = read_pairs(tmp_path / "out")
    assert merged.features == FEATURES
    assert merged.to_list() == [pair for part in parts for pair in read_pairs(part).to_list()]
    manifest = read_manifest(tmp_path / "out", "pairs")
    assert manifest.parents == {f"part{number}": read_manifest(part).digest for number, part in enumerate(parts)}
    assert manifest.meta == {"language": "en", "pairs": 3, "fingerprint": fingerprint(merged)}
    assert (tmp_path / "out" / "quarantine.jsonl").read_text() == ""


def test_merged_pairs_of_several_languages_are_told_apart_by_their_ids(tmp_path: Path) -> None:
    # parallel pairs have the same ids
    parts = [published(tmp_path / language, row(1), row(2), language=language) for language in ("sw", "fr")]
    merge_pairs(parts, tmp_path / "out")
    merged = read_pairs(tmp_path / "out")
    assert merged["pair_id"][:] == ["sw:p1", "sw:p2", "fr:p1", "fr:p2"]
    assert merged["language"][:] == ["sw", "sw", "fr", "fr"]
    plain = [pair for part in parts for pair in read_pairs(part).to_list()]
    assert merged.remove_columns("pair_id").to_list() == [{k: v for k, v in pair.items() if k != "pair_id"} for pair in plain]
    assert read_manifest(tmp_path / "out").meta["language"] == SEVERAL == "mul"


def test_merging_again_makes_the_same_digest_and_another_order_another(tmp_path: Path) -> None:
    parts = [published(tmp_path / "a", row(1)), published(tmp_path / "b", row(2), language="sw")]
    for name, order in (("one", parts), ("two", parts), ("other", parts[::-1])):
        merge_pairs(order, tmp_path / name)
    one, two, other = (read_manifest(tmp_path / name).digest for name in ("one", "two", "other"))
    assert one == two != other
    assert fingerprint(read_pairs(tmp_path / "one")) == fingerprint(read_pairs(tmp_path / "other"))


def test_what_was_collected_in_the_parts_is_collected_in_the_whole(tmp_path: Path) -> None:
    found = {"sw": {"collected:a": ["1", "2"]}, "fr": {"collected:a": ["3"], "collected:b": ["4"]}, "ur": {}}
    for number, (language, collected) in enumerate(found.items()):
        made = ingest([row(number)], language=language, max_bad_share=0.0)
        made.report.update({"collected": collected} if collected else {})
        write_pairs(made, tmp_path / language)
    merge_pairs([tmp_path / language for language in found], tmp_path / "out")
    assert collected_in(tmp_path / "out") == {"collected:a": ["1", "2", "3"], "collected:b": ["4"]}


def test_what_the_checks_of_the_parts_said_is_kept(tmp_path: Path) -> None:
    for language, rows in (("sw", [row(1)]), ("fr", [row(1), row(2, premise="")])):
        write_pairs(ingest(rows, language=language, max_bad_share=1.0), tmp_path / language)
    merge_pairs([tmp_path / "sw", tmp_path / "fr"], tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(part["language"], part["bad"]) for part in report["parts"]] == [("sw", 0), ("fr", 1)]
    (bad,) = map(json.loads, (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines())
    assert (bad["part"], bad["number"], bad["reason"]) == (1, 2, "empty premise")


def test_a_damaged_part_is_not_merged(tmp_path: Path) -> None:
    parts = [published(tmp_path / "a", row(1)), published(tmp_path / "b", row(2))]
    (parts[1] / "report.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"report\.json"):
        merge_pairs(parts, tmp_path / "out")
    assert not (tmp_path / "out").exists()
