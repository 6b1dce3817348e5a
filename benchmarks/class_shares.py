"""What it costs to take a pool's classes to be as frequent as the source's, which is what alignment and rebalancing do.

    python benchmarks/class_shares.py --model starter --data <folder with xnli/> --language fr sw

Predictions of one model without any training, on draws from XNLI dev whose classes have the named shares: as they are; rebalanced
to equal shares, which are the source's; and rebalanced to the shares that the draw really has. An analysis, not a system: the
labels choose the pairs, and no system knows the shares.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from provenance import provenance
from torch import Tensor

from conlst.contract.config import load_config
from conlst.contract.labels import NAMES
from conlst.contract.logs import set_up_logging
from conlst.data.pairs import require_labels
from conlst.data.sources import load_source
from conlst.method.alignment import prior_shift
from conlst.model.folder import load_model
from conlst.stages import folders
from conlst.stages.predict import predict_logits
from conlst.training import set_up_compute

# of entailment, neutral, contradiction
SHARES = ((1 / 3, 1 / 3, 1 / 3), (0.45, 0.275, 0.275), (0.6, 0.2, 0.2), (0.2, 0.6, 0.2), (0.2, 0.2, 0.6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=folders.STARTER, help="a model folder, or 'starter'")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--language", nargs="+", required=True)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--work", type=Path, default=Path("runs/class_shares"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/class_shares.json"))
    options = parser.parse_args()
    set_up_logging()
    made = provenance("torch", "transformers", "tokenizers")

    model = folders.resolve_source_model(options.model, options.work / "starter")
    generator = torch.Generator().manual_seed(options.seed)
    rows = {
        language: measure(*_predicted(model, options.data / f"xnli/dev.{language}.tsv.gz", language), options.draws, generator)
        for language in options.language
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    told = {"rows": rows, "draws": options.draws, "seed": options.seed, "model": str(options.model)}
    options.out.write_text(json.dumps(told | made, indent=1, sort_keys=True) + "\n")
    for language, found in rows.items():
        for row in found:
            before, equal, true = (100 * row[key] for key in ("as_predicted", "to_equal_shares", "to_its_own_shares"))
            told = f"to equal shares {equal - before:+.1f}, to its own {true - before:+.1f}"
            print(f"{language} {row['shares']}: {before:.1f}, {told}")


def _predicted(model: Path, file: Path, language: str) -> tuple[Tensor, Tensor]:
    """Logits ``[n, 3]`` and labels ``[n]``."""
    loaded, pairs = load_model(model), load_source([str(file)], language=language).pairs
    require_labels(pairs, str(file))
    compute = load_config("xnli-e5-small").compute.model_copy(update={"precision": "fp32"})
    set_up_compute(compute)
    tokens = loaded.tokenize(pairs["premise"], pairs["hypothesis"])
    return predict_logits(loaded.classifier, tokens, compute, 8192), torch.tensor(pairs["label"])


def measure(logits: Tensor, labels: Tensor, draws: int, generator: torch.Generator) -> list[dict[str, Any]]:
    """Mean accuracies over the draws, for each of ``SHARES``."""
    return [_row(logits, labels, torch.tensor(shares), draws, generator) for shares in SHARES]


def _row(logits: Tensor, labels: Tensor, shares: Tensor, draws: int, generator: torch.Generator) -> dict[str, Any]:
    members = [(labels == label).nonzero().squeeze(1) for label in range(len(NAMES))]
    # as many as the rarest class allows, so that every draw has the shares
    size = int(min(len(of_one) / share for of_one, share in zip(members, shares.tolist(), strict=True)) * 0.9)
    equal = torch.full((len(NAMES),), 1 / len(NAMES))
    found: dict[str, list[float]] = {"as_predicted": [], "to_equal_shares": [], "to_its_own_shares": []}
    for _ in range(draws):
        drawn = torch.cat(
            [
                of_one[torch.randperm(len(of_one), generator=generator)[: round(share * size)]]
                for of_one, share in zip(members, shares.tolist(), strict=True)
            ]
        )
        own = torch.bincount(labels[drawn], minlength=len(NAMES)) / len(drawn)
        shifts = (torch.zeros(len(NAMES)), prior_shift(logits[drawn], equal), prior_shift(logits[drawn], own))
        for accuracies, shift in zip(found.values(), shifts, strict=True):
            accuracies.append(((logits[drawn] + shift).argmax(1) == labels[drawn]).float().mean().item())
    told = {name: statistics.mean(accuracies) for name, accuracies in found.items()}
    return {"shares": [round(share, 3) for share in shares.tolist()], "pairs": len(drawn), **told}


if __name__ == "__main__":
    main()
