"""What ``benchmarks/serving.py`` measures: routes of servers that answer pairs, and one closed loop with them."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from serving_load import Target, in_a_loop, summary
from serving_processes import Server

from conlst.contract.labels import NAMES

Pair = tuple[str, str]

WARM_UP = 3.0
"""Seconds before a measurement."""


@dataclass(frozen=True)
class System:
    """Something that answers pairs: a route of a server, and how its requests and answers look."""

    name: str
    server: Server
    path: str
    body: Callable[[Sequence[Pair]], bytes]
    probabilities: Callable[[Any], list[list[float]]]

    def target(self, pairs: Sequence[Pair], size: int) -> Target:
        bodies = [self.body(pairs[first : first + size]) for first in range(0, len(pairs) - size + 1, size)]
        return Target(self.server.port, self.path, bodies)


def conlst_system(name: str, server: Server, language: str) -> System:
    """A language of an endpoint of conlst."""

    def body(pairs: Sequence[Pair]) -> bytes:
        asked = [{"premise": premise, "hypothesis": hypothesis} for premise, hypothesis in pairs]
        return json.dumps({"language": language, **(asked[0] if len(asked) == 1 else {"pairs": asked})}).encode()

    def probabilities(answer: Any) -> list[list[float]]:
        return [[prediction["probabilities"][label] for label in NAMES] for prediction in answer["predictions"]]

    return System(name, server, "/predict", body, probabilities)


def pipeline_system(route: str, server: Server) -> System:
    """A route of ``benchmarks/serving_peer.py``."""

    def body(pairs: Sequence[Pair]) -> bytes:
        return json.dumps({"pairs": [{"text": premise, "text_pair": hypothesis} for premise, hypothesis in pairs]}).encode()

    def probabilities(answer: Any) -> list[list[float]]:
        return [[next(c["score"] for c in choices if c["label"] == label) for label in NAMES] for choices in answer]

    return System(f"pipeline {route}", server, f"/{route}", body, probabilities)


async def closed_once(system: System, pairs: list[Pair], size: int, connections: int, seconds: float) -> dict[str, Any]:
    """Pairs a second and latencies of so many connections, each of which asks again as soon as it is answered."""
    begin, work, stolen = time.perf_counter() + WARM_UP, time.process_time(), system.server.stolen_seconds()
    samples = await in_a_loop(system.target(pairs, size), connections, WARM_UP + seconds)
    row = summary(samples, size, begin, begin + seconds)
    row["load_cpu_share"] = (time.process_time() - work) / (WARM_UP + seconds)
    row["stolen_share"] = (system.server.stolen_seconds() - stolen) / (WARM_UP + seconds) / len(system.server.cpus)
    return row
