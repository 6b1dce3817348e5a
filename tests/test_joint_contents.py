"""The pools of ``benchmarks/joint_contents.py`` are what their names say."""

import random

import pytest
from datasets import Dataset

from benchmark import benchmark

draw = benchmark("joint_contents").draw


def translations(language: str, premises: int, order: list[int] | None = None) -> Dataset:
    rows = [(f"{language} premise {number}", f"{3 * number + turn}") for number in range(premises) for turn in range(3)]
    rows = [rows[place] for place in order] if order else rows
    return Dataset.from_dict({"premise": [premise for premise, _ in rows], "pair_id": [pair_id for _, pair_id in rows]})


def test_every_pool_has_one_size_and_the_contents_that_it_should() -> None:
    backwards = list(range(59, -1, -1))
    pools = {"ar": translations("ar", 20), "tr": translations("tr", 20, backwards), "vi": translations("vi", 20)}
    drawn = draw(pools, random.Random(14))

    def contents(name: str) -> list[set[str]]:
        return [set(pools[language].select(places)["pair_id"]) for language, places in drawn[name].items()]

    for name in ("same", "different"):
        assert [len(found) for found in contents(name)] == [18, 18, 18]
        # whole premises
        assert all(
            {int(pair_id) // 3 * 3 + turn for pair_id in found for turn in range(3)} == set(map(int, found))
            for found in contents(name)
        )
    first, second, third = contents("same")
    assert first == second == third
    assert len(set.union(*contents("different"))) == 54


def test_pools_that_are_no_translations_are_refused() -> None:
    with pytest.raises(ValueError, match="translations of one another"):
        draw({"ar": translations("ar", 20), "tr": translations("tr", 21)}, random.Random(14))
