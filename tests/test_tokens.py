import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from conlst.data.batching import length_batches
from conlst.data.tokens import TokenizedPairs, tokenize
from tiny import WORDS, tiny_backbone

# no deadline: the machine may be busy with a training
REPEATABLE = settings(deadline=None, derandomize=True)

PAD, START, END = 0, 2, 3
SPECIALS = 3  # of a pair


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tiny_backbone(tmp_path_factory.mktemp("tiny"))
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def sentence(words: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices([*WORDS, "Unheard-of", "ndio,", "ہاں"], k=words))


def ids_of(pairs: TokenizedPairs, index: int) -> list[int]:
    return pairs.ids[pairs.offsets[index] : pairs.offsets[index + 1]].tolist()


def encode(premises: list[str], hypotheses: list[str], tokenizer: Tokenizer, max_length: int = 512) -> TokenizedPairs:
    return tokenize(premises, hypotheses, tokenizer, max_length=max_length, pad_id=PAD)


PREMISES = [sentence(words, words) for words in range(1, 25)]
HYPOTHESES = [sentence(1 + words % 7, 100 + words) for words in range(1, 25)]


class TestTokenize:
    def test_equals_one_pair_at_a_time(self, tokenizer: Tokenizer) -> None:
        pairs = encode(PREMISES, HYPOTHESES, tokenizer)
        assert len(pairs) == 24
        assert pairs.truncated == 0
        for index, (premise, hypothesis) in enumerate(zip(PREMISES, HYPOTHESES, strict=True)):
            assert ids_of(pairs, index) == tokenizer.encode(premise, hypothesis).ids
        assert pairs.lengths.tolist() == [len(ids_of(pairs, index)) for index in range(24)]

    def test_equals_transformers(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        folder = tiny_backbone(tmp_path_factory.mktemp("tiny"))
        fast = AutoTokenizer.from_pretrained(folder)
        for max_length in (9, 64):
            pairs = encode(PREMISES, HYPOTHESES, fast.backend_tokenizer, max_length)
            expected = fast(PREMISES, HYPOTHESES, truncation="longest_first", max_length=max_length, padding=True)
            ids, mask = pairs.batch(torch.arange(24))
            assert ids.tolist() == expected["input_ids"]
            assert mask.tolist() == expected["attention_mask"]

    @pytest.mark.parametrize("max_length", [8, 11, 16])
    def test_a_long_pair_loses_tokens_of_its_longer_text_and_is_counted(self, tokenizer: Tokenizer, max_length: int) -> None:
        premises, hypotheses = ["cat " * n for n in range(1, 20)] * 2, ["dog " * n for n in [2] * 19 + [12] * 19]
        pairs = encode(premises, hypotheses, tokenizer, max_length)
        cat, dog = (tokenizer.get_vocab()[word] for word in ("cat", "dog"))
        over = 0
        for index, (premise, hypothesis) in enumerate(zip(premises, hypotheses, strict=True)):
            cats, dogs = len(premise.split()), len(hypothesis.split())
            over += cats + dogs + SPECIALS > max_length
            room = max_length - SPECIALS
            kept = ids_of(pairs, index)
            assert len(kept) == min(cats + dogs, room) + SPECIALS
            assert (kept[0], kept[-1], kept.count(END)) == (START, END, 2)
            # the shorter text keeps what it has, up to half of the room
            assert kept.count(cat) >= min(cats, room // 2)
            assert kept.count(dog) >= min(dogs, room // 2)
        assert over
        assert pairs.truncated == over
        assert int(pairs.lengths.max()) <= max_length

    def test_a_pair_of_just_the_length_is_whole(self, tokenizer: Tokenizer) -> None:
        pairs = encode(["cat " * 5] * 2, ["dog " * 4, "dog " * 5], tokenizer, 12)
        assert pairs.lengths.tolist() == [12, 12]
        assert pairs.truncated == 1

    def test_what_the_caller_set_neither_counts_nor_changes(self, tokenizer: Tokenizer) -> None:
        own = Tokenizer.from_str(tokenizer.to_str())
        own.enable_truncation(4, strategy="only_first")
        own.enable_padding(length=40, pad_id=1)
        before = own.to_str()
        pairs = encode(PREMISES, HYPOTHESES, own)
        assert own.to_str() == before
        expected = encode(PREMISES, HYPOTHESES, tokenizer)
        assert pairs.ids.equal(expected.ids)
        assert pairs.offsets.equal(expected.offsets)

    def test_empty_texts_are_pairs_too(self, tokenizer: Tokenizer) -> None:
        pairs = encode(["", "the cat", ""], ["", "", "dog"], tokenizer)
        assert [ids_of(pairs, index) for index in range(3)] == [
            tokenizer.encode(*texts).ids for texts in (("", ""), ("the cat", ""), ("", "dog"))
        ]
        assert pairs.lengths.tolist() == [3, 5, 4]

    def test_no_pairs_are_no_tokens(self, tokenizer: Tokenizer) -> None:
        pairs = encode([], [], tokenizer)
        assert (len(pairs), pairs.truncated) == (0, 0)
        assert pairs.lengths.tolist() == []
        assert length_batches(pairs.lengths, 100) == []

    @pytest.mark.parametrize(("premises", "hypotheses"), [(["a"], []), ([], ["a"]), (["a", "b"], ["c"])])
    def test_texts_without_a_partner_are_refused(self, tokenizer: Tokenizer, premises: list[str], hypotheses: list[str]) -> None:
        with pytest.raises(ValueError, match="zip"):
            encode(premises, hypotheses, tokenizer)

    def test_types_are_small_for_ids_and_wide_for_places(self, tokenizer: Tokenizer) -> None:
        pairs = encode(PREMISES, HYPOTHESES, tokenizer)
        assert (pairs.ids.dtype, pairs.offsets.dtype) == (torch.int32, torch.int64)
        assert pairs.offsets[0] == 0
        assert pairs.offsets[-1] == len(pairs.ids)


class TestBatch:
    @REPEATABLE
    @given(data=st.data(), pad=st.sampled_from([0, 1, 77]))
    def test_holds_the_pairs_padded_to_the_longest(self, data: st.DataObject, pad: int) -> None:
        rows = data.draw(st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=6), min_size=1, max_size=6))
        chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=8))
        offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
        pairs = TokenizedPairs(torch.tensor([i for row in rows for i in row], dtype=torch.int32), offsets, pad)
        ids, mask = pairs.batch(torch.tensor(chosen))
        longest = max(len(rows[index]) for index in chosen)
        assert ids.tolist() == [rows[index] + [pad] * (longest - len(rows[index])) for index in chosen]
        assert mask.tolist() == [[1] * len(rows[index]) + [0] * (longest - len(rows[index])) for index in chosen]
        assert ids.dtype == mask.dtype == torch.int64

    def test_the_last_pair_reads_nothing_behind_the_end(self, tokenizer: Tokenizer) -> None:
        pairs = encode(["the cat " * 9, "dog"], ["runs", ""], tokenizer)
        ids, mask = pairs.batch(torch.tensor([1, 0]))
        assert ids[0].tolist() == [*tokenizer.encode("dog", "").ids, *[PAD] * 18]
        assert mask.sum(1).tolist() == pairs.lengths[[1, 0]].tolist()

    def test_batches_of_an_epoch_hold_every_token_once(self, tokenizer: Tokenizer) -> None:
        pairs = encode(PREMISES, HYPOTHESES, tokenizer)
        seen: dict[int, list[int]] = {}
        for indices in length_batches(pairs.lengths, 64):
            ids, mask = pairs.batch(indices)
            assert ids.numel() <= 64 or len(indices) == 1
            assert (ids[mask == 0] == PAD).all()
            for row, index in enumerate(indices.tolist()):
                seen[index] = ids[row][mask[row].bool()].tolist()
        assert seen == {index: ids_of(pairs, index) for index in range(24)}

    def test_goes_to_the_device_asked_for(self, tokenizer: Tokenizer) -> None:
        ids, mask = encode(PREMISES, HYPOTHESES, tokenizer).batch(torch.tensor([0, 1]), torch.device("meta"))
        assert ids.device.type == mask.device.type == "meta"
