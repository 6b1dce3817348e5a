"""The limit: onnxruntime alone on the pairs' tokens, without HTTP. Started and asked by ``benchmarks/serving.py``.

A line on standard input asks for one measurement, a line of JSON answers it. In pairs a second, with all pairs in hand and in
batches of like length and of so many tokens: ``divided <tokens>``, runs one after the other, which divide their operators among
the CPUs; ``side_by_side <tokens>``, a run for each CPU at the same time, as the endpoint computes. ``in_hand <pairs> <tokens>``:
side by side with only so many pairs at a time, a new one for each that is answered, chosen as the endpoint chooses. And
``single``: the median of runs of one pair, in milliseconds.
"""

import argparse
import json
import statistics
import sys
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

Tokens = list[int]

_COLD = 256
"""Tokens of the batches that only warm it up."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True, help="JSON: a list of [premise, hypothesis]")
    parser.add_argument("--threads", type=int, required=True)
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

    def rate(way: Callable[[int], None], budget: int) -> float:
        return _rate(lambda: way(budget), len(rows), options.seconds)

    measurements: dict[str, Callable[..., float]] = {
        "divided": lambda budget: rate(divided, budget),
        "side_by_side": lambda budget: rate(side_by_side, budget),
        "in_hand": lambda size, budget: _in_hand(model, rows, size, budget, pool, options.threads, options.seconds),
        "single": lambda: statistics.median(_single_seconds(model, rows, options.seconds)) * 1000,
    }
    # the first runs find memory and caches cold
    divided(_COLD)
    side_by_side(_COLD)
    for line in sys.stdin:
        name, *numbers = line.split()
        print(json.dumps(measurements[name](*map(int, numbers))), flush=True)


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


def _rate(once: Callable[[], None], pairs: int, seconds: float) -> float:
    """Pairs a second over whole passes, as many as begin within ``seconds``."""
    begin, passes = time.perf_counter(), 0
    while time.perf_counter() < begin + seconds:
        once()
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
