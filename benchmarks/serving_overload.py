"""What a server does with more than it can answer, and with nearly as much for minutes. For ``benchmarks/serving.py``."""

import asyncio
import statistics
import time
from typing import Any

import numpy as np
from serving_load import Connection, Sample, Target, at_a_rate, in_a_loop, summary
from serving_systems import WARM_UP, Pair, System, closed_once

OVERLOAD = 5.0
"""Times its peak."""
STEADY = 0.8
"""Of its capacity."""
SUSTAINED = 60.0
"""Seconds in which it shows its capacity."""


async def overload(system: System, connections: int, pairs: list[Pair], seconds: float, seed: int) -> dict[str, Any]:
    """Five times the peak at once: what is answered meanwhile, and when an answer takes no longer than usual again."""
    peak = (await closed_once(system, pairs, 1, connections, seconds))["pairs_per_second"]
    target = system.target(pairs, 1)
    usual = statistics.median(sample.seconds for sample in await in_a_loop(target, 1, WARM_UP))
    begin = time.perf_counter()
    load = asyncio.create_task(at_a_rate(target, OVERLOAD * peak, WARM_UP + seconds, seed))
    await asyncio.sleep(WARM_UP + seconds)
    end = time.perf_counter()
    recovered = await _recovery(target, usual)
    samples = await load
    row = summary(samples, 1, begin + WARM_UP, end)
    refused = [sample for sample in samples if sample.status == 429]
    peak_after = (await closed_once(system, pairs, 1, connections, seconds))["pairs_per_second"]
    return {
        **row,
        "offered_per_second": OVERLOAD * peak,
        "peaks_per_second": {"before": peak, "after": peak_after},
        "goodput_of_peak": row["pairs_per_second"] / statistics.mean((peak, peak_after)),
        "only_200_and_429": {sample.status for sample in samples} <= {200, 429},
        "without_retry_after": sum(sample.retry_after is None for sample in refused),
        "retry_after_seconds": statistics.median(int(s.retry_after) for s in refused if s.retry_after) if refused else None,
        "refusal_p99_ms": _p99([sample.seconds for sample in refused]),
        "recovery_seconds": recovered,
    }


def _p99(seconds: list[float]) -> float | None:
    return sorted(seconds)[int(0.99 * len(seconds))] * 1000 if seconds else None


async def _recovery(target: Target, usual: float) -> float | None:
    """Seconds until an answer comes within twice the usual time; none within 30."""
    begin = time.perf_counter()
    connection, requests = Connection(target.port), target.requests()
    try:
        while time.perf_counter() < begin + 30:
            sample: Sample = await connection.ask(next(requests))
            if sample.status == 200 and sample.seconds < 2 * usual:
                return sample.end - begin
            await asyncio.sleep(0.02)
    finally:
        connection.close()
    return None


async def soak(system: System, connections: int, pairs: list[Pair], minutes: float, seed: int) -> dict[str, Any]:
    """80 % of its capacity for minutes: failures, and what memory does after the first fifth.

    Capacity is what it answers in the minute before: the peak of some seconds is more than it can bear for long.
    """
    target = system.target(pairs, 1)
    begin = time.perf_counter()
    samples = await in_a_loop(target, connections, SUSTAINED)
    capacity = summary(samples, 1, begin, begin + SUSTAINED)["pairs_per_second"]
    rate, seconds = STEADY * capacity, minutes * 60
    seen: list[tuple[float, float, float]] = []
    begin = time.perf_counter()

    async def watch() -> None:
        while True:
            seen.append((time.perf_counter() - begin, system.server.resident_mb(), system.server.stolen_seconds()))
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    samples = await at_a_rate(target, rate, seconds, seed)
    watching.cancel()
    times, memory, stolen = np.asarray(seen).T
    settled = times >= seconds / 5
    return {
        **summary(samples, 1, begin, begin + seconds),
        "capacity_per_second": capacity,
        "offered_per_second": rate,
        "minutes": minutes,
        "failures": sum(sample.status != 200 for sample in samples),
        "resident_mb": {"begin": memory[0], "settled": memory[settled][0], "end": memory[-1]},
        "resident_mb_a_minute": float(np.polyfit(times[settled] / 60, memory[settled], 1)[0]) if settled.sum() > 2 else None,
        "by_minute": [
            {
                **summary(samples, 1, begin + minute, begin + minute + 60),
                "stolen_share": float(np.diff(np.interp([minute, minute + 60], times, stolen))[0]) / 60 / len(system.server.cpus),
            }
            for minute in range(0, int(seconds), 60)
        ],
    }
