"""What INT8 and the temperature do to adapted models: accuracy, agreement, calibration error and speed, beside float32.

    python benchmarks/int8.py --models sw=models/sw fr=models/fr --data <folder with xnli/ source/> --judged sw=dev fr=dev

A model is exported as the pipeline does it, without labels of its language: ranges and agreement on XNLI dev (its pool), the
temperature on the judged split's text, English from MultiNLI dev matched. The labels of the judged split only judge. Times are of
batches like the server's, interleaved, on ``--threads`` threads, in CPU seconds: other programs may run beside.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from provenance import provenance

from conlst.contract.config import Config, load_config
from conlst.contract.logs import set_up_logging
from conlst.data.sources import load_source
from conlst.method.temperature import label_temperature, softmax
from conlst.reports.metrics import expected_calibration_error
from conlst.runtime.onnx import GRAPHS, Predictor, open_session, padded
from conlst.stages.export import Reference, export_onnx
from conlst.stages.folders.pairs import labels_of
from conlst.stages.precision import Labelled, judge

Answers = NDArray[np.float32]
_BATCH_TOKENS = 1024
_TIMED_PAIRS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, metavar="LANGUAGE=MODEL")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--judged", nargs="*", default=[], metavar="LANGUAGE=SPLIT", help="split of XNLI that judges, else test")
    parser.add_argument("--pairs", type=int, help="judge on a draw of as many")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/int8.json"))
    options = parser.parse_args()
    set_up_logging()
    made = provenance("torch", "onnx", "onnxruntime", "tokenizers")

    config = load_config("xnli-e5-small")
    splits = dict(item.split("=", 1) for item in options.judged)
    english = _pairs(options.data / "source/dev_matched.en.tsv.gz", "en", config, config.export.pairs)
    rows = {}
    for item in options.models:
        language, _, folder = item.partition("=")
        split = splits.get(language, "test")
        pool = _pairs(options.data / f"xnli/dev.{language}.tsv.gz", language, config, config.export.pairs)
        judged = _pairs(options.data / f"xnli/{split}.{language}.tsv.gz", language, config, options.pairs)
        rows[language] = {"split": split, **_row(Path(folder), pool, judged, english, config, options.threads, options.repeats)}
        print(_line(language, rows[language]), flush=True)
        _write(options.out, {"rows": rows, "threads": options.threads, "seed": config.seed, **made})


def _row(
    model: Path, pool: Dataset, judged: Dataset, english: Dataset, config: Config, threads: int, repeats: int
) -> dict[str, Any]:
    # any int8 is let through, to be measured even where the gate refuses it
    export = config.export.model_copy(update={"min_agreement": 0.0, "max_drop": 0.99})
    labels, english_labels = labels_of(judged).numpy(), labels_of(english).numpy()
    reference = Reference(_texts(pool), _texts(judged), None, _texts(english), english_labels)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "onnx"
        export_onnx(model, reference.pool[:200], folder, config.model_copy(update={"export": export}), reference)
        predictor = Predictor(folder, threads=threads)
        card = predictor.card
        ids = {name: predictor.encode(texts).ids for name, texts in (("pool", reference.pool), ("judged", reference.held_out))}
        ids["english"] = predictor.encode(reference.english).ids
        sessions = {name: open_session(folder / file, threads) for name, file in GRAPHS.items()}
        found = {
            name: {which: _answers(session, some, predictor.pad_id) for which, some in ids.items()}
            for name, session in sessions.items()
        }
        rates = _rates(sessions, ids["judged"][:_TIMED_PAIRS], predictor.pad_id, repeats)
    fp32, int8 = found["fp32"], found["int8"]
    verdicts = {
        "with labels": judge(
            fp32["pool"], int8["pool"], Labelled("held out pairs", fp32["judged"], int8["judged"], labels), config.export
        ),
        "without labels": judge(
            fp32["pool"], int8["pool"], Labelled("English pairs", fp32["english"], int8["english"], english_labels), config.export
        ),
    }
    temperature, english_temperature = card["temperature"]["value"], label_temperature(int8["english"], english_labels)
    return {
        "pairs": len(labels),
        "accuracy": {name: float((logits["judged"].argmax(axis=1) == labels).mean()) for name, logits in found.items()},
        "agreement": float((fp32["judged"].argmax(axis=1) == int8["judged"].argmax(axis=1)).mean()),
        "largest_difference": float(np.abs(fp32["judged"] - int8["judged"]).max()),
        "precision": {name: verdict.to_dict() for name, verdict in verdicts.items()},
        "temperature": {"label_free": temperature, "english_labels": english_temperature},
        "ece": {
            "before": _ece(int8["judged"], labels, 1.0, config),
            "english_labels": _ece(int8["judged"], labels, english_temperature, config),
            "after": _ece(int8["judged"], labels, temperature, config),
            # what one temperature can do at best, with the labels that it is judged by
            "own_labels": _ece(int8["judged"], labels, label_temperature(int8["judged"], labels), config),
        },
        "pairs_per_cpu_second": rates,
        "faster": rates["int8"] / rates["fp32"],
    }


def _ece(logits: Answers, labels: NDArray[np.int64], temperature: float, config: Config) -> float:
    return expected_calibration_error(softmax(logits, temperature), labels, config.evaluate.bins)


def _batches(ids: Sequence[list[int]]) -> list[list[int]]:
    batches: list[list[int]] = [[]]
    for index in sorted(range(len(ids)), key=lambda index: len(ids[index])):
        if batches[-1] and (len(batches[-1]) + 1) * len(ids[index]) > _BATCH_TOKENS:
            batches.append([])
        batches[-1].append(index)
    return batches


def _answers(session: Any, ids: Sequence[list[int]], pad_id: int) -> Answers:
    logits = np.empty((len(ids), 3), np.float32)
    for batch in _batches(ids):
        logits[batch] = session.run(["logits"], padded([ids[index] for index in batch], pad_id))[0]
    return logits


def _rates(sessions: dict[str, Any], ids: Sequence[list[int]], pad_id: int, repeats: int) -> dict[str, float]:
    feeds = [padded([ids[index] for index in batch], pad_id) for batch in _batches(ids)]
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for repeat in range(repeats + 1):
        for name, session in sessions.items():
            start = time.process_time()
            for feed in feeds:
                session.run(["logits"], feed)
            # the first round warms up
            if repeat:
                seconds[name].append(time.process_time() - start)
    return {name: len(ids) / statistics.median(all_) for name, all_ in seconds.items()}


def _pairs(file: Path, language: str, config: Config, count: int | None) -> Dataset:
    pairs = load_source([str(file)], language=language, max_bad_share=config.data.max_bad_share).pairs
    return pairs.shuffle(seed=config.seed).select(range(min(count or len(pairs), len(pairs))))


def _texts(pairs: Dataset) -> list[tuple[str, str]]:
    return list(zip(pairs["premise"], pairs["hypothesis"], strict=True))


def _line(language: str, row: dict[str, Any]) -> str:
    right = "  ".join(f"{name} {100 * value:.2f}" for name, value in row["accuracy"].items())
    errors = "  ".join(f"{name} {value:.3f}" for name, value in row["ece"].items())
    return (
        f"{language} {row['split']}: {right}  agreement {row['agreement']:.4f}  ece {errors}  {row['faster']:.2f} times as fast"
    )


def _write(file: Path, result: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
