"""Rows of tokens that wait for one model: in what order they are computed, and which of them together."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from itertools import count
from typing import Generic, NamedTuple, TypeVar

# A run costs as much as this many tokens beside those that it computes, so rows are only padded together while that is cheaper.
# fp32 e5-small on an AVX-512 Xeon: 8 ms a run and 0.38 ms a token.
RUN_TOKENS = 20
# For longer rows a run may pad this share of its tokens: within 1 % of the best division of XNLI's lengths.
_PADDED = 0.05
# Rows among which those of like lengths are looked for, those that have waited longest. Where 128 single rows wait, the slowest
# hundredth is answered a quarter sooner than if all were looked through, at 3 % less speed (simulated on XNLI's lengths).
_WINDOW = 48

Owner = TypeVar("Owner")


class Row(NamedTuple, Generic[Owner]):
    """A row that waits.

    Attributes:
        turn: tokens of this model that are computed before it, at least those that had been when it came.
        serial: which of those with the same turn came first; no two rows have the same.
        length: in tokens.
        place: among the owner's rows.
    """

    turn: int
    serial: int
    length: int
    place: int
    owner: Owner


class Rows(Generic[Owner]):
    """The rows that wait for one model.

    They are computed as though each owner had sent its rows one by one, each when the model had computed the tokens before it:
    first come, first served, but a large request lets the small ones through that come after it, until as many tokens as it has
    were computed.
    """

    def __init__(self) -> None:
        self._rows: list[Row[Owner]] = []
        self._tokens = 0
        self._computed = 0
        self._serials = count()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def tokens(self) -> int:
        """Of all rows that wait."""
        return self._tokens

    def until_done(self, tokens: int) -> int:
        """Tokens that this model computes until an owner that comes now with so many has them all, its own included.

        Those that come later may pass it until as many tokens as it has were computed. So many are expected, but no more than
        wait before it: where few wait, few come. At twofold overload, with 64 rows a request and 20 s for an answer, 98 % of what
        can be computed is in time if only those wait who can be in time by this estimate; 72 % if it leaves out those that pass,
        and 26 % if all wait (simulated).
        """
        end = bisect_right(self._rows, self._computed + tokens, key=lambda row: row.turn)
        ahead = sum(row.length for row in self._rows[:end])
        return ahead + tokens + min(ahead, tokens)

    def add(self, owner: Owner, lengths: Sequence[int]) -> list[Row[Owner]]:
        """Let an owner's rows wait, short ones first."""
        added, turn = [], self._computed
        for place in sorted(range(len(lengths)), key=lengths.__getitem__):
            row = Row(turn, next(self._serials), lengths[place], place, owner)
            insort(self._rows, row)
            self._tokens += row.length
            added.append(row)
            turn += lengths[place]
        return added

    def remove(self, rows: Sequence[Row[Owner]]) -> None:
        """Drop rows that wait."""
        for row in rows:
            del self._rows[bisect_left(self._rows, row)]
            self._tokens -= row.length

    def take(self, batch_tokens: int) -> list[Row[Owner]]:
        """The row whose turn it is, and those that are best computed with it: rows times longest row is within the budget, or it
        is one row."""
        window = self._rows[:_WINDOW]
        taken: list[Row[Owner]] = []
        tokens = 0
        for row in sorted(window, key=lambda row: row.length):
            padded = (len(taken) + 1) * row.length
            if taken and (padded > batch_tokens or padded - tokens - row.length > max(RUN_TOKENS, _PADDED * padded)):
                if window[0] in taken:
                    break
                taken, tokens = [], 0
            taken.append(row)
            tokens += row.length
        self.remove(taken)
        self._computed += tokens
        return taken
