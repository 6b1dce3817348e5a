"""Unigram segmentation over a succinct trie: the ``tokenizers`` library takes 290 MB for XLM-R's 250,000 pieces."""

from array import array
from collections.abc import Sequence
from functools import lru_cache

from marisa_trie import Trie

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
        self._trie = Trie(piece for piece, _ in pieces)
        # by the trie's own number of a piece, which follows no order of ours
        self._ids = array("i", bytes(4 * len(self._trie)))
        self._scores = array("d", bytes(8 * len(self._trie)))
        for index, (piece, score) in enumerate(pieces):
            # not by `[piece]`, which stops at a NUL
            *_, (_, key) = self._trie.iter_prefixes_with_ids(piece)
            self._ids[key], self._scores[key] = index, score
        self._unknown = unknown
        self._unknown_score = min(self._scores) - _UNKNOWN_PENALTY
        self._longest = max(len(piece) for piece, _ in pieces)
        self._kept = lru_cache(_WORDS_KEPT)(self._best)

    def ids(self, word: str) -> tuple[int, ...]:
        """Of the pieces, in their order. Most words of a text come again and are kept; safe to call from several threads."""
        return self._kept(word) if len(word) <= _LONGEST_KEPT else self._best(word)

    def _best(self, word: str) -> tuple[int, ...]:
        """Viterbi: ``best[end]`` scores the best way to write ``word[:end]``, whose last piece begins at ``begin[end]``."""
        length = len(word)
        best, begin, last = [0.0] * (length + 1), [-1] * (length + 1), [0] * (length + 1)
        for start in range(length):
            so_far, covered = best[start], False
            for piece, key in self._trie.iter_prefixes_with_ids(word[start : start + self._longest]):
                end, score = start + len(piece), so_far + self._scores[key]
                covered |= end == start + 1
                if begin[end] < 0 or score > best[end]:
                    best[end], begin[end], last[end] = score, start, self._ids[key]
            if not covered:
                score = so_far + self._unknown_score
                if begin[start + 1] < 0 or score > best[start + 1]:
                    best[start + 1], begin[start + 1], last[start + 1] = score, start, self._unknown
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
