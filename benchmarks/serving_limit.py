"""The limit: onnxruntime alone on the pairs' tokens, in batches of like length. Started by ``benchmarks/serving.py``.

Prints pairs a second as JSON: ``whole`` with all pairs in hand, by the batch's budget of tokens; ``in_hand`` with only so many at
a time; ``side_by_side`` with a run of one thread for each CPU at the same time; and the seconds of runs of one pair.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from conlst.runtime.onnx import Predictor
from conlst.runtime.tokens import Encoded

BUDGETS = (256, 512, 1024, 4096)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True, help="JSON: a list of [premise, hypothesis]")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--in-hand", type=int, nargs="+", required=True)
    options = parser.parse_args()

    model = Predictor(options.model, threads=options.threads)
    tokens = model.encode([tuple(pair) for pair in json.loads(options.pairs.read_text())])
    count = len(tokens.ids)
    # the first runs find memory and caches cold
    model.logits_of(_part(tokens, 0, 32))

    singles = sorted(_seconds(model.run, [row]) for row in tokens.ids)
    whole = {budget: count / _seconds(model.logits_of, tokens, batch_tokens=budget) for budget in BUDGETS}
    best = max(whole, key=lambda budget: whole[budget])

    def in_hand(size: int) -> None:
        for part in _parts(tokens, size):
            model.logits_of(part, batch_tokens=best)

    alone = Predictor(options.model, threads=1)
    alone.logits_of(_part(tokens, 0, 32))

    def side_by_side(size: int) -> None:
        parts = _parts(tokens, max(1, size // options.threads))
        with ThreadPoolExecutor(options.threads) as pool:
            list(pool.map(lambda part: alone.logits_of(part, batch_tokens=best), parts))

    result = {
        "single_p50_ms": statistics.median(singles) * 1000,
        "single_p99_ms": singles[int(0.99 * count)] * 1000,
        "whole": whole,
        "in_hand": {size: count / _seconds(in_hand, size) for size in options.in_hand},
        "side_by_side": {size: count / _seconds(side_by_side, size) for size in options.in_hand},
    }
    print(json.dumps(result))


def _parts(tokens: Encoded, size: int) -> Sequence[Encoded]:
    return [_part(tokens, first, size) for first in range(0, len(tokens.ids), size)]


def _part(tokens: Encoded, first: int, size: int) -> Encoded:
    return Encoded(tokens.ids[first : first + size], tokens.lengths[first : first + size])


def _seconds(work: Callable[..., object], *arguments: Any, **named: Any) -> float:
    begin = time.perf_counter()
    work(*arguments, **named)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
