"""Stages 1 and 2, and their rival, between artifact folders."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from conlst.contract.artifacts import link_or_copy, read_manifest
from conlst.contract.config import Config
from conlst.contract.labels import NAMES
from conlst.data.pairs import fingerprint, read_pairs
from conlst.model.folder import Model, load_model, read_seen, save_model
from conlst.parallel import in_processes, world
from conlst.stages.calibrate import calibrate
from conlst.stages.folders.checkpoints import checkpoints_for, is_made_from
from conlst.stages.folders.measure import accuracy
from conlst.stages.folders.pairs import (
    HISTORY,
    KEPT_PAIRS,
    hashes_of,
    labels_of,
    read_history,
    source_pairs,
    tokens_of,
    translated_view,
    write_json,
)
from conlst.stages.predict import predict_logits
from conlst.stages.progress import MetricSink, Progress
from conlst.stages.selflearn import self_learn
from conlst.stages.selftrain import self_train
from conlst.training import require_one_process, set_up_compute, settled


@in_processes
def calibrate_model(
    config: Config,
    model: Path,
    pool: Path,
    language: str,
    out: Path,
    source: Path | None = None,
    *,
    sink: MetricSink | None = None,
) -> None:
    """Stage 1: publish ``model`` calibrated on the pool of ``language``, unless ``out`` is that already."""
    config = settled(config)
    target, english = read_pairs(pool), source_pairs(model, source, config)
    parents = _parents(model, pool, english)
    if is_made_from(out, config, parents):
        return
    start = load_model(model)
    checkpoints = checkpoints_for(config, out, "calibrate", [config.calibrate.model_dump(), parents])
    tokens = tokens_of(target, start)
    probe = None if None in target["label"] else partial(accuracy, start, target, config)
    trace = [(0, probe())] if probe and config.evaluate.probes else []
    steps = calibrate(
        start.classifier,
        tokens,
        tokens_of(english, start),
        labels_of(english),
        config,
        checkpoints,
        Progress("calibrate", sink),
        probe,
    )
    trace += [(number, step.accuracy) for number, step in enumerate(steps, 1) if step.accuracy is not None]
    history = {"steps": [asdict(step) for step in steps], "trace": trace}
    _save_adapted(start, model, target, english, parents, language, out, config, "calibrate", history)
    checkpoints.discard()


@in_processes
def self_train_model(
    config: Config,
    model: Path,
    pool: Path,
    language: str,
    out: Path,
    source: Path | None = None,
    *,
    sink: MetricSink | None = None,
    teachers: Sequence[Path] = (),
) -> None:
    """Stage 2: publish ``model`` self-trained on the pool of ``language``, unless ``out`` is that already.

    Args:
        teachers: further models, for example source models of other seeds; the mean of their predictions and the model's own
            gives the first pseudo-labels.
    """
    config = settled(config)
    target, english = read_pairs(pool), source_pairs(model, source, config)
    translated = translated_view(config, target)
    parents = _parents(model, pool, english) | ({"translated": fingerprint(translated)} if translated else {})
    parents |= {f"teacher{number}": read_manifest(teacher).digest for number, teacher in enumerate(teachers)}
    if is_made_from(out, config, parents):
        return
    start = load_model(model)
    checkpoints = checkpoints_for(config, out, "selftrain", [config.selftrain.model_dump(), parents])
    rounds = self_train(
        start.classifier,
        tokens_of(target, start),
        tokens_of(translated, start) if translated else None,
        tokens_of(english, start),
        labels_of(english),
        start.text,
        config,
        checkpoints,
        Progress("selftrain", sink),
        _mean_prediction([model, *teachers], target, config) if teachers else None,
        _languages(target),
    )
    history: dict[str, Any] = {"back_translation": translated is not None}
    history["rounds"] = [
        _round(target, done.selected, done.pseudo_labels, done.losses) | {"bars": done.bars, "changed": done.changed}
        for done in rounds
    ]
    if sink:
        for number, done in enumerate(history["rounds"]):
            sink(_round_metrics(done, sorted(set(target["language"]))), number)
    _save_adapted(start, model, target, english, parents, language, out, config, "selftrain", history, teachers)
    checkpoints.discard()


def self_learn_model(
    config: Config,
    model: Path,
    pool: Path,
    language: str,
    out: Path,
    source: Path | None = None,
    *,
    sink: MetricSink | None = None,
) -> None:
    """The rival of stages 1 and 2: publish ``model`` after self-learning with uncertainty, unless ``out`` is that already.

    Raises:
        ConfigError: if ``compute.processes`` or a launcher asks for several.
    """
    require_one_process(config, "self-learning")
    config = settled(config)
    target, english = read_pairs(pool), source_pairs(model, source, config)
    parents = _parents(model, pool, english)
    if is_made_from(out, config, parents):
        return
    start = load_model(model)
    checkpoints = checkpoints_for(config, out, "selflearn", [config.selflearn.model_dump(), parents])
    rounds = self_learn(
        start.classifier,
        tokens_of(target, start),
        tokens_of(english, start),
        labels_of(english),
        config,
        checkpoints,
        Progress("selflearn", sink),
        _languages(target),
    )
    history = {"rounds": [_round(target, done.selected, done.pseudo_labels, done.losses) for done in rounds]}
    _save_adapted(start, model, target, english, parents, language, out, config, "selflearn", history)
    checkpoints.discard()


def _mean_prediction(models: Sequence[Path], pool: Dataset, config: Config) -> Tensor:
    set_up_compute(config.compute)
    loaded = (load_model(model) for model in models)
    predictions = [
        predict_logits(one.classifier, tokens_of(pool, one), config.compute, config.evaluate.batch_tokens).softmax(1)
        for one in loaded
    ]
    return torch.stack(predictions).mean(0)


def _parents(model: Path, pool: Path, english: Dataset) -> dict[str, str]:
    return {"model": read_manifest(model).digest, "pool": read_manifest(pool).digest, "source": fingerprint(english)}


def _save_adapted(
    start: Model,
    model: Path,
    pool: Dataset,
    english: Dataset,
    parents: dict[str, str],
    language: str,
    out: Path,
    config: Config,
    stage: str,
    history: dict[str, Any],
    teachers: Sequence[Path] = (),
) -> None:
    if not world().is_first:
        return
    # what a teacher was trained on reaches the model through its predictions
    known = [start.seen, *map(read_seen, teachers)]
    seen = {
        role: torch.cat([*(one[role] for one in known if role in one), hashes_of(pairs)]).unique()
        for role, pairs in (("source", english), ("pool", pool))
    }

    def write_more(folder: Path) -> None:
        kept = read_history(model)
        # the losses of the source model are told in its own folder
        write_json(folder / HISTORY, {key: kept[key] for key in ("calibrate",) if key in kept} | {stage: history})
        if (model / KEPT_PAIRS).is_file():
            link_or_copy(model / KEPT_PAIRS, folder / KEPT_PAIRS)

    save_model(
        replace(start, seen=seen),
        out,
        config=config.to_dict(),
        parents=parents,
        meta={"language": language, "languages": sorted(set(pool["language"])), "stage": stage},
        write_more=write_more,
    )


def _round(pool: Dataset, selected: Sequence[bool], pseudo_labels: Sequence[int], losses: Sequence[float]) -> dict[str, Any]:
    """What a round leaves in the history: counts and precision a class, not the pool's labels."""
    chosen, pseudo = torch.tensor(selected), torch.tensor(pseudo_labels)
    return {
        "selected": torch.bincount(pseudo[chosen], minlength=len(NAMES)).tolist(),
        "precision": _precision(pool, chosen, pseudo),
        "losses": list(losses),
    }


def _languages(pool: Dataset) -> Tensor:
    """``[pool]`` int64: the language of each pair, numbered in alphabetical order."""
    number = {language: place for place, language in enumerate(sorted(set(pool["language"])))}
    return torch.tensor([number[language] for language in pool["language"]])


def _round_metrics(done: dict[str, Any], languages: Sequence[str]) -> dict[str, float]:
    metrics = {"selftrain/changed": done["changed"]}
    for label, name in enumerate(NAMES):
        metrics[f"selftrain/selected/{name}"] = done["selected"][label]
        for language, bars in zip(languages, done["bars"], strict=True):
            if bars:
                metrics[f"selftrain/bar/{language}/{name}" if len(languages) > 1 else f"selftrain/bar/{name}"] = bars[label]
        if done["precision"] and done["precision"][label] is not None:
            metrics[f"selftrain/precision/{name}"] = done["precision"][label]
    return metrics


def _precision(pool: Dataset, selected: Tensor, pseudo: Tensor) -> list[float | None] | None:
    """Of each class' selected pseudo-labels, where the pool happens to have labels; for the report, never for a decision."""
    if None in pool["label"]:
        return None
    right = labels_of(pool) == pseudo
    chosen = [selected & (pseudo == label) for label in range(3)]
    return [right[mask].float().mean().item() if mask.any() else None for mask in chosen]
