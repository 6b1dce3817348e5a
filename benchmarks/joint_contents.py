"""What of a joint model's gain is due to pools that are translations of one another, as XNLI's are and no pools of production.

    python benchmarks/joint_contents.py --model runs/bench/source/plain-14-… --data <folder with xnli/ source/>

Stage 2, aligned, trains one model on pools drawn from XNLI dev, of one size in every language: with the *same* contents, the same
premises and hypotheses in each language's translation; and with *different* contents, where no two languages have a premise in
common. It is measured on XNLI test (inductive). An analysis, not a system: which pairs are translations of which is known here.
"""

import argparse
import json
import random
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from provenance import provenance

from conlst.contract.config import Config, load_config, with_settings
from conlst.contract.logs import set_up_logging
from conlst.data.pairs import SEVERAL, merge_pairs, write_pairs
from conlst.data.sources import load_source
from conlst.stages import folders

LANGUAGES = ("ar", "bg", "de", "es", "fr", "ru", "tr", "vi", "zh")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a source model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--languages", nargs="+", default=LANGUAGES)
    parser.add_argument("--pairs", type=int, default=1500, help="of each language's test set, drawn at random")
    parser.add_argument("--seed", type=int, default=14)
    parser.add_argument("--work", type=Path, default=Path("runs/joint_contents"), help="what is done here is not done again")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/joint_contents.json"))
    options = parser.parse_args()
    set_up_logging()
    made = provenance("torch", "transformers", "tokenizers")

    config = with_settings(load_config("xnli-e5-small"), {"compute.precision": "bf16", "seed": options.seed})
    options.work.mkdir(parents=True, exist_ok=True)
    tested, before = {}, {}
    for language in options.languages:
        tested[language], before[language] = options.work / f"tested-{language}", options.work / f"before-{language}"
        file = str(options.data / f"xnli/test.{language}.tsv.gz")
        folders.ingest(config, "test", [file], language, tested[language], options.pairs)
        folders.evaluate_model(config, options.model, tested[language], language, before[language])

    models = _train(options.model, options.data, options.languages, config, options.work)
    rows: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        rows[name] = {}
        for language in options.languages:
            out = options.work / f"{name}-{language}"
            evaluation = folders.evaluate_model(config, model, tested[language], language, out, before[language])
            rows[name][language] = {key: evaluation["comparison"][key] for key in ("n", "accuracy_gain", "mcnemar")}
    mean = {name: statistics.mean(row["accuracy_gain"] for row in found.values()) for name, found in rows.items()}
    result = {"mean_accuracy_gain": mean, "rows": rows, "seed": options.seed, **made}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    for name, found in rows.items():
        each = " ".join(f"{language} {100 * row['accuracy_gain']:+.1f}" for language, row in found.items())
        print(f"{name} contents: {100 * mean[name]:+.2f} points, {each}")


def _train(model: Path, data: Path, languages: Sequence[str], config: Config, work: Path) -> dict[str, Path]:
    english = work / "source"
    folders.ingest(config, "source", [str(file) for file in sorted(data.glob("source/*train_*.en.tsv.gz"))], "en", english)
    pools = {language: load_source([str(data / f"xnli/dev.{language}.tsv.gz")], language=language) for language in languages}
    models = {}
    for name, drawn in draw({language: pool.pairs for language, pool in pools.items()}, random.Random(config.seed)).items():
        parts = [work / name / language for language in languages]
        for language, part in zip(languages, parts, strict=True):
            write_pairs(replace(pools[language], pairs=pools[language].pairs.select(drawn[language])), part)
        merge_pairs(parts, work / name / "pool")
        models[name] = work / name / "adapted"
        folders.self_train_model(config, model, work / name / "pool", SEVERAL, models[name], english)
    return models


def draw(pools: Mapping[str, Dataset], generator: random.Random) -> dict[str, dict[str, list[int]]]:
    """Places of the pairs of each language's pool, with the ``same`` contents and with ``different`` ones.

    Raises:
        ValueError: if the pools are not translations of one another, pair by pair.
    """
    languages = list(pools)
    ids = [set(pool["pair_id"]) for pool in pools.values()]
    if any(other != ids[0] for other in ids):
        raise ValueError("the languages' pairs have other ids; this asks for pools that are translations of one another")
    first = pools[languages[0]]
    by_premise = defaultdict(list)
    for premise, pair_id in zip(first["premise"], first["pair_id"], strict=True):
        by_premise[premise].append(pair_id)
    premises = list(by_premise.values())
    generator.shuffle(premises)
    share = len(premises) // len(languages)

    def places(language: str, begin: int) -> list[int]:
        wanted = {pair_id for group in premises[begin : begin + share] for pair_id in group}
        return [place for place, pair_id in enumerate(pools[language]["pair_id"]) if pair_id in wanted]

    return {
        "same": {language: places(language, 0) for language in languages},
        "different": {language: places(language, number * share) for number, language in enumerate(languages)},
    }


if __name__ == "__main__":
    main()
