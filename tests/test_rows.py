import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.rows import Rows

BUDGET = 100


def drain(rows: Rows, budget: int = BUDGET) -> list[list[tuple]]:
    runs = []
    while rows:
        runs.append([(row.owner, row.place) for row in rows.take(budget)])
    return runs


@given(st.lists(st.lists(st.integers(1, 150), min_size=1, max_size=20), min_size=1, max_size=12))
def test_every_row_is_taken_once_within_the_budget_and_with_little_padding(requests):
    rows = Rows()
    waiting = {(owner, row.place): row.turn for owner, lengths in enumerate(requests) for row in rows.add(owner, lengths)}
    assert len(rows) == len(waiting)
    while rows:
        first = min(waiting.values())
        run = rows.take(BUDGET)
        lengths = [row.length for row in run]
        assert lengths == [requests[row.owner][row.place] for row in run]
        padded = len(run) * max(lengths)
        assert len(run) == 1 or padded <= BUDGET
        assert padded - sum(lengths) <= 20
        # whoever has waited longest is not left for others that fit together better
        assert first in [waiting.pop((row.owner, row.place)) for row in run]
    assert not waiting


def test_rows_of_like_lengths_are_computed_together():
    rows = Rows()
    for owner, length in enumerate([10, 40, 11, 41, 10, 40]):
        rows.add(owner, [length])
    assert drain(rows, 200) == [[(0, 0), (4, 0), (2, 0)], [(1, 0), (5, 0), (3, 0)]]


def test_a_run_costs_more_than_some_padding():
    rows = Rows()
    for owner, length in enumerate([5, 20]):
        rows.add(owner, [length])
    assert drain(rows) == [[(0, 0), (1, 0)]]


def test_single_rows_are_served_in_the_order_that_they_came():
    rows = Rows()
    for owner in range(30):
        rows.add(owner, [20])
    assert [owner for run in drain(rows) for owner, _ in run] == list(range(30))


def test_a_large_request_lets_a_small_one_through_that_came_after_it():
    rows = Rows()
    rows.add("large", [20] * 500)
    rows.take(BUDGET)
    rows.add("small", [20])
    assert any(row.owner == "small" for _ in range(2) for row in rows.take(BUDGET))


def test_small_ones_without_end_pass_a_large_one_only_until_as_much_as_it_has_was_computed():
    rows = Rows()
    rows.add("large", [20] * 100)
    runs, left = 0, 100
    while left:
        # six come for every five that are computed
        for _ in range(6):
            rows.add("small", [20])
        left -= sum(row.owner == "large" for row in rows.take(BUDGET))
        runs += 1
    assert runs <= (100 + 6 * 100 / 5) / 5


def test_those_that_came_long_after_the_first_are_left_however_well_they_fit():
    rows = Rows()
    rows.add("first", [20])
    for _ in range(60):
        rows.add("other", [90])
    rows.add("late", [20])
    assert [row.owner for row in rows.take(BUDGET)] == ["first"]


class TestWhatIsComputedUntilAnOwnerIsDone:
    def test_is_its_own_where_nothing_waits(self):
        assert Rows().until_done(50) == 50

    def test_counts_those_that_came_before_and_as_many_that_will_pass_it(self):
        rows = Rows()
        for owner in range(6):
            rows.add(owner, [20])
        assert rows.until_done(30) == 120 + 30 + 30
        # where few wait, few come
        assert rows.until_done(500) == 120 + 500 + 120

    def test_leaves_out_what_a_large_one_has_after_it(self):
        rows = Rows()
        rows.add("large", [20] * 500)
        rows.take(BUDGET)
        assert rows.until_done(20) <= 100

    @given(st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=20), max_size=12), st.lists(st.integers(1, 50), min_size=1))
    def test_is_close_if_nobody_else_comes(self, requests, own):
        rows = Rows()
        for owner, lengths in enumerate(requests):
            rows.add(owner, lengths)
        expected = rows.until_done(sum(own))
        left, computed = len(rows.add("own", own)), 0
        while left:
            taken = rows.take(BUDGET)
            left -= sum(row.owner == "own" for row in taken)
            computed += sum(row.length for row in taken)
        # rows of like lengths are taken along
        assert computed <= expected + 49 * 50


def test_the_tokens_that_wait_are_known():
    rows = Rows()
    added = rows.add("a", [10, 20, 60])
    assert rows.tokens == 90
    rows.remove(added[:1])
    assert rows.tokens == 80
    drain(rows)
    assert rows.tokens == 0


@pytest.mark.parametrize("taken", [0, 1])
def test_removed_rows_are_not_taken(taken):
    rows = Rows()
    rows.add("stays", [10])
    leaving = rows.add("leaves", [10, 60, 12])
    gone = {(row.owner, row.place) for _ in range(taken) for row in rows.take(20)}
    rows.remove([row for row in leaving if (row.owner, row.place) not in gone])
    assert {owner for run in drain(rows) for owner, _ in run} == {"stays"} - {owner for owner, _ in gone}
    assert not rows
