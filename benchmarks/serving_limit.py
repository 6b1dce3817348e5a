"""The limit: onnxruntime alone on the pairs' tokens, without HTTP. Started by ``benchmarks/serving.py``.

Prints pairs a second as JSON. With all pairs in hand, in batches of like length and by the batch's budget of tokens: ``divided``,
runs one after the other, which divide their operators among the CPUs; ``side_by_side``, a run for each CPU at the same time, as
the endpoint computes. ``in_hand``: side by side with only so many pairs at a time, a new one for each that is answered, chosen as
the endpoint chooses. And the milliseconds of runs of one pair.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, cycle
from pathlib import Path
from threading import Lock

from conlst.runtime.onnx import GRAPHS, Predictor, open_session, padded
from conlst.runtime.threads import keep_apart
from serving.models import HELPERS_BACK
from serving.rows import Rows

BUDGETS = (256, 512, 1024, 4096)

Tokens = list[int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True, help="JSON: a list of [premise, hypothesis]")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--in-hand", type=int, nargs="+", required=True)
    parser.add_argument("--seconds", type=float, required=True, help="of each measurement")
    options = parser.parse_args()

    # like the endpoint's, and so are the threads' places
    model = Predictor(options.model, threads=options.threads, helpers_back=HELPERS_BACK)
    # the predictor gives a run in INT8 one thread
    session = open_session(options.model / GRAPHS[model.precision], options.threads)
    rows = model.encode([tuple(pair) for pair in json.loads(options.pairs.read_text())]).ids
    places = count()
    pool = ThreadPoolExecutor(options.threads, initializer=lambda: keep_apart(next(places), options.threads))

    def divided(budget: int) -> None:
        for batch in _batches(rows, budget):
            session.run(None, padded(batch, model.pad_id))

    def side_by_side(budget: int) -> None:
        list(pool.map(model.run, _batches(rows, budget)))

    # the first runs find memory and caches cold
    divided(BUDGETS[0])
    side_by_side(BUDGETS[0])
    singles = sorted(_single_seconds(model, rows, options.seconds))
    rates = {
        way.__name__: {budget: _rate(way, budget, len(rows), options.seconds) for budget in BUDGETS}
        for way in (divided, side_by_side)
    }
    best = max(BUDGETS, key=lambda budget: rates["side_by_side"][budget])
    in_hand = {size: _in_hand(model, rows, size, best, pool, options.threads, options.seconds) for size in options.in_hand}
    result = {
        "single_p50_ms": statistics.median(singles) * 1000,
        "single_p99_ms": singles[int(0.99 * len(singles))] * 1000,
        **rates,
        "in_hand": in_hand,
    }
    print(json.dumps(result))


def _batches(rows: Sequence[Tokens], budget: int) -> list[list[Tokens]]:
    """In order of length, rows times longest row within the budget."""
    batches: list[list[Tokens]] = []
    for row in sorted(rows, key=len):
        if not batches or (len(batches[-1]) + 1) * len(row) > budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def _single_seconds(model: Predictor, rows: Sequence[Tokens], seconds: float) -> Iterator[float]:
    end = time.perf_counter() + seconds
    for row in cycle(rows):
        begin = time.perf_counter()
        if begin >= end:
            return
        model.run([row])
        yield time.perf_counter() - begin


def _rate(way: Callable[[int], None], budget: int, pairs: int, seconds: float) -> float:
    """Pairs a second over whole passes, as many as begin within ``seconds``."""
    begin, passes = time.perf_counter(), 0
    while time.perf_counter() < begin + seconds:
        way(budget)
        passes += 1
    return passes * pairs / (time.perf_counter() - begin)


def _in_hand(
    model: Predictor, rows: Sequence[Tokens], size: int, budget: int, pool: ThreadPoolExecutor, threads: int, seconds: float
) -> float:
    """Pairs a second where ``size`` of them wait or are computed at any time."""
    lock, coming, waiting = Lock(), cycle(rows), Rows[Tokens]()
    idle, answered = threads, 0

    def come(number: int) -> None:
        for row in (next(coming) for _ in range(number)):
            waiting.add(row, [len(row)])

    def compute() -> None:
        nonlocal idle, answered
        while time.perf_counter() < end:
            with lock:
                taken = waiting.take(min(budget, -(-waiting.tokens // idle)))
                idle -= bool(taken)
            if not taken:
                # all that is in hand is being computed
                time.sleep(0.0002)
                continue
            model.run([row.owner for row in taken])
            with lock:
                idle += 1
                answered += len(taken)
                come(len(taken))

    come(size)
    begin = time.perf_counter()
    end = begin + seconds
    for worker in [pool.submit(compute) for _ in range(threads)]:
        worker.result()
    return answered / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
