from pathlib import Path

import pytest

from conlst.contract.errors import DataError
from conlst.data.synonyms import read_synonyms
from machine import needs

REAL = Path("/usr/share/wordnet")
LICENCE = "  1 This database may be used as its licence says.  \n"
TYPES = {"noun": "n", "verb": "v", "adj": "s", "adv": "r"}

Entries = dict[str, dict[str, tuple[int, list[list[str]]]]]


def write_wordnet(folder: Path, entries: Entries) -> str:
    """A database of WordNet 3's form: part of speech -> lemma -> (number of counted senses, the words of its senses)."""
    folder.mkdir(exist_ok=True)
    for part, code in TYPES.items():
        data, index = LICENCE, LICENCE
        for lemma, (counted, senses) in entries.get(part, {}).items():
            offsets = []
            for words in senses:
                offsets.append(len(data.encode()))
                spelled = " ".join(f"{word} 0" for word in words)
                frames = " 01 + 08 00" if part == "verb" else ""
                data += f"{offsets[-1]:08d} 03 {code} {len(words):02x} {spelled} 001 @ 00000001 n 0000{frames} | what it is  \n"
            pointers = f"2 @ ~ {len(senses)}"
            index += f"{lemma} {code} {len(senses)} {pointers} {counted} {' '.join(f'{o:08d}' for o in offsets)}  \n"
        (folder / f"data.{part}").write_text(data, encoding="utf-8")
        (folder / f"index.{part}").write_text(index, encoding="utf-8")
    return f"wordnet:{folder}"


def test_the_first_sense_of_each_part_of_speech_gives_its_single_words(tmp_path: Path) -> None:
    spec = write_wordnet(
        tmp_path / "wn",
        {
            "noun": {
                "help": (1, [["aid", "help", "helping_hand"], ["helper", "help"]]),
                "domestic_dog": (1, [["dog", "domestic_dog"]]),
                "lone": (1, [["lone"]]),
            },
            "verb": {"help": (2, [["help", "assist", "aid"]])},
            "adj": {"ill": (1, [["ill(p)", "sick(ip)", "good-natured(a)", "Ill"]])},
            "adv": {"quickly": (1, [["quickly", "rapidly", "24/7"]])},
        },
    )
    assert read_synonyms(spec) == {"help": ("aid", "assist"), "ill": ("sick", "good-natured"), "quickly": ("rapidly",)}


def test_at_most_eight_neighbours_and_a_count_in_hexadecimal(tmp_path: Path) -> None:
    words = ["many", *(f"{letter}x" for letter in "abcdefghijklmnopqrs")]
    spec = write_wordnet(tmp_path / "wn", {"noun": {"many": (1, [words]), "sx": (1, [words])}})
    lexicon = read_synonyms(spec)
    assert lexicon["many"] == tuple(words[1:9])
    assert lexicon["sx"] == tuple(words[:8])


def test_another_word_in_the_same_letters_gives_nothing(tmp_path: Path) -> None:
    spec = write_wordnet(
        tmp_path / "wn",
        {
            "noun": {
                "china": (1, [["China", "cathay"], ["china", "porcelain"]]),
                "can": (1, [["can", "tin"]]),
                "c": (1, [["c", "hundred"]]),
                "five": (1, [["five", "v", "fivesome", "England"]]),
                "run": (0, [["run", "ladder"]]),
                "rare": (0, [["rare", "scarce"]]),
            },
            "verb": {"run": (1, [["run", "race"]]), "rare": (0, [["rare", "raise"]])},
        },
    )
    assert read_synonyms(spec) == {"five": ("fivesome",), "run": ("race",), "rare": ("scarce", "raise")}


def test_a_file_of_the_database_that_is_missing_is_named(tmp_path: Path) -> None:
    spec = write_wordnet(tmp_path / "wn", {"noun": {"help": (1, [["help", "aid"]])}})
    (tmp_path / "wn" / "data.adj").unlink()
    with pytest.raises(DataError, match=r"data\.adj.*wordnet-base"):
        read_synonyms(spec)


@pytest.mark.parametrize("line", ["help n 1", "help n 1 x @ ~ 1 1 00000100", "help n 1 1 @ 1 1"])
def test_a_malformed_index_names_its_line(tmp_path: Path, line: str) -> None:
    spec = write_wordnet(tmp_path / "wn", {"noun": {"aid": (1, [["help", "aid"]])}})
    with (tmp_path / "wn" / "index.noun").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"index\.noun, line 3: not an entry"):
        read_synonyms(spec)


@pytest.mark.parametrize(
    "change", [lambda data: "x" + data, lambda data: data[:-60], lambda data: data.replace(" 02 ", " 12 "), lambda _: ""]
)
def test_a_data_file_that_does_not_fit_its_index_names_the_line(tmp_path: Path, change) -> None:
    spec = write_wordnet(tmp_path / "wn", {"noun": {"help": (1, [["help", "aid"]])}})
    data = tmp_path / "wn" / "data.noun"
    data.write_text(change(data.read_text()))
    with pytest.raises(DataError, match=r"data\.noun, line \d: no synset at byte 53"):
        read_synonyms(spec)


def test_a_table_is_read_in_lower_case_and_composed(tmp_path: Path) -> None:
    table = tmp_path / "table.tsv"
    table.write_text("Cat\tfeline puss feline cat\n\nété\te\u0301tage\r\ndon't\tnever\n", encoding="utf-8")
    assert read_synonyms(str(table)) == {"cat": ("feline", "puss"), "été": ("étage",), "don't": ("never",)}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"cat feline", "line 2: 1 fields"),
        (b"cat\tfeline\tpuss", "line 2: 3 fields"),
        (b"big cat\tlion", "line 2: 'big cat' is not one word"),
        (b"\tlion", "line 2: '' is not one word"),
        (b"cat\t ", "line 2: 'cat' has no neighbours"),
        (b"cat\tcat", "line 2: 'cat' has no neighbours"),
        (b"DOG\tpuppy", "line 2: 'dog' stands in an earlier line"),
        (b"caf\xe9\tbar", "line 2: not UTF-8"),
    ],
)
def test_a_malformed_table_names_its_line(tmp_path: Path, line: bytes, message: str) -> None:
    table = tmp_path / "table.tsv"
    table.write_bytes(b"dog\thound\n" + line + b"\n")
    with pytest.raises(DataError, match=message):
        read_synonyms(str(table))


def test_missing_and_empty_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.tsv"):
        read_synonyms(str(tmp_path / "none.tsv"))
    (tmp_path / "empty.tsv").touch()
    with pytest.raises(DataError, match="holds no synonyms; give wordnet:"):
        read_synonyms(str(tmp_path / "empty.tsv"))


@needs((REAL / "index.noun").is_file(), "WordNet's database (wordnet-base)")
def test_the_real_database() -> None:
    lexicon = read_synonyms(f"wordnet:{REAL}")
    assert len(lexicon) == pytest.approx(39_000, abs=1_000)
    assert lexicon["help"] == ("aid", "assist", "assistance")
    assert lexicon["big"] == ("large",)
    assert not {"in", "can", "not", "he", "china"} & lexicon.keys()
    assert max(map(len, lexicon.values())) == 8
    assert all(word.islower() and neighbours and word not in neighbours for word, neighbours in lexicon.items())
