"""What the labels of the pool are worth: stage 2 taught with the true labels of XNLI dev, measured on XNLI test.

    python benchmarks/upper_bound.py --model runs/bench/source/plain-13-… --data <folder with xnli/ source/> --language fr ar tr

No self-training with the same steps can be expected to gain more, for its pseudo-labels are right less often. Inductive.
An analysis, not a system: it trains on labels of the target language.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from datasets import Dataset
from provenance import provenance
from torch import Tensor

from conlst.contract.config import Config, load_config, with_settings
from conlst.contract.logs import set_up_logging
from conlst.data.sources import load_source
from conlst.model.folder import Model, load_model
from conlst.reports.metrics import compare
from conlst.stages.folders.pairs import labels_of, tokens_of
from conlst.stages.predict import predict_logits
from conlst.stages.progress import Progress
from conlst.stages.selftrain import self_train
from conlst.training import set_up_compute

# no pseudo-label is left out, and none is wrong
SETTINGS = {
    "compute.precision": "bf16",
    "selftrain.rule": "fixed",
    "selftrain.max_iterations": 1,
    "selftrain.epochs": 2,
    "selftrain.lr": 3.0e-5,
    "selftrain.batch_tokens": 1024,
    "selftrain.mixup": None,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a source model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--language", nargs="+", required=True)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/upper_bound.json"))
    options = parser.parse_args()
    set_up_logging()
    made = provenance("torch", "transformers", "tokenizers")

    config = with_settings(load_config("xnli-e5-small"), {**SETTINGS, "seed": options.seed})
    set_up_compute(config.compute)
    settings = {**config.selftrain.model_dump(mode="json"), "precision": config.compute.precision}
    result = {"settings": settings, "seed": options.seed, **made}
    rows: dict[str, Any] = {}
    for language in options.language:
        rows[language] = row = _row(options.model, options.data, language, config)
        told = f"{row['before']['accuracy']:.4f} -> {row['after']['accuracy']:.4f} with the true labels of the pool"
        print(f"{language}: {told}", flush=True)
        _write(options.out, {"rows": rows, **result})


def _row(folder: Path, data: Path, language: str, config: Config) -> dict[str, Any]:
    model = load_model(folder)
    english = _pairs(sorted(data.glob("source/*train_*.en.tsv.gz")), "en", config)
    pool, tested = (_pairs([data / f"xnli/{split}.{language}.tsv.gz"], language, config) for split in ("dev", "test"))
    before = _probabilities(model, tested, config)
    rounds = self_train(
        model.classifier,
        tokens_of(pool, model),
        None,
        tokens_of(english, model),
        labels_of(english),
        model.text,
        config,
        progress=Progress(f"upper bound {language}"),
        teacher=F.one_hot(labels_of(pool), 3).float(),
    )
    report = compare(before, _probabilities(model, tested, config), labels_of(tested), config.evaluate)
    return {name: report[name] for name in ("n", "before", "after", "accuracy_gain", "mcnemar")} | {
        "pool": len(pool),
        "steps": sum(len(done.losses) for done in rounds),
    }


def _pairs(files: Sequence[Path], language: str, config: Config) -> Dataset:
    return load_source([str(file) for file in files], language=language, max_bad_share=config.data.max_bad_share).pairs


def _probabilities(model: Model, pairs: Dataset, config: Config) -> Tensor:
    return predict_logits(model.classifier, tokens_of(pairs, model), config.compute, config.evaluate.batch_tokens).softmax(1)


def _write(file: Path, result: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
