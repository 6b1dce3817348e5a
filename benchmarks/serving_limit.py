"""The limit: onnxruntime alone on the pairs' tokens, in batches of like length. Started by ``benchmarks/serving.py``.

Prints pairs a second as JSON. By the batch's budget of tokens, with all pairs in hand: ``divided``, onnxruntime in a loop, which
divides the operators of a run among the CPUs; ``side_by_side``, a run for each CPU at the same time, as the endpoint computes.
``in_hand``: side by side with only so many pairs at a time. And the seconds of runs of one pair.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from conlst.runtime.onnx import GRAPHS, Predictor, open_session, padded

BUDGETS = (256, 512, 1024, 4096)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True, help="JSON: a list of [premise, hypothesis]")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--in-hand", type=int, nargs="+", required=True)
    options = parser.parse_args()

    model = Predictor(options.model, threads=options.threads)
    # the predictor gives a run in INT8 one thread
    session = open_session(options.model / GRAPHS[model.precision], options.threads)
    rows = model.encode([tuple(pair) for pair in json.loads(options.pairs.read_text())]).ids
    pool = ThreadPoolExecutor(options.threads)

    def divided(rows: list[list[int]], budget: int) -> None:
        for batch in _batches(rows, budget):
            session.run(None, padded(batch, model.pad_id))

    def side_by_side(rows: list[list[int]], budget: int) -> None:
        list(pool.map(model.run, _batches(rows, budget)))

    def in_hand(size: int) -> None:
        for first in range(0, len(rows), size):
            side_by_side(part := rows[first : first + size], min(best, -(-sum(map(len, part)) // options.threads)))

    # the first runs find memory and caches cold
    divided(rows[:32], BUDGETS[0])
    side_by_side(rows[:32], BUDGETS[0])
    singles = sorted(_seconds(model.run, [row]) for row in rows)
    rates = {
        way.__name__: {budget: len(rows) / _seconds(way, rows, budget) for budget in BUDGETS} for way in (divided, side_by_side)
    }
    best = max(BUDGETS, key=lambda budget: rates["side_by_side"][budget])
    result = {
        "single_p50_ms": statistics.median(singles) * 1000,
        "single_p99_ms": singles[int(0.99 * len(singles))] * 1000,
        **rates,
        "in_hand": {size: len(rows) / _seconds(in_hand, size) for size in options.in_hand},
    }
    print(json.dumps(result))


def _batches(rows: Sequence[list[int]], budget: int) -> list[list[list[int]]]:
    """In order of length, rows times longest row within the budget."""
    batches: list[list[list[int]]] = []
    for row in sorted(rows, key=len):
        if not batches or (len(batches[-1]) + 1) * len(row) > budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def _seconds(work: Callable[..., object], *arguments: Any) -> float:
    begin = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
