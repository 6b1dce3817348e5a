"""A training step of the embedded encoder: conlst's dropout and attention against PyTorch's own, in both precisions, interleaved,
medians.

python benchmarks/train_step.py --out benchmarks/results/train_step.json
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

import torch
from provenance import provenance
from torch import Tensor, nn

from conlst.contract.config import Backbone, Compute, Precision, Source
from conlst.model.backbones import load_backbone
from conlst.model.dropout import Dropout
from conlst.model.encoder import PairClassifier
from conlst.training import Trainer, autocast, precision_on, set_up_compute

ROWS, LENGTH = 40, 48
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    made = provenance("torch", "transformers")

    device = set_up_compute(Compute(threads=options.threads))
    generator = torch.Generator().manual_seed(options.seed)
    ids = torch.randint(5, 250_000, (ROWS, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[::2, LENGTH - 8 :] = 0
    labels = torch.randint(0, 3, (ROWS,), generator=generator)

    models = {"conlst": _model(options.seed), "torch": _with_torch_parts(_model(options.seed))}
    variants = list(itertools.product(PRECISIONS, models))
    # one each: a trainer gives memory back at every eighth of its steps
    trainers = {(precision, name): Trainer(models[name], Source(), 10_000) for precision, name in variants}
    seconds: dict[str, dict[str, list[float]]] = {precision: {name: [] for name in models} for precision in PRECISIONS}
    for repeat in range(options.repeats + 2):
        for precision, name in variants if repeat % 2 else reversed(variants):
            start = time.perf_counter()
            with autocast(Compute(precision=precision), device):
                logits: Tensor = models[name].train()(ids, mask)
            trainers[precision, name].update(nn.functional.cross_entropy(logits.float(), labels), [])
            if repeat >= 2:
                seconds[precision][name].append(time.perf_counter() - start)

    rates = {
        precision: {name: ROWS / statistics.median(times) for name, times in measured.items()}
        for precision, measured in seconds.items()
    }
    result = {
        "rows": ROWS,
        "length": LENGTH,
        "pairs_per_second": rates,
        "conlst_to_torch": {precision: rate["conlst"] / rate["torch"] for precision, rate in rates.items()},
        "bf16_to_fp32": rates["bf16"]["conlst"] / rates["fp32"]["conlst"],
        "auto_takes": precision_on(Compute(), device),
        "bf16_instructions": {name: bool(has) for name, has in torch.cpu.get_capabilities().items() if "bf16" in name},
        "seconds": seconds,
        "options": {"threads": options.threads, "repeats": options.repeats, "seed": options.seed},
        **made,
    }
    told = ("pairs_per_second", "conlst_to_torch", "bf16_to_fp32", "auto_takes")
    print(json.dumps({key: result[key] for key in told}, indent=1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def _model(seed: int) -> PairClassifier:
    return load_backbone(Backbone(), seed).classifier


def _with_torch_parts(model: PairClassifier) -> PairClassifier:
    """The same encoder with ``torch.nn.Dropout`` and transformers' default attention."""
    model.encoder.set_attn_implementation("sdpa")
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Dropout):
                setattr(module, name, nn.Dropout(child.p))
    return model


if __name__ == "__main__":
    main()
