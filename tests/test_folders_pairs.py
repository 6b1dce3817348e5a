"""Pairs between folders: what is ingested for whom, and the pool of one language or of several."""

import json
from pathlib import Path
from typing import Any

import pytest

from conlst.contract.artifacts import verify
from conlst.contract.errors import DataError
from conlst.data.pairs import SEVERAL, read_pairs
from conlst.stages import folders
from tiny import tiny_pairs, write_tsv
from world import World, ingest


def test_genres_filter_the_source_alone(world: World, tmp_path: Path) -> None:
    config = world.config(data={"genres": ["travel"]})
    rows = [{**row, "genre": "travel" if index % 2 else "slate"} for index, row in enumerate(tiny_pairs(20, 9))]
    assert len(read_pairs(ingest(config, rows, "source", tmp_path / "source"))) == 10
    assert len(read_pairs(ingest(config, rows, "pool", tmp_path / "pool"))) == 20


def test_a_limit_is_a_draw_by_the_seed(world: World, tmp_path: Path) -> None:
    rows = tiny_pairs(40, 9)
    file = str(write_tsv(tmp_path / "rows.tsv", rows))

    def drawn(name: str, limit: int | None, **changes: Any) -> list[str]:
        report = folders.ingest(world.config(**changes), "pool", [file], "sw", tmp_path / name, limit)
        kept = read_pairs(tmp_path / name)["pair_id"][:]
        assert report == json.loads((tmp_path / name / "report.json").read_text())
        assert report["pairs"] == 40
        assert report.get("drawn", 40) == len(kept)
        assert verify(tmp_path / name).meta["pairs"] == len(kept)
        return list(kept)

    ids = [row["pair_id"] for row in rows]
    some = drawn("some", 12)
    assert len(set(some)) == 12
    assert [one for one in ids if one in some] == some != ids[:12]
    assert drawn("again", 12) == some
    assert drawn("other", 12, seed=14) != some
    assert drawn("all", None) == drawn("more", 41) == drawn("exact", 40) == ids


def test_a_pool_is_one_folder_whether_of_one_language_or_of_several(world: World, tmp_path: Path) -> None:
    files = {code: [str(write_tsv(tmp_path / f"{code}.tsv", tiny_pairs(6, seed)))] for seed, code in enumerate(("ur", "sw"))}
    assert folders.ingest_pool(world.config(), {"sw": files["sw"] + files["ur"]}, tmp_path / "alone") == "sw"
    assert set(read_pairs(tmp_path / "alone")["language"]) == {"sw"}
    assert folders.ingest_pool(world.config(), files, tmp_path / "both") == SEVERAL
    assert read_pairs(tmp_path / "both")["language"][:] == ["ur"] * 6 + ["sw"] * 6
    assert [verify(tmp_path / f"both-{code}", "pairs").meta["language"] for code in files] == ["ur", "sw"]


def test_a_pool_that_cannot_be_used_is_named_by_its_language(world: World, tmp_path: Path) -> None:
    (tmp_path / "ur.tsv").write_text("premise\thypothesis\n\t\n")
    files = {"sw": [str(write_tsv(tmp_path / "sw.tsv", tiny_pairs(6, 1)))], "ur": [str(tmp_path / "ur.tsv")]}
    with pytest.raises(DataError, match="the pool of ur: 1 of 1 rows are bad"):
        folders.ingest_pool(world.config(), files, tmp_path / "both")
    assert not (tmp_path / "both").exists()
