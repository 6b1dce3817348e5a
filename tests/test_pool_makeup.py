"""The pools of ``benchmarks/pool_makeup.py`` are what their names say."""

import random
from collections import Counter

import pytest
from datasets import Dataset

from benchmark import benchmark

draw = benchmark("pool_makeup").draw


def as_in_xnli(premises: int) -> Dataset:
    rows = [(f"premise {number}", label) for number in range(premises) for label in (2, 0, 1)]
    return Dataset.from_dict({"premise": [premise for premise, _ in rows], "label": [label for _, label in rows]})


def test_three_pools_of_one_size() -> None:
    pairs = as_in_xnli(300)
    pools = draw(pairs, random.Random(13))
    assert {name: len(places) for name, places in pools.items()} == {
        "whole premises": 300,
        "one of a premise": 300,
        "skewed": 300,
    }

    def counted(name: str, column: str) -> Counter:
        return Counter(pairs[column][place] for place in pools[name])

    assert counted("whole premises", "label") == {0: 100, 1: 100, 2: 100}
    assert set(counted("whole premises", "premise").values()) == {3}
    for name in ("one of a premise", "skewed"):
        assert set(counted(name, "premise").values()) == {1}
    assert counted("skewed", "label")[0] == pytest.approx(180, abs=30)
    assert counted("one of a premise", "label")[0] == pytest.approx(100, abs=30)


def test_pairs_that_are_not_made_so_are_refused() -> None:
    with pytest.raises(ValueError, match="only 0 premises"):
        draw(as_in_xnli(300).select(range(0, 900, 3)), random.Random(13))
