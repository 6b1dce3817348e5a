"""What of a gain is due to how XNLI is made: three hypotheses a premise, one of each label, and so as many pairs of each label.

    python benchmarks/pool_makeup.py --model runs/bench/source/plain-13-… --data <folder with xnli/ source/> --language tr

No pool of production is like that. The same recipe adapts to pools of one size drawn from XNLI test, and is measured on XNLI dev
(inductive): whole premises; one hypothesis of each premise; and one of each, three fifths of them entailments, which is not the
balance that distribution alignment expects. An analysis, not a system: the labels choose the pairs of the last pool.
"""

import argparse
import json
import random
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from provenance import provenance

from conlst.contract.config import Config, load_config, with_settings
from conlst.contract.labels import NAMES
from conlst.contract.logs import set_up_logging
from conlst.data.pairs import write_pairs
from conlst.data.sources import load_source
from conlst.stages import folders

# of entailment, neutral, contradiction
SKEWED = (0.6, 0.2, 0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a source model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--language", nargs="+", required=True)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--work", type=Path, default=Path("runs/pool_makeup"), help="what is done here is not done again")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pool_makeup.json"))
    options = parser.parse_args()
    set_up_logging()
    made = provenance("torch", "transformers", "tokenizers")

    config = with_settings(load_config("xnli-e5-small"), {"compute.precision": "bf16", "seed": options.seed})
    rows = {language: _row(options.model, options.data, language, config, options.work) for language in options.language}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"rows": rows, "seed": options.seed, "precision": config.compute.precision, **made}
    options.out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    for language, pools in rows.items():
        for name, row in pools.items():
            print(f"{language} {name}: {row['pool']} pairs, {100 * row['accuracy_gain']:+.2f} points on {row['n']} pairs")


def _row(model: Path, data: Path, language: str, config: Config, work: Path) -> dict[str, Any]:
    work = work / language
    english = work / "source"
    folders.ingest(config, "source", [str(file) for file in sorted(data.glob("source/*train_*.en.tsv.gz"))], "en", english)
    tested = work / "tested"
    folders.ingest(config, "test", [str(data / f"xnli/dev.{language}.tsv.gz")], language, tested)
    before = work / "before"
    folders.evaluate_model(config, model, tested, language, before)

    ingested = load_source([str(data / f"xnli/test.{language}.tsv.gz")], language=language)
    rows = {}
    for name, places in draw(ingested.pairs, random.Random(config.seed)).items():
        here = work / name
        here.mkdir(parents=True, exist_ok=True)
        pool, calibrated, adapted = here / "pool", here / "calibrated", here / "adapted"
        drawn = replace(ingested, pairs=ingested.pairs.select(places))
        write_pairs(drawn, pool, config=config.data.model_dump(mode="json"))
        folders.calibrate_model(config, model, pool, language, calibrated, english)
        folders.self_train_model(config, calibrated, pool, language, adapted, english)
        shutil.rmtree(here / "evaluation", ignore_errors=True)
        evaluation = folders.evaluate_model(config, adapted, tested, language, here / "evaluation", before)
        comparison = evaluation["comparison"]
        shares = [drawn.pairs["label"].count(label) / len(places) for label in range(len(NAMES))]
        told = {key: comparison[key] for key in ("n", "accuracy_gain", "mcnemar")}
        rows[name] = told | {"pool": len(places), "label_shares": dict(zip(NAMES, shares, strict=True))}
    return rows


def draw(pairs: Dataset, generator: random.Random) -> dict[str, list[int]]:
    """Places of the pairs of three pools of about one size, by the pool's name.

    Raises:
        ValueError: if a premise has not one hypothesis of each label, as in XNLI.
    """
    groups: dict[str, dict[int, int]] = defaultdict(dict)
    for place, (premise, label) in enumerate(zip(pairs["premise"], pairs["label"], strict=True)):
        groups[premise][label] = place
    whole = [[group[label] for label in range(len(NAMES))] for group in groups.values() if len(group) == len(NAMES)]
    if 3 * len(whole) < 0.9 * len(pairs):
        raise ValueError(f"only {len(whole)} premises have one hypothesis of each label; this asks for pairs made as XNLI's are")
    generator.shuffle(whole)
    premises = [place for group in whole[: len(whole) // len(NAMES)] for place in group]
    singles = [generator.choice(group) for group in whole]
    skewed = [group[generator.choices(range(len(NAMES)), SKEWED)[0]] for group in whole]
    return {"whole premises": sorted(premises), "one of a premise": sorted(singles), "skewed": sorted(skewed)}


if __name__ == "__main__":
    main()
