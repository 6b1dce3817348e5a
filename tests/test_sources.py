import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conlst.contract.errors import DataError
from conlst.data.sources import load_source, read_rows

HEADER = "premise\thypothesis\tlabel\tgenre\tpair_id"
LINES = [
    HEADER,
    'She said "no.\tShe declined.\tentailment\tfiction\ta1',
    "The bus is late.\tThe bus is early.\tcontradiction\ttravel\ta2",
]


def write(path: Path, *lines: str, end: str = "\n") -> str:
    data = "".join(line + end for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


@pytest.mark.parametrize("language", ["en", "fr", "sw", "tr", "ur"])
def test_every_shipped_sample_is_clean_and_balanced(language: str) -> None:
    result = load_source(["sample:{language}"], language=language, max_bad_share=0.0)
    assert result.quarantine == []
    counts = result.report["labels"]
    assert counts["unlabelled"] == 0
    assert max(counts.values()) - counts["entailment"] <= 0.1 * len(result.pairs)
    assert len(result.pairs) >= (400 if language == "en" else 150)


def test_unknown_sample_names_the_known() -> None:
    with pytest.raises(DataError, match=r"no sample for 'xx'; there are en"):
        read_rows("sample:xx", "xx")


def test_sample_of_another_language_is_refused() -> None:
    with pytest.raises(DataError, match="wrong language"):
        load_source(["sample:fr"], language="sw")


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tsv_has_no_quoting(tmp_path: Path, name: str, end: str) -> None:
    rows = list(read_rows(write(tmp_path / name, *LINES, "", end=end), "en"))
    assert [row["premise"] for row in rows] == ['She said "no.', "The bus is late."]
    assert rows[1] == {
        "premise": "The bus is late.",
        "hypothesis": "The bus is early.",
        "label": "contradiction",
        "genre": "travel",
        "pair_id": "a2",
    }


def test_only_line_feeds_divide_a_tsv(tmp_path: Path) -> None:
    rows = list(read_rows(write(tmp_path / "a.tsv", "\ufeff" + HEADER, "one\u2028two\x85three\tb\tneutral\tg\t1"), "en"))
    assert [row["premise"] for row in rows] == ["one\u2028two\x85three"]


def test_language_is_filled_into_a_path(tmp_path: Path) -> None:
    write(tmp_path / "dev.sw.tsv", *LINES)
    assert len(list(read_rows(str(tmp_path / "dev.{language}.tsv"), "sw"))) == 2


def test_wrong_utf8_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes("\n".join(LINES).encode() + b"\nna\xefve\tb\tneutral\tg\tx\n")
    with pytest.raises(DataError, match=r"a\.tsv, line 4: not UTF-8"):
        list(read_rows(str(path), "en"))


def test_cut_gzip_is_an_error(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.tsv.gz", *LINES))
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="cannot be read"):
        list(read_rows(str(path), "en"))


def test_lines_with_too_few_or_many_fields_are_quarantined(tmp_path: Path) -> None:
    source = write(tmp_path / "a.tsv", *LINES, "only one field", "a\tb\tneutral\tg\t1\tsurplus")
    result = load_source([source], language="en", max_bad_share=0.5)
    assert [entry["reason"] for entry in result.quarantine] == ["malformed row"] * 2
    assert result.quarantine[0]["detail"] == "line 4 has 1 fields, the header 5"
    assert result.quarantine[1]["row"]["line"].endswith("surplus")


def test_repeated_header_name_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names a column twice"):
        list(read_rows(write(tmp_path / "a.tsv", HEADER + "\tlabel"), "en"))


def test_bad_share_names_file_and_row(tmp_path: Path) -> None:
    source = write(tmp_path / "a.tsv", *LINES, "\tb\tneutral\tg\t1")
    with pytest.raises(DataError, match=r"empty premise, 1 times, first in row 3 of a\.tsv"):
        load_source([source], language="en")


def test_xnli_files_own_columns_and_languages(tmp_path: Path) -> None:
    header = "language\tgold_label\tsentence1_binary_parse\tsentence1\tsentence2\tpromptID\tpairID\tgenre"
    source = write(
        tmp_path / "xnli.dev.tsv",
        header,
        "fr\tcontradictory\t\tIl pleut.\tIl fait beau.\t1\t2\tfiction",
        "sw\tneutral\t\tMvua inanyesha.\tNi Jumatatu.\t1\t2\tfiction",
        "fr\t-\t\tIl pleut.\tIl neige.\t1\t3\tfiction",
    )
    result = load_source([source], language="fr", max_bad_share=0.0)
    assert result.pairs["label"] == [2, None]
    assert result.pairs["pair_id"] == ["2", "3"]
    assert result.pairs["hypothesis"] == ["Il fait beau.", "Il neige."]


def test_other_files_with_rows_of_another_language_are_bad(tmp_path: Path) -> None:
    source = write(tmp_path / "a.tsv", "premise\thypothesis\tlanguage", "Il pleut.\tIl neige.\tfr")
    with pytest.raises(DataError, match="wrong language"):
        load_source([source], language="sw")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_jsonl_with_broken_lines(tmp_path: Path, name: str) -> None:
    good = {"premise": "line\nbreak", "hypothesis": "بارش", "label": None}
    source = write(tmp_path / name, json.dumps(good), "{broken", "[1]")
    result = load_source([source], language="ur", max_bad_share=0.9)
    assert result.pairs["premise"] == ["line\nbreak"]
    assert [entry["number"] for entry in result.quarantine] == [2, 3]
    assert "not a JSON object" in result.quarantine[1]["detail"]


def test_parquet_labels_by_name_or_class_label_but_never_bare_numbers(tmp_path: Path) -> None:
    texts = {"premise": ["a", "b"], "hypothesis": ["c", "d"]}
    pq.write_table(pa.table({**texts, "label": ["neutral", "entailment"]}), tmp_path / "names.parquet")
    assert load_source([str(tmp_path / "names.parquet")], language="en").pairs["label"] == [1, 0]
    # another order than ours: the names decide
    order = datasets.ClassLabel(names=["contradiction", "entailment", "neutral"])
    features = datasets.Features({"premise": datasets.Value("string"), "hypothesis": datasets.Value("string"), "label": order})
    datasets.Dataset.from_dict({**texts, "label": [0, -1]}, features=features).to_parquet(tmp_path / "classes.parquet")
    assert load_source([str(tmp_path / "classes.parquet")], language="en").pairs["label"] == [2, None]
    pq.write_table(pa.table({**texts, "label": [0, 1]}), tmp_path / "numbers.parquet")
    with pytest.raises(DataError, match="label 0 is not a name"):
        load_source([str(tmp_path / "numbers.parquet")], language="en")


def test_broken_parquet_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="Parquet"):
        list(read_rows(str(tmp_path / "a.parquet"), "en"))


@pytest.mark.parametrize("name", ["missing.tsv", "missing.tsv.gz", "missing.jsonl", "missing.parquet"])
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=name):
        list(read_rows(str(tmp_path / name), "en"))


@pytest.mark.parametrize("source", ["data.csv", "ftp://host/a", "", "sample", "hub"])
def test_unknown_sources_list_what_is_accepted(source: str) -> None:
    with pytest.raises(DataError, match=r"sample:<language>, hub:<id>.*\.parquet"):
        read_rows(source, "en")


def test_s3_names_the_step_before() -> None:
    with pytest.raises(DataError, match=r"conlst\.platform\.objects\.localize"):
        read_rows("s3://bucket/dev.tsv", "en")


def test_no_source_is_an_error() -> None:
    with pytest.raises(DataError, match="no source is given for sw"):
        load_source([], language="sw")


def test_pair_ids_of_several_sources_do_not_clash(tmp_path: Path) -> None:
    first = write(tmp_path / "one.tsv", *LINES)
    second = write(tmp_path / "two.tsv", HEADER, "x\ty\tneutral\tg\ta1", LINES[2], "v\tw\tneutral\tg\tb1")
    result = load_source([first, second], language="en", max_bad_share=0.0)
    assert result.pairs["pair_id"] == ["a1", "a2", "two.tsv:a1", "b1"]
    assert [(e["reason"], e["row"]["source"], e["row"]["source_row"]) for e in result.quarantine] == [
        ("exact duplicate", "two.tsv", 2)
    ]


def test_an_id_that_one_source_gives_twice_is_bad(tmp_path: Path) -> None:
    first = write(tmp_path / "one.tsv", *LINES, "x\ty\tneutral\tg\ta1")
    result = load_source([first], language="en", max_bad_share=0.5)
    assert [entry["reason"] for entry in result.quarantine] == ["repeated pair_id"]


def test_sources_of_one_file_name_do_not_clash(tmp_path: Path) -> None:
    sources = []
    for folder, text in (("x", "one"), ("y", "two"), ("z", "three")):
        (tmp_path / folder).mkdir()
        sources.append(write(tmp_path / folder / "a.tsv", HEADER, f"{text}\ty\tneutral\tg\t1"))
    result = load_source(sources, language="en", max_bad_share=0.0)
    assert result.pairs["pair_id"] == ["1", "a.tsv#2:1", "a.tsv#3:1"]


def test_genre_filter_needs_genres_in_every_source(tmp_path: Path) -> None:
    first = write(tmp_path / "one.tsv", *LINES)
    second = write(tmp_path / "two.tsv", "premise\thypothesis", "a\tb")
    assert load_source([first], language="en", genres=["fiction"]).pairs["pair_id"] == ["a1"]
    with pytest.raises(DataError, match=r"two\.tsv has no genres to filter by \(fiction\)"):
        load_source([first, second], language="en", genres=["fiction"])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two data sets in the hub's form below the working directory, where ``datasets`` looks before it asks the hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    _hub_dataset(tmp_path / "acme" / "many", {"fr": ["validation", "test"], "sw": ["test"]})
    _hub_dataset(tmp_path / "acme" / "single", {"default": ["train"]})
    return tmp_path


def _hub_dataset(folder: Path, configs: dict[str, list[str]]) -> None:
    order = datasets.ClassLabel(names=["contradiction", "entailment", "neutral"])
    string = datasets.Value("string")
    features = datasets.Features(
        {"premise": string, "hypothesis": string, "label": order, "genre": string, "promptID": string, "pairID": string}
    )
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in splits:
            path = folder / config / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            texts = [f"{config} {split} {n}" for n in range(3)]
            columns = {"premise": texts, "hypothesis": texts, "label": [1, 0, -1], "genre": ["travel"] * 3}
            columns |= {"promptID": ["7"] * 3, "pairID": ["7e", "7c", "7n"]}
            datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
            lines += [f"  - split: {split}", f"    path: {config}/{split}.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


@pytest.mark.usefixtures("hub")
def test_hub_labels_go_through_their_names() -> None:
    pairs = load_source(["hub:acme/single"], language="en", max_bad_share=0.0).pairs
    assert pairs["premise"] == [f"default train {n}" for n in range(3)]
    assert pairs["label"] == [0, 2, None]
    assert pairs["pair_id"] == ["7e", "7c", "7n"]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("source", "language", "first"),
    [
        ("hub:acme/many:test", "fr", "fr test 0"),
        ("hub:acme/many:validation", "fr", "fr validation 0"),
        ("hub:acme/many", "sw", "sw test 0"),
        ("hub:acme/many/fr:test", "sw", "fr test 0"),
        ("hub:acme/many@main/fr:test", "sw", "fr test 0"),
        ("hub:acme/many@main", "sw", "sw test 0"),
    ],
)
def test_hub_config_and_split(source: str, language: str, first: str) -> None:
    assert next(read_rows(source, language))["premise"] == first


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("source", "language", "message"),
    [
        ("hub:acme/many", "fr", "one of the splits validation, test"),
        ("hub:acme/many:train", "fr", "one of the splits validation, test"),
        ("hub:acme/many:test", "ur", r"no config 'ur'; name one of fr, sw"),
        ("hub:acme/many/de:test", "fr", "cannot be loaded.*check id, config and revision"),
        ("hub:xnli", "fr", r"not of the form hub:<owner>/<name>"),
        ("hub:acme/many@", "fr", r"not of the form"),
        ("hub:acme/many/fr/x", "fr", r"not of the form"),
    ],
)
def test_hub_errors_name_the_fix(source: str, language: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_rows(source, language))
