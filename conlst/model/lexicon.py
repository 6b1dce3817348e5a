"""A bilingual lexicon from words alone: each word of one language gets the words of the other that the encoder puts nearest.

No parallel data and no dictionary is used, only that a multilingual encoder embeds words of like meaning alike.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from conlst.contract.errors import DataError
from conlst.data.batching import length_batches
from conlst.data.substitution import WORD, Lexicon
from conlst.data.tokens import TokenizedPairs
from conlst.model.folder import Model

# K of CSLS, as published
_NEIGHBOURS = 10
# rows of the similarity matrix that exist at once: 40 MB against 20,000 words
_BLOCK = 512
_BATCH_TOKENS = 8192


def count_words(texts: Iterable[str], min_count: int) -> list[str]:
    """The words that occur at least so often, in lower case, the commonest first.

    Text without spaces between its words (Chinese, Thai, Japanese) must come with spaces between them.
    """
    counts = Counter(word.lower() for text in texts for word in WORD.findall(text))
    return sorted((word for word, count in counts.items() if count >= min_count), key=lambda word: (-counts[word], word))


def induce_lexicon(
    model: Model,
    source_words: Sequence[str],
    target_words: Sequence[str],
    candidates: int = 3,
    margin: float = 0.0,
    *,
    prefix: str,
) -> Lexicon:
    """Translations of the source words among the target words, best first; a word without any is left out.

    Args:
        model: a pretrained backbone, in float32. It is not meant for one fine-tuned on pairs, which single words are not.
        candidates: a translation must be among so many nearest neighbours of its word, and the word among as many of its.
        margin: least CSLS score of a translation; 0 asks that the two are nearer than their neighbourhoods are on average.
        prefix: text before each word: ``"query: "`` for e5, whose training texts begin so, ``""`` for most other encoders.

    Raises:
        DataError: if there are no words of one language.
    """
    if not source_words or not target_words:
        raise DataError(
            f"a lexicon needs words of both languages, not {len(source_words)} and {len(target_words)}; count more text"
        )
    found = mutual_neighbours(
        _embed(model, source_words, prefix), _embed(model, target_words, prefix), candidates=candidates, margin=margin
    )
    return {word: tuple(target_words[i] for i in near) for word, near in zip(source_words, found, strict=True) if near}


def mutual_neighbours(source: Tensor, target: Tensor, *, candidates: int, margin: float) -> list[list[int]]:
    """Rows of ``target`` that are near to each row of ``source`` by CSLS, nearest first.

    ``CSLS(s, t) = 2 cos(s, t) - r_T(s) - r_S(t)``, where ``r`` is the mean cosine with the 10 nearest neighbours in the other
    language (Conneau et al., 2018, "Word Translation Without Parallel Data", eq. 2). A pair counts if each is among the other's
    ``candidates`` nearest and its score is at least ``margin``.

    Args:
        source, target: ``[n, width]`` and ``[m, width]`` float32, of length one.
    """
    # cosines of one encoder differ in the third digit, which bfloat16 has not
    with torch.autocast(source.device.type, enabled=False):
        around_source, around_target = _neighbourhood(source, target), _neighbourhood(target, source)
        scores, nearest = _nearest(source, target, around_source, around_target, candidates)
        _, back = _nearest(target, source, around_target, around_source, candidates)
    mutual = (back[nearest] == torch.arange(len(source))[:, None, None]).any(2)
    kept = mutual & (scores >= margin)
    return [row[keep].tolist() for row, keep in zip(nearest, kept, strict=True)]


def _neighbourhood(words: Tensor, others: Tensor) -> Tensor:
    """``[n]`` r: mean cosine of each word with its nearest among the others."""
    count = min(_NEIGHBOURS, len(others))
    return torch.cat([(block @ others.T).topk(count).values.mean(1) for block in words.split(_BLOCK)])


def _nearest(
    words: Tensor, others: Tensor, around_words: Tensor, around_others: Tensor, candidates: int
) -> tuple[Tensor, Tensor]:
    """CSLS scores and indices, both ``[n, candidates]``, best first."""
    count = min(candidates, len(others))
    scores, indices = [], []
    for block, around in zip(words.split(_BLOCK), around_words.split(_BLOCK), strict=True):
        best = (2 * (block @ others.T) - around_others).topk(count)
        scores.append(best.values - around[:, None])
        indices.append(best.indices)
    return torch.cat(scores), torch.cat(indices)


@torch.inference_mode()
def _embed(model: Model, words: Sequence[str], prefix: str) -> Tensor:
    """Pooled embeddings of single words, ``[n, hidden]`` float32 of length one on the CPU; dropout is off."""
    tokenizer = Tokenizer.from_str(model.tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.enable_truncation(model.text.max_length)
    encodings = tokenizer.encode_batch_fast([prefix + word for word in words])
    offsets = np.cumsum([0, *(len(encoding) for encoding in encodings)])
    ids = np.concatenate([np.array(encoding.ids, np.int32) for encoding in encodings])
    tokens = TokenizedPairs(torch.from_numpy(ids), torch.from_numpy(offsets), model.text.pad_id)
    classifier = model.classifier
    was_training = classifier.training
    classifier.eval()
    pooled = torch.empty(len(words), classifier.config.hidden_size)
    for indices in length_batches(tokens.lengths, _BATCH_TOKENS):
        pooled[indices] = classifier.encode(*tokens.batch(indices, classifier.device)).cpu()
    classifier.train(was_training)
    return torch.nn.functional.normalize(pooled, dim=1)
