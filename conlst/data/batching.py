"""Batches by a budget of padded tokens. Sorted by length inside large shuffled chunks, they hardly pad at all."""

import torch
from torch import Tensor

_CHUNK = 50  # batches that are sorted together: enough that neighbours have one length, few enough that epochs differ


def length_batches(lengths: Tensor, budget: int) -> list[Tensor]:
    """Every index once, longest pairs first, for prediction.

    Args:
        lengths: ``[n]`` tokens of each pair.
        budget: rows times longest row of a batch stay within it; a single longer pair is a batch of its own.
    """
    return _cut(lengths.argsort(descending=True, stable=True), lengths, budget)


def shuffled_batches(lengths: Tensor, budget: int, generator: torch.Generator) -> list[Tensor]:
    """Every index once, in random order, neighbours of like length together: one epoch of training.

    Args:
        lengths: ``[n]`` tokens of each pair.
        budget: padded tokens a batch.
        generator: decides the order; the same state gives the same epoch.
    """
    if not len(lengths):
        return []
    order = torch.randperm(len(lengths), generator=generator)
    rows = max(1, int(budget / lengths.double().mean()))
    batches = []
    for chunk in order.split(rows * _CHUNK):
        batches += _cut(chunk[lengths[chunk].argsort(stable=True)], lengths, budget)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _cut(order: Tensor, lengths: Tensor, budget: int) -> list[Tensor]:
    batches, start, longest = [], 0, 0
    for stop, length in enumerate(lengths[order].tolist()):
        longest_with = max(longest, length)
        if stop > start and longest_with * (stop - start + 1) > budget:
            batches.append(order[start:stop])
            start, longest_with = stop, length
        longest = longest_with
    return [*batches, order[start:]] if len(order) else []


def draw_of_like_length(lengths: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` random indices whose lengths are alike, every index equally likely: pairs to go along with a batch.

    Eight times as many candidates are drawn and sorted by length; one of the eight blocks is taken. A plain draw would pad every
    batch to the longest pair there is.
    """
    candidates = torch.randint(len(lengths), (8 * count,), generator=generator)
    block = int(torch.randint(8, (1,), generator=generator))
    return candidates[lengths[candidates].argsort(stable=True)][block * count : (block + 1) * count]
