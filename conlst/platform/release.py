"""From folders to a registered version: upload, then register with the numbers that the gate reads."""

import json
from pathlib import Path

from conlst.contract.artifacts import read_manifest
from conlst.contract.config import Config
from conlst.platform import objects, registry
from conlst.platform.origin import origin

_ESTIMATED = ("estimated_accuracy", "english_accuracy", "least_label_share", "view_agreement", "unlabelled_n")


def release(
    config: Config, job: str, language: str, store: str, served: Path, evaluation: Path, zero_shot: Path, pool: Path
) -> int:
    """Upload a served folder and register it as challenger of ``language``.

    Args:
        job: id of the pipeline run.
        store: ``s3://bucket/prefix``.
        served: artifact of kind ``onnx``.
        evaluation: of the adapted model: an ``evaluation`` on labelled pairs, or an ``estimate`` without labels.
        zero_shot: the same of the model that it started from, on the same pairs.
        pool: pairs that it was adapted on.

    Returns:
        The version in the registry.
    """
    manifest, measured = read_manifest(served, "onnx"), read_manifest(evaluation)
    before = read_manifest(zero_shot, measured.kind).meta
    uri = objects.push_folder(served, store)
    settings = json.loads((served / "config.json").read_text())
    metrics = {"parity": float(settings["parity"])}
    if measured.kind == "estimate":
        metrics |= {name: float(measured.meta[name]) for name in _ESTIMATED}
        metrics["source_english_accuracy"] = float(before["english_accuracy"])
    else:
        metrics |= {name: float(measured.meta[name]) for name in ("accuracy", "macro_f1", "ece", "n")}
        metrics["zero_shot_accuracy"] = float(before["accuracy"])
    tags = {
        "job": job,
        "protocol": measured.meta.get("protocol", "without labels"),
        # with its predictions, for a paired test against the next candidate
        "evaluation": objects.push_folder(evaluation, store),
        "config": config.name,
        "config_digest": config.digest,
        "code": manifest.code,
        **origin(),
        "precision": settings["precision"],
        "precision_reason": settings["precision_reason"],
        "model_digest": manifest.parents["model"],
        "test": measured.meta["fingerprint"],
        "pool": read_manifest(pool, "pairs").digest,
    }
    return registry.register(language, uri, manifest.digest, metrics=metrics, tags=tags)
