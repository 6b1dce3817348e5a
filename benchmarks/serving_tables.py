"""Fills the tables of docs/performance.md from the JSON of ``serving.py`` and ``serving_memory.py``, so that both say the same.

python benchmarks/serving_tables.py
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from conlst.bench.tables import fill

CHECKOUT = Path(__file__).resolve().parents[1]
DOCUMENT = CHECKOUT / "docs/performance.md"
RESULTS = CHECKOUT / "benchmarks/results"

_NAMES = {"conlst int8": "INT8", "conlst fp32": "fp32"}
_PRECISIONS = {"int8": "INT8", "fp32": "fp32"}


def main() -> None:
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


def filled(document: str) -> str:
    """The document with its tables made anew."""
    speed, memory = (json.loads((RESULTS / name).read_text()) for name in ("serving.json", "serving_memory.json"))
    return fill(document, {"closed": closed(speed), "steady": steady(speed), "memory": languages(memory)})


def closed(result: Mapping[str, Any]) -> str:
    """Closed loops: speed, latency, and both held against the pipeline and onnxruntime alone."""
    speeds = {(row["system"], row["connections"]): row for row in result["closed"]}

    def rows() -> Iterator[list[str]]:
        for ratio in sorted(result["ratios"], key=lambda row: (row["connections"], row["system"] != "conlst int8")):
            row = speeds[ratio["system"], ratio["connections"]]
            over = ratio.get("p50_ms_over_onnxruntime")
            yield [
                str(ratio["connections"]),
                _NAMES[ratio["system"]],
                _round(row["pairs_per_second"]),
                _round(row["p50_ms"]),
                _round(row["p99_ms"]),
                f"{ratio['to_pipeline']:.1f}",
                f"{ratio['p99_to_pipeline']:.2f}",
                f"{ratio['of_onnxruntime_in_a_loop']:.2f}",
                f"{ratio['of_onnxruntime_with_as_many_in_hand']:.2f}",
                "–" if over is None else f"{over:+.1f} ms",
            ]

    head = ["connections", "", "pairs/s", "p50 ms", "p99 ms", "of the pipeline's pairs/s", "of its p99"]
    head += ["of onnxruntime in a loop", "of onnxruntime with as many in hand", "p50 over a run alone"]
    return _table(head, rows(), texts={1})


def steady(result: Mapping[str, Any]) -> str:
    """Overload, and minutes below capacity."""

    def rows() -> Iterator[list[str]]:
        for system, name in _NAMES.items():
            overload, soak = result["overload"][system], result["soak"][system]
            asked = sum(soak["statuses"].values())
            yield [
                name,
                _round(overload["offered_per_second"]),
                " and ".join(overload["statuses"]),
                f"{100 * overload['goodput_of_peak']:.0f} %",
                f"{overload['recovery_seconds']:.1f} s",
                _round(soak["offered_per_second"]),
                f"{soak['minutes']:g} min",
                f"{soak['failures']:,} of {asked:,}",
                f"{soak['p50_ms']:.0f} / {soak['p99_ms']:.0f} ms",
                f"{soak['resident_mb']['settled']:.0f} → {soak['resident_mb']['end']:.0f} MB",
            ]

    head = ["", "offered a second", "answers", "goodput of the peak", "recovered after"]
    head += ["80 % of capacity, a second", "for", "not answered 200", "p50 / p99", "resident after a fifth → at the end"]
    return _table(head, rows(), texts={0, 2})


def languages(result: Mapping[str, Any]) -> str:
    """Memory by the number of languages."""
    found = {(row["way"], row["precision"], row["asked"]): row for row in result["rows"]}

    def rows() -> Iterator[list[str]]:
        for count in sorted({asked for _, _, asked in found}):
            for precision, name in _PRECISIONS.items():
                ours, alone = (found[way, precision, count] for way in ("endpoint", "sessions"))
                separate = _megabytes(alone["resident"])
                if alone["languages"] < count:
                    separate = f"{separate} for {alone['languages']}, then memory ran out"
                beside = _megabytes(ours["beside"])
                yield [str(count), name, _megabytes(ours["with_whole_table"]), _megabytes(ours["bar"]), beside, separate]

    return _table(["languages", "", "endpoint", "bar", "BentoML's other process", "separate sessions"], rows(), texts={1})


def _round(value: float) -> str:
    return f"{value:,.1f}" if value < 20 else f"{value:,.0f}"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


def _table(head: Sequence[str], rows: Iterator[list[str]], texts: set[int]) -> str:
    lines = [head, ["---" if column in texts else "---:" for column in range(len(head))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
