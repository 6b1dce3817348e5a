"""Resident memory of many languages in one process: one shared table and tokenizer against separate sessions.

    python benchmarks/serving_memory.py --model runs/demo/sw/onnx runs/demo/sw/onnx-int8

Fine-tuned encoders that differ are made of the one that is given. Every count of languages is opened in a fresh process, where
each model answers the same pairs. The bar: 300 MB, the table, and 1.25 times the bytes of each graph at its served precision.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from provenance import provenance
from tokenizers import Tokenizer

from conlst.contract.artifacts import link_or_copy, publish, read_manifest
from conlst.runtime.onnx import BATCH_TOKENS, CPU, GRAPHS, KIND, Pair, Predictor
from conlst.runtime.table import Tables

SAMPLE = Path(__file__).parents[1] / "conlst/data/sample/en.tsv"
COUNTS = (1, 5, 15)
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
        print(json.dumps(_in_this_process(**json.loads(options.process))))
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
        folders = [str(_differing(model, GRAPHS[precision], Path(root), number)) for number in range(max(COUNTS))]
        for way in ("shared", "separate"):
            for count in COUNTS:
                asked = {"way": way, "folders": folders[:count], "graph": GRAPHS[precision], "pairs": pairs}
                row = _in_fresh_process(
                    {**asked, "threads": options.threads, "batch_tokens": options.batch_tokens, "reserve": options.reserve}
                )
                bar = FIXED + table + PER_ENCODER * graph * row["languages"]
                # the table in the bar is there once, whether its pages were all read yet or not
                row |= {"precision": precision, "graph": graph, "table": table, "way": way, "asked": count}
                row |= {"bar": bar, "within": row["with_whole_table"] <= bar}
                print(_told(row), flush=True)
                yield row


def _differing(model: Path, graph: str, root: Path, number: int) -> Path:
    """A model with the same table and other weights, as another fine-tuning would leave it."""
    changed = onnx.load(model / graph, load_external_data=False)
    for tensor in changed.graph.initializer:
        # matrices and scales; a lone number may be the mask's smallest float
        if tensor.raw_data and tensor.dims and tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * np.float32(1 + 1e-4 * (number + 1))).tobytes()
    with publish(root / str(number), kind=KIND, meta=read_manifest(model).meta) as staging:
        for name in ("config.json", "golden.json", "tokenizer.json", TABLE):
            link_or_copy(model / name, staging / name)
        (staging / graph).write_bytes(changed.SerializeToString())
    return root / str(number)


def _in_fresh_process(asked: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--model", ".", "--process", json.dumps(asked)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _in_this_process(
    way: str, folders: Sequence[str], graph: str, pairs: list[Pair], threads: int, batch_tokens: int, reserve: float
) -> dict[str, Any]:
    """Open the folders, let each answer, and look at the memory."""
    tables = Tables()
    opened: list[object] = []
    for folder in map(Path, folders):
        if way == "separate" and opened and _available() < reserve:
            break
        if way == "shared":
            predictor = Predictor(folder, threads=threads, tables=tables)
            _answer(predictor, pairs, threads, batch_tokens)
            opened.append(predictor)
        else:
            opened.append(_separate(folder, graph, pairs, threads, batch_tokens))
    memory = _kilobytes(Path("/proc/self/smaps_rollup").read_text())
    resident, mapped = 1024 * memory["Rss"], 1024 * _resident_table()
    return {
        "languages": len(opened),
        "resident": resident,
        "proportional": 1024 * memory["Pss"],
        # pages of the table come into memory when their tokens are first read; separate sessions count the linked file each
        "resident_table": mapped,
        "with_whole_table": resident - mapped + (Path(folders[0]) / TABLE).stat().st_size,
        "peak": 1024 * _kilobytes(Path("/proc/self/status").read_text())["VmHWM"],
        "threads": len(list(Path("/proc/self/task").iterdir())),
    }


def _answer(predictor: Predictor, pairs: list[Pair], threads: int, batch_tokens: int) -> None:
    """As the endpoint does, with a run for each CPU at the same time."""
    with ThreadPoolExecutor(threads) as pool:
        parts = [pairs[place::threads] for place in range(threads)]
        list(pool.map(lambda part: predictor.logits(part, truncate=True, batch_tokens=batch_tokens), parts))


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


def _resident_table() -> int:
    """Kilobytes of the table's pages that are in this process's memory, each mapping counted."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            inside = TABLE in line
        elif inside and first == "Rss:":
            total += int(line.split()[1])
    return total


def _available() -> int:
    return 1024 * _kilobytes(Path("/proc/meminfo").read_text())["MemAvailable"]


def _kilobytes(text: str) -> dict[str, int]:
    fields = [line.split() for line in text.splitlines()]
    return {field[0].rstrip(":"): int(field[1]) for field in fields if len(field) == 3 and field[2] == "kB"}


def _told(row: dict[str, Any]) -> str:
    held = "within" if row["within"] else "over"
    return (
        f"{row['precision']}, {row['way']}, {row['languages']} of {row['asked']} languages: "
        f"{row['resident'] / 1e6:.0f} MB resident, "
        f"{row['with_whole_table'] / 1e6:.0f} MB with the whole table, {held} the bar of {row['bar'] / 1e6:.0f} MB; "
        f"{row['threads']} threads"
    )


if __name__ == "__main__":
    main()
