"""Resident memory of the endpoint with many languages, against separate sessions of onnxruntime.

    python benchmarks/serving_memory.py --model runs/demo/sw/onnx runs/demo/sw/onnx-int8

Fine-tuned encoders that differ are made of the one that is given. Every count of languages is a fresh ``python -m serving``, or a
fresh process of sessions, where each model answers the same pairs. The bar: 300 MB, the table, and 1.25 times the bytes of each
graph at its served precision. It is held against the process that computes; the one that BentoML has beside it is told apart.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime
import psutil
from provenance import provenance
from serving_processes import conlst_server
from tokenizers import Tokenizer

from conlst.contract.artifacts import link_or_copy, publish, read_manifest
from conlst.runtime.onnx import BATCH_TOKENS, CPU, GRAPHS, KIND, Pair

SAMPLE = Path(__file__).parents[1] / "conlst/data/sample/en.tsv"
LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")
COUNTS = (1, 5, len(LANGUAGES))
# pairs of a request
TOGETHER = 32
FIXED, PER_ENCODER = 300e6, 1.25
TABLE = "embeddings.bin"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, nargs="+", required=True, help="published folders of kind onnx")
    parser.add_argument("--pairs", type=Path, default=SAMPLE, help="a table with premise and hypothesis")
    parser.add_argument("--batch-tokens", type=int, default=BATCH_TOKENS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reserve", type=float, default=3e9, help="bytes to leave to others: no further separate session then")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serving_memory.json"))
    parser.add_argument("--process", help=argparse.SUPPRESS)
    options = parser.parse_args()
    made = provenance("onnxruntime", "tokenizers", "numpy")
    if options.process:
        print(json.dumps(_sessions(**json.loads(options.process))))
        return

    with options.pairs.open(encoding="utf-8", newline="") as file:
        pairs = [(row["premise"], row["hypothesis"]) for row in csv.DictReader(file, delimiter="\t")][:128]
    rows = [row for model in options.model for row in _rows(model, pairs, options)]
    result = {
        "rows": rows,
        "unit": "bytes",
        "pairs": len(pairs),
        "options": {"threads": options.threads, "batch_tokens": options.batch_tokens, "reserve": options.reserve},
        **made,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


def _rows(model: Path, pairs: list[Pair], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    precision = json.loads((model / "config.json").read_text()).get("precision", "fp32")
    sizes = {name: entry.size for name, entry in read_manifest(model, KIND).files.items()}
    graph, table = sizes[GRAPHS[precision]], sizes[TABLE]
    # beside the model, so that its table can be linked
    with tempfile.TemporaryDirectory(dir=model.parent) as root:
        folders = {
            language: _differing(model, GRAPHS[precision], Path(root) / language, language, number)
            for number, language in enumerate(LANGUAGES)
        }
        for way in ("endpoint", "sessions"):
            for count in COUNTS:
                opened = dict(list(folders.items())[:count])
                if way == "endpoint":
                    row = _endpoint(opened, pairs, options, Path(root))
                else:
                    row = _in_fresh_process(
                        {"folders": [*map(str, opened.values())], "graph": GRAPHS[precision], "pairs": pairs}, options
                    )
                bar = FIXED + table + PER_ENCODER * graph * row["languages"]
                # the table in the bar is there once, whether its pages were all read yet or not
                row["with_whole_table"] = row["resident"] - row["resident_table"] + table
                row |= {"precision": precision, "graph": graph, "table": table, "way": way, "asked": count}
                row |= {"bar": bar, "within": row["with_whole_table"] <= bar}
                print(_told(row), flush=True)
                yield row


def _differing(model: Path, graph: str, folder: Path, language: str, number: int) -> Path:
    """A model of another language with the same table and other weights, near enough to answer the same golden pairs."""
    changed = onnx.load(model / graph, load_external_data=False)
    for tensor in changed.graph.initializer:
        # matrices and scales; a lone number may be the mask's smallest float
        if tensor.raw_data and tensor.dims and tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * np.float32(1 + 1e-6 * (number + 1))).tobytes()
    config = json.loads((model / "config.json").read_text()) | {"language": language}
    with publish(folder, kind=KIND, meta=read_manifest(model).meta) as staging:
        for name in ("golden.json", "tokenizer.json", TABLE):
            link_or_copy(model / name, staging / name)
        (staging / "config.json").write_text(json.dumps(config))
        (staging / graph).write_bytes(changed.SerializeToString())
    return folder


def _endpoint(folders: dict[str, Path], pairs: list[Pair], options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Start the endpoint on the folders, let each language answer, and look at the memory of the process that computes."""
    cpus = set(sorted(os.sched_getaffinity(0))[: options.threads])
    with (
        conlst_server(folders, cpus, options.threads, work, f"endpoint-{len(folders)}", 0) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as client,
    ):
        for language in folders:
            for first in range(0, len(pairs), TOGETHER):
                asked = [
                    {"premise": premise, "hypothesis": hypothesis} for premise, hypothesis in pairs[first : first + TOGETHER]
                ]
                client.post("/predict", json={"language": language, "truncate": True, "pairs": asked}).raise_for_status()
        sizes = {process.pid: process.memory_info().rss for process in server.processes()}
        computing = max(sizes, key=sizes.__getitem__)
        beside = sum(sizes.values()) - sizes[computing]
        return {"languages": len(folders), "beside": beside, **_memory(Path(f"/proc/{computing}"))}


def _in_fresh_process(asked: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    asked |= {"threads": options.threads, "batch_tokens": options.batch_tokens, "reserve": options.reserve}
    command = [sys.executable, __file__, "--model", ".", "--process", json.dumps(asked)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _sessions(
    folders: Sequence[str], graph: str, pairs: list[Pair], threads: int, batch_tokens: int, reserve: float
) -> dict[str, Any]:
    """Open a session for each folder in this process, let each answer, and look at the memory."""
    opened: list[object] = []
    for folder in map(Path, folders):
        if opened and psutil.virtual_memory().available < reserve:
            break
        opened.append(_separate(folder, graph, pairs, threads, batch_tokens))
    return {"languages": len(opened), **_memory(Path("/proc/self"))}


def _memory(process: Path) -> dict[str, int]:
    memory = _kilobytes((process / "smaps_rollup").read_text())
    return {
        "resident": 1024 * memory["Rss"],
        "proportional": 1024 * memory["Pss"],
        # pages of the table come into memory when their tokens are first read; separate sessions count the linked file each
        "resident_table": 1024 * _resident_table(process),
        "peak": 1024 * _kilobytes((process / "status").read_text())["VmHWM"],
        "threads": len(list((process / "task").iterdir())),
    }


def _separate(folder: Path, graph: str, pairs: list[Pair], threads: int, batch_tokens: int) -> object:
    """The libraries as their documentation has them: a session and a tokenizer a model."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    tokenizer.enable_truncation(config["max_length"])
    tokenizer.enable_padding(pad_id=config["pad_id"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / graph), options, providers=[CPU])
    ordered = sorted(pairs, key=lambda pair: sum(map(len, pair)))
    rows = max(1, batch_tokens // config["max_length"])
    for start in range(0, len(ordered), rows):
        encodings = tokenizer.encode_batch(ordered[start : start + rows])
        feed = {"input_ids": [e.ids for e in encodings], "attention_mask": [e.attention_mask for e in encodings]}
        session.run(["logits"], {name: np.asarray(values, np.int64) for name, values in feed.items()})
    return tokenizer, session


def _resident_table(process: Path) -> int:
    """Kilobytes of the table's pages that are in a process's memory, each mapping counted."""
    total, inside = 0, False
    for line in (process / "smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            inside = TABLE in line
        elif inside and first == "Rss:":
            total += int(line.split()[1])
    return total


def _kilobytes(text: str) -> dict[str, int]:
    fields = [line.split() for line in text.splitlines()]
    return {field[0].rstrip(":"): int(field[1]) for field in fields if len(field) == 3 and field[2] == "kB"}


def _told(row: dict[str, Any]) -> str:
    held = "within" if row["within"] else "over"
    return (
        f"{row['precision']}, {row['way']}, {row['languages']} of {row['asked']} languages: "
        f"{row['resident'] / 1e6:.0f} MB resident, "
        f"{row['with_whole_table'] / 1e6:.0f} MB with the whole table, {held} the bar of {row['bar'] / 1e6:.0f} MB; "
        f"{row['threads']} threads" + (f", {row['beside'] / 1e6:.0f} MB in BentoML's other process" if "beside" in row else "")
    )


if __name__ == "__main__":
    main()
