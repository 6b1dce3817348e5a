"""From folders to a registered version: upload, then register with the numbers that the gate reads."""

import json
from pathlib import Path

from conlst.contract.artifacts import read_manifest
from conlst.contract.config import Config
from conlst.platform import objects, registry


def release(config: Config, job: str, language: str, store: str, served: Path, evaluation: Path, zero_shot: Path) -> int:
    """Upload a served folder and register it as challenger of ``language``.

    Args:
        job: id of the pipeline run.
        store: ``s3://bucket/prefix``.
        served: artifact of kind ``onnx``.
        evaluation: of the adapted model.
        zero_shot: of the model that it started from, on the same pairs.

    Returns:
        The version in the registry.
    """
    manifest, measured = read_manifest(served, "onnx"), read_manifest(evaluation, "evaluation")
    uri = objects.push_folder(served, store)
    metrics = {
        **{name: float(measured.meta[name]) for name in ("accuracy", "macro_f1", "ece", "n")},
        "zero_shot_accuracy": float(read_manifest(zero_shot, "evaluation").meta["accuracy"]),
        "parity": float(json.loads((served / "config.json").read_text())["parity"]),
    }
    tags = {
        "job": job,
        "protocol": measured.meta["protocol"],
        "config": config.name,
        "config_digest": config.digest,
        "code": manifest.code,
        "model_digest": manifest.parents["model"],
        "test": measured.meta["fingerprint"],
    }
    return registry.register(language, uri, manifest.digest, metrics=metrics, tags=tags)
