"""The endpoint against a Hugging Face pipeline behind the same HTTP stack, and against onnxruntime alone. All in one run.

    python benchmarks/serving.py --onnx <folder of kind onnx> --model <folder of kind model that it was exported from>

Servers are real processes on ``--threads`` CPUs. The load comes from the others; where there are none, from the same ones, as a
batch process. Closed loops at several connections, then five times what conlst can bear, systems taking turns, medians over the
repeats; with ``--soak`` 80 % of what it answers in a minute, for some minutes. Machines are not always as fast, so what conlst
does is held against what was measured right before and after it: onnxruntime alone, and under overload its own peak. Pairs are
those shipped with conlst, or of ``--pairs`` (a TSV, may be gzipped).
"""

import argparse
import csv
import gzip
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from provenance import provenance
from serving_load import Connection
from serving_overload import overload, soak
from serving_processes import CHECKOUT, conlst_server, divide_cpus, peer_server, program_on
from serving_systems import Pair, System, closed_once, conlst_system, pipeline_system

PEER_ROUTES = ("each", "gather8", "gather32")
NOT_MEASURED = {
    "infinity-emb": "0.0.78 has /classify for single texts only, not for pairs, opens no model with a pooling of its own, and "
    "installs only with transformers 4 and CUDA; what it runs is the pipeline that is measured here, with padding to the longest"
}
BUDGETS = (256, 512, 1024, 4096)
"""Tokens in a batch that onnxruntime alone is tried with."""
COMPARED = 64
"""Pairs that all systems must answer alike."""


class Limit:
    """onnxruntime alone with the model of a conlst system.

    Attributes:
        rates: pairs a second with all of them in hand, of each way by the tokens of its batches.
    """

    def __init__(self, ask: Callable[[str], str]) -> None:
        self._ask = ask
        self.rates = {way: {n: self._measure(way, n) for n in BUDGETS} for way in ("divided", "side_by_side")}
        self._best = {way: max(rates, key=rates.__getitem__) for way, rates in self.rates.items()}

    def beside(self, in_hand: int) -> dict[str, float]:
        """What a closed loop with so many pairs on their way is held against."""
        found = {
            "in_a_loop": self._measure("divided", self._best["divided"]),
            "with_as_many_in_hand": self._measure("in_hand", in_hand, self._best["side_by_side"]),
        }
        return found | ({"single_p50_ms": self._measure("single")} if in_hand == 1 else {})

    def _measure(self, way: str, *numbers: int) -> float:
        return json.loads(self._ask(" ".join([way, *map(str, numbers)])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=Path, required=True, help="folder that conlst serves")
    parser.add_argument("--int8", type=Path, help="the same model in int8, measured too")
    parser.add_argument("--model", type=Path, help="folder of the torch model, for the pipeline; without it there is no peer")
    parser.add_argument("--pairs", type=Path, nargs="+", default=sorted((CHECKOUT / "conlst/data/sample").glob("*.tsv")))
    parser.add_argument(
        "--number", type=int, default=1024, help="of pairs, drawn from those; the load goes through them in a circle"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPUs of the servers")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1], help="pairs in a request")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement, after 3 to warm up")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--soak", type=float, default=0, metavar="MINUTES")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=CHECKOUT / "benchmarks/results/serving.json")
    options = parser.parse_args()
    made = provenance("onnxruntime", "torch", "transformers", "tokenizers", "bentoml", "uvicorn")

    pairs = _read_pairs(options.pairs, options.number, options.seed)
    server_cpus, own_cpus = divide_cpus(options.threads)
    os.sched_setaffinity(0, own_cpus)
    shared = bool(own_cpus & server_cpus)
    if shared:
        # load from another machine would not stop a server in the middle of its work whenever an answer wakes it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    folders = {"conlst fp32": options.onnx} | ({"conlst int8": options.int8} if options.int8 else {})
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        work = Path(temporary)
        systems = []
        for port, (name, folder) in enumerate(folders.items()):
            language = json.loads((folder / "config.json").read_text())["language"]
            server = conlst_server({language: folder}, server_cpus, options.threads, work, name.replace(" ", "-"), port)
            systems.append(conlst_system(name, stack.enter_context(server), language))
        if options.model:
            server = stack.enter_context(peer_server(options.model, server_cpus, options.threads, work))
            systems += [pipeline_system(route, server) for route in PEER_ROUTES]
        limits = {}
        for name, folder in folders.items():
            ask = stack.enter_context(program_on(server_cpus, _limit_command(folder, pairs, options, work), options.threads))
            limits[name] = Limit(ask)
            print(f"{name}, onnxruntime alone: {limits[name].rates}", file=sys.stderr, flush=True)
        result = uvloop.run(_measure(systems, limits, pairs, options))

    result |= {
        "not_measured": NOT_MEASURED,
        "pairs": {"number": len(pairs), "characters": statistics.mean(len(p) + len(h) for p, h in pairs)},
        "options": {
            name: getattr(options, name) for name in ("threads", "connections", "sizes", "seconds", "repeat", "soak", "seed")
        },
        "cpus": {"servers": sorted(server_cpus), "load": sorted(own_cpus), "load_policy": "batch" if shared else "other"},
        **made,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("ratios", "overload", "soak") if key in result}, indent=1))


def _read_pairs(files: Sequence[Path], number: int, seed: int) -> list[Pair]:
    pairs = []
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            pairs += [(row["premise"], row["hypothesis"]) for row in rows]
    random.Random(seed).shuffle(pairs)
    if len(pairs) < number:
        raise SystemExit(f"{number} pairs are wanted, there are {len(pairs)}: give more --pairs or a smaller --number")
    return pairs[:number]


def _limit_command(folder: Path, pairs: list[Pair], options: argparse.Namespace, work: Path) -> list[str]:
    file = work / "pairs.json"
    file.write_text(json.dumps(pairs))
    # -P: this very file would take the place of the package `serving`
    script = str(CHECKOUT / "benchmarks/serving_limit.py")
    command = [sys.executable, "-P", script, "--model", str(folder), "--pairs", str(file)]
    return [*command, "--threads", str(options.threads), "--seconds", str(options.seconds)]


async def _measure(
    systems: list[System], limits: dict[str, Limit], pairs: list[Pair], options: argparse.Namespace
) -> dict[str, Any]:
    agreement = await _agreement(systems, pairs)
    runs = await _closed(systems, limits, pairs, options)
    closed = {key: _median(found) for key, found in runs.items()}
    result: dict[str, Any] = {
        "agreement_with_the_first": agreement,
        "limit": {name: limit.rates for name, limit in limits.items()},
        "closed": [
            {"system": name, "pairs_a_request": size, "connections": at, **row} for (name, size, at), row in closed.items()
        ],
        "ratios": _ratios(closed, limits),
        "runs": [{"system": name, "pairs_a_request": size, "connections": at, "runs": r} for (name, size, at), r in runs.items()],
    }
    by_name = {system.name: system for system in systems}
    best = {name: _best_connections(closed, name) for name in limits}
    overloads = [
        {name: await overload(by_name[name], at, pairs, options.seconds, options.seed) for name, at in best.items()}
        for _ in range(options.repeat)
    ]
    result |= {"overload": _median(overloads), "overload_runs": overloads}
    if options.soak:
        result["soak"] = {name: await soak(by_name[name], at, pairs, options.soak, options.seed) for name, at in best.items()}
    return result


async def _agreement(systems: list[System], pairs: list[Pair]) -> dict[str, dict[str, float]]:
    """That all of them answer with the same model: largest difference of probabilities, and share of equal labels."""
    answers = {}
    for system in systems:
        connection = Connection(system.server.port)
        status, _, body = await connection.exchange(next(system.target(pairs, COMPARED).requests()))
        connection.close()
        if status != 200:
            raise RuntimeError(f"{system.name} answered {status} to {COMPARED} pairs: {body[:300]!r}")
        answers[system.name] = np.asarray(system.probabilities(json.loads(body)))
    first = answers[systems[0].name]
    return {
        name: {
            "difference": float(np.abs(found - first).max()),
            "labels": float((found.argmax(1) == first.argmax(1)).mean()),
        }
        for name, found in answers.items()
    }


Runs = dict[tuple[str, int, int], list[dict[str, Any]]]
Medians = dict[tuple[str, int, int], dict[str, Any]]


async def _closed(systems: list[System], limits: dict[str, Limit], pairs: list[Pair], options: argparse.Namespace) -> Runs:
    runs: Runs = {}
    for repeat in range(options.repeat):
        for size in options.sizes:
            for connections in options.connections:
                # nobody is always the first, or always after the same one
                for place in range(len(systems)):
                    system = systems[(place + repeat) % len(systems)]
                    limit = limits.get(system.name)
                    before = limit.beside(size * connections) if limit else {}
                    row = await closed_once(system, pairs, size, connections, options.seconds)
                    if limit:
                        row |= _beside(row, before, limit.beside(size * connections))
                    runs.setdefault((system.name, size, connections), []).append(row)
                    print(f"{system.name}, {connections} connections, {size} a request: {row}", file=sys.stderr, flush=True)
    return runs


def _beside(row: dict[str, Any], before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """What onnxruntime alone did just then, and conlst's share of it."""
    alone = {way: statistics.mean((before[way], after[way])) for way in before}
    found: dict[str, Any] = {"onnxruntime": alone}
    for way in ("in_a_loop", "with_as_many_in_hand"):
        found[f"of_onnxruntime_{way}"] = row["pairs_per_second"] / alone[way]
    if "single_p50_ms" in alone and row["p50_ms"] is not None:
        found["p50_ms_over_onnxruntime"] = row["p50_ms"] - alone["single_p50_ms"]
    return found


def _median(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the numbers, in dictionaries within too, none if a row has none; of statuses the sum; what must hold, in all of them."""
    found: dict[str, Any] = {}
    for key, value in rows[0].items():
        values = [row.get(key) for row in rows]
        if key == "statuses":
            found[key] = {s: sum(row[key].get(s, 0) for row in rows) for s in sorted({s for row in rows for s in row[key]})}
        elif isinstance(value, bool):
            found[key] = all(values)
        elif isinstance(value, dict):
            found[key] = _median([row[key] for row in rows])
        else:
            # a run that never recovered must not vanish among those that did
            found[key] = None if None in values else statistics.median(values)
    return found


def _ratios(closed: Medians, limits: dict[str, Limit]) -> list[dict[str, Any]]:
    """conlst against the pipeline's best way of batching at that load, and against onnxruntime alone."""
    rows = []
    for (name, size, connections), row in closed.items():
        if name not in limits:
            continue
        speed = row["pairs_per_second"]
        found: dict[str, Any] = {"system": name, "pairs_a_request": size, "connections": connections}
        found |= {key: value for key, value in row.items() if "_onnxruntime" in key}
        found["of_onnxruntime_side_by_side"] = speed / max(limits[name].rates["side_by_side"].values())
        peers = [(at, peer) for at, peer in closed.items() if at[0] not in limits and at[1:] == (size, connections)]
        if peers:
            (peer_name, *_), peer = max(peers, key=lambda item: item[1]["pairs_per_second"])
            found["to_pipeline"] = speed / peer["pairs_per_second"] if peer["pairs_per_second"] else None
            found["p99_to_pipeline"] = row["p99_ms"] / peer["p99_ms"] if row["p99_ms"] and peer["p99_ms"] else None
            found["pipeline"] = peer_name
        rows.append(found)
    return rows


def _best_connections(closed: Medians, name: str) -> int:
    """That with most pairs a second, in requests as small as overload's and the soak's."""
    size = min(size for _, size, _ in closed)
    return max((row["pairs_per_second"], at) for (system, s, at), row in closed.items() if (system, s) == (name, size))[1]


if __name__ == "__main__":
    main()
