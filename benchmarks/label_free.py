"""How far estimates of accuracy without target labels are off, on XNLI dev, where labels exist to tell.

    python benchmarks/label_free.py --source runs/bench/source/plain-13-… --data <folder with xnli/ source/> \\
        --language ar fr sw --adapted ar=models/ar fr=models/fr

Each model is measured on English dev (labelled, MultiNLI dev matched) and on a language (its labels only judge the estimate).
``source`` is what one gets by believing the estimate of the model that adaptation started from.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from provenance import provenance

from conlst.contract.config import Config, load_config, with_settings
from conlst.contract.logs import set_up_logging
from conlst.data.sources import load_source
from conlst.model.folder import Model, load_model
from conlst.reports.estimate import agreement, average_thresholded_confidence, difference_of_confidences
from conlst.stages.folders.pairs import labels_of, tokens_of
from conlst.stages.predict import predict_logits
from conlst.training import set_up_compute, step_generator

_ENGLISH_PAIRS = 2490


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="the source model, measured in every language")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--language", nargs="+", required=True)
    parser.add_argument("--adapted", nargs="+", default=[], metavar="LANGUAGE=MODEL")
    parser.add_argument("--split", default="dev", help="of XNLI; for an adapted model one that was not its pool")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/label_free.json"))
    options = parser.parse_args()
    set_up_logging()
    made = provenance("torch", "transformers", "tokenizers")

    # in float32, as the gate's estimate
    config = with_settings(load_config("xnli-e5-small"), {"compute.precision": "fp32"})
    set_up_compute(config.compute)
    english = _pairs(options.data / "source/dev_matched.en.tsv.gz", "en", config)
    english = english.shuffle(seed=config.seed).select(range(min(_ENGLISH_PAIRS, len(english))))
    files = {language: options.data / f"xnli/{options.split}.{language}.tsv.gz" for language in options.language}
    pairs = {language: _pairs(file, language, config) for language, file in files.items()}
    rows = {"source": _rows(load_model(options.source), english, pairs, config)}
    for item in options.adapted:
        language, _, folder = item.partition("=")
        row = _rows(load_model(Path(folder)), english, {language: pairs[language]}, config)[language]
        row["estimates"]["source"] = rows["source"][language]["estimates"]["atc"]
        rows.setdefault("adapted", {})[language] = row
    errors = {name: _errors(row) for name, row in rows.items()}
    result = {
        "split": options.split,
        "english_pairs": len(english),
        "rows": rows,
        "errors": errors,
        "seed": config.seed,
        **made,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    for name, table in rows.items():
        for language, row in sorted(table.items()):
            estimates = "  ".join(f"{key} {100 * value:.1f}" for key, value in sorted(row["estimates"].items()))
            print(f"{name} {language}: true {100 * row['accuracy']:.1f}  {estimates}")
        for key, error in sorted(errors[name].items()):
            print(f"{name}, {key}: mean error {100 * error['mean']:+.1f}, mean size {100 * error['mean_absolute']:.1f} points")


def _rows(model: Model, english: Dataset, pairs: dict[str, Dataset], config: Config) -> dict[str, Any]:
    source, labels = _probabilities(model, english, config), labels_of(english).numpy()
    rows = {}
    for language, target in pairs.items():
        found = _probabilities(model, target, config)
        views = [_probabilities(model, target, config, view) for view in (1, 2)]
        rows[language] = {
            "pairs": len(target),
            "accuracy": float((found.argmax(1) == labels_of(target).numpy()).mean()),
            "english_accuracy": float((source.argmax(1) == labels).mean()),
            "estimates": {
                "confidence": float(found.max(1).mean()),
                "doc": difference_of_confidences(source, labels, found),
                "atc": average_thresholded_confidence(source, labels, found),
                "views": agreement(*views),
            },
        }
    return rows


def _errors(table: dict[str, Any]) -> dict[str, dict[str, float]]:
    names = next(iter(table.values()))["estimates"]
    errors = {name: [row["estimates"][name] - row["accuracy"] for row in table.values()] for name in names}
    return {
        name: {"mean": statistics.fmean(all_), "mean_absolute": statistics.fmean(map(abs, all_)), "worst": max(map(abs, all_))}
        for name, all_ in errors.items()
    }


def _pairs(file: Path, language: str, config: Config) -> Dataset:
    return load_source([str(file)], language=language, max_bad_share=config.data.max_bad_share).pairs


def _probabilities(model: Model, pairs: Dataset, config: Config, view: int = 0) -> np.ndarray:
    step_generator(config.seed, "view", view)
    tokens = tokens_of(pairs, model)
    logits = predict_logits(model.classifier, tokens, config.compute, config.evaluate.batch_tokens, dropout=view > 0)
    return logits.double().softmax(1).numpy()


if __name__ == "__main__":
    main()
