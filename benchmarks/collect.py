"""Evaluations of `conlst evaluate` as one JSON and one table.

    python benchmarks/collect.py --out benchmarks/results/NAME.json zero-shot=DIR calibrated=DIR adapted=DIR ...

The numbers, protocols, configurations and digests are read from the evaluation folders; nothing is typed in.
"""

import argparse
import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from conlst.contract.artifacts import read_manifest
from conlst.stages.evaluate import read_evaluation

_KEPT = ("language", "protocol", "n", "accuracy", "accuracy_interval", "macro_f1", "ece", "bands", "coverage")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("evaluations", nargs="+", metavar="SYSTEM=DIR")
    options = parser.parse_args()

    rows = [_row(*given.split("=", 1)) for given in options.evaluations]
    result = {
        "rows": rows,
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "conlst")},
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print("| language | system | protocol | n | accuracy | ECE | > 0.9 | 0.5-0.9 | < 0.5 | cleanest 20 % | cleanest 50 % |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(_line(row))


def _row(system: str, folder: str) -> dict[str, Any]:
    evaluation, manifest = read_evaluation(Path(folder)), read_manifest(Path(folder))
    return {"system": system, "parents": manifest.parents, **{key: evaluation[key] for key in _KEPT}}


def _line(row: dict[str, Any]) -> str:
    bands = [f"{100 * band['accuracy']:.1f} % of {band['count']:,}" if band["count"] else "none" for band in row["bands"]]
    covered = {step["percent"]: step["accuracy"] for step in row["coverage"]}
    names = [row["language"], row["system"], row["protocol"]]
    cells = [f"{row['n']:,}", f"{100 * row['accuracy']:.2f}", f"{row['ece']:.3f}"]
    return "| " + " | ".join([*names, *cells, *bands, *(f"{100 * covered[p]:.1f}" for p in (20, 50))]) + " |"


if __name__ == "__main__":
    main()
