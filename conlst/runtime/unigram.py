"""Unigram segmentation in a fifth of the memory: the ``tokenizers`` library takes 290 MB for XLM-R's 250,000 pieces."""

from array import array
from collections.abc import Sequence
from functools import lru_cache

# what the library subtracts from the lowest score for a character that no piece covers
_UNKNOWN_PENALTY = 10.0
_WORDS_KEPT = 1 << 14
# characters; what stands between two blanks of Thai or Chinese is no word, comes once, and would be kept with all its ids
_LONGEST_KEPT = 32


class Unigram:
    """The most probable segmentation of a word, the same as the library's.

    Args:
        pieces: each with its log probability; the place in the list is the id.
        unknown: id of a run of characters that no piece covers.
    """

    def __init__(self, pieces: Sequence[tuple[str, float]], unknown: int) -> None:
        self._ids = {piece: index for index, (piece, _) in enumerate(pieces)}
        self._scores = array("d", (score for _, score in pieces))
        self._unknown = unknown
        self._unknown_score = min(self._scores) - _UNKNOWN_PENALTY
        # of the pieces that begin with these two characters, or are this one
        self._longest: dict[str, int] = {}
        for piece in self._ids:
            self._longest[piece[:2]] = max(self._longest.get(piece[:2], 0), len(piece))
        self._kept = lru_cache(_WORDS_KEPT)(self._best)

    def ids(self, word: str) -> tuple[int, ...]:
        """Of the pieces, in their order. Most words of a text come again and are kept; safe to call from several threads."""
        return self._kept(word) if len(word) <= _LONGEST_KEPT else self._best(word)

    def _best(self, word: str) -> tuple[int, ...]:
        """Viterbi: ``best[end]`` scores the best way to write ``word[:end]``, whose last piece begins at ``begin[end]``."""
        length = len(word)
        best, begin, last = [0.0] * (length + 1), [-1] * (length + 1), [0] * (length + 1)
        find, longest, scores = self._ids.get, self._longest.get, self._scores
        for start in range(length):
            so_far = best[start]
            one = find(word[start])
            score = so_far + (self._unknown_score if one is None else scores[one])
            if begin[start + 1] < 0 or score > best[start + 1]:
                best[start + 1], begin[start + 1], last[start + 1] = score, start, self._unknown if one is None else one
            for end in range(start + 2, min(length, start + longest(word[start : start + 2], 0)) + 1):
                piece = find(word[start:end])
                if piece is not None:
                    score = so_far + scores[piece]
                    if begin[end] < 0 or score > best[end]:
                        best[end], begin[end], last[end] = score, start, piece
        return self._collected(begin, last)

    def _collected(self, begin: list[int], last: list[int]) -> tuple[int, ...]:
        found: list[int] = []
        end = len(begin) - 1
        while end > 0:
            # neighbouring unknown characters are one token
            if not (last[end] == self._unknown and found and found[-1] == self._unknown):
                found.append(last[end])
            end = begin[end]
        return tuple(reversed(found))
