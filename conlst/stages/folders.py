"""The stages between artifact folders: read and verify, run, publish. This is what components and the command line call.

Every function leaves either a complete folder or none, and may be called again after a crash: a training goes on from its last
checkpoint, kept beside the output: a retry that sees the same folder goes on, one in a new pod begins its stage again.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from torch import Tensor

from conlst.contract.artifacts import MANIFEST, canonical_json, link_or_copy, read_manifest, republish, verify
from conlst.contract.cache import cache_folder
from conlst.contract.config import Compute, Config
from conlst.contract.errors import ConfigError, DataError, UnsupportedDirection
from conlst.contract.labels import NAMES
from conlst.data.backtranslation import TranslationCache, back_translate, open_backend
from conlst.data.pairs import check_no_leak, fingerprint, read_pairs, require_labels, text_hash, write_pairs
from conlst.data.sources import load_source
from conlst.data.tokens import TokenizedPairs, tokenize
from conlst.model.backbones import load_backbone
from conlst.model.folder import Model, load_model, save_model
from conlst.model.starter import load_starter
from conlst.stages.calibrate import calibrate
from conlst.stages.evaluate import protocol_of, publish_evaluation
from conlst.stages.export import export_onnx
from conlst.stages.predict import predict_logits
from conlst.stages.progress import MetricSink, Progress
from conlst.stages.selftrain import self_train
from conlst.stages.source import train_source
from conlst.training import Checkpoints, set_up_compute

log = logging.getLogger(__name__)

TRAIN, STARTER = "train", "starter"
_HISTORY = "history.json"
_KEPT_PAIRS = "source_pairs.parquet"


def ingest(config: Config, role: str, sources: Sequence[str], language: str, out: Path) -> dict[str, Any]:
    """Read, check and publish pairs.

    Args:
        role: ``source`` is filtered by ``data.genres``; the others are not.
        sources: local files, ``sample:`` or ``hub:`` addresses.

    Returns:
        The report of the checks.
    """
    genres = config.data.genres if role == "source" else ()
    ingested = load_source(sources, language=language, genres=genres, max_bad_share=config.data.max_bad_share)
    write_pairs(ingested, out, config=config.data.model_dump(mode="json"))
    return ingested.report


def provide_source_model(config: Config, given: str, pairs: Path, dev: Path, out: Path, sink: MetricSink | None = None) -> None:
    """Publish the model to start from.

    Args:
        given: ``train`` fine-tunes the backbone on ``pairs``; ``starter`` builds the shipped model; else a model folder.
    """
    if given == TRAIN:
        return train_source_model(config, pairs, out, dev, sink)
    if given == STARTER:
        return _save_starter(out)
    verify(Path(given), "model")
    return republish(Path(given), out)


def train_source_model(config: Config, pairs: Path, out: Path, dev: Path | None = None, sink: MetricSink | None = None) -> None:
    """Stage 0: publish the backbone fine-tuned on labelled English pairs, with its accuracy on ``dev``."""
    source = read_pairs(pairs)
    require_labels(source, str(pairs))
    history: dict[str, Any] = {}
    if dev is not None:
        checked = read_pairs(dev)
        require_labels(checked, str(dev))
        check_no_leak(source, checked, ("the source data", "the development data"))
    model = load_backbone(config.backbone, config.seed)
    digest = read_manifest(pairs).digest
    checkpoints = _checkpoints(config, out, "source", [config.source.model_dump(), model.digest, digest])
    history["loss"] = train_source(
        model.classifier, _tokens(source, model), _labels(source), config, checkpoints, Progress("source", sink)
    )
    meta: dict[str, Any] = {"language": "en", "pairs": len(source)}
    if dev is not None:
        meta |= {"dev_accuracy": _accuracy(model, checked, config), "dev_pairs": len(checked)}
        log.info("source model: %.2f %% on %d development pairs", 100 * meta["dev_accuracy"], len(checked))
    chosen = torch.randperm(len(source), generator=torch.Generator().manual_seed(config.seed))[: config.source.keep_pairs]

    def write_more(folder: Path) -> None:
        _write_json(folder / _HISTORY, history)
        if len(chosen):
            kept = source.select(sorted(chosen.tolist())).with_format("arrow")[:]
            pq.write_table(kept, folder / _KEPT_PAIRS, compression="zstd")

    save_model(
        replace(model, seen={"source": _hashes(source)}),
        out,
        config=config.to_dict(),
        parents={"pairs": digest},
        meta=meta,
        write_more=write_more,
    )
    checkpoints.discard()


def resolve_source_model(name: str, folder: Path) -> Path:
    """A published model folder for ``starter`` or a path; the starter is built into ``folder`` unless it is there already."""
    if name != STARTER:
        path = Path(name)
        read_manifest(path, "model")
        return path
    if not folder.exists():
        _save_starter(folder)
    return folder


def source_pairs(model: Path, given: Path | None, config: Config) -> Dataset:
    """The labelled English pairs that train along: those given, else those that the model carries, else the configuration's."""
    if given is not None:
        pairs = read_pairs(given)
    elif (model / _KEPT_PAIRS).is_file():
        pairs = Dataset(pq.read_table(model / _KEPT_PAIRS))
    else:
        log.info("%s carries no training pairs, the source terms use data.source: %s", model, ", ".join(config.data.source))
        loaded = load_source(
            list(config.data.source), language="en", genres=config.data.genres, max_bad_share=config.data.max_bad_share
        )
        pairs = loaded.pairs
    require_labels(pairs, "the source data")
    return pairs


def calibrate_model(
    config: Config, model: Path, pool: Path, language: str, out: Path, source: Path | None = None, sink: MetricSink | None = None
) -> None:
    """Stage 1: publish ``model`` calibrated on the pool of ``language``, unless ``out`` is that already."""
    target, english = read_pairs(pool), source_pairs(model, source, config)
    parents = _parents(model, pool, english)
    if _is_made_from(out, config, parents):
        return
    start = load_model(model)
    checkpoints = _checkpoints(config, out, "calibrate", [config.calibrate.model_dump(), parents])
    tokens = _tokens(target, start)
    probe = None if None in target["label"] else partial(_accuracy, start, target, config)
    trace = [(0, probe())] if probe and config.evaluate.probes else []
    steps = calibrate(
        start.classifier,
        tokens,
        _tokens(english, start),
        _labels(english),
        config,
        checkpoints,
        Progress("calibrate", sink),
        probe,
    )
    trace += [(number, step.accuracy) for number, step in enumerate(steps, 1) if step.accuracy is not None]
    history = {"steps": [asdict(step) for step in steps], "trace": trace}
    _save_adapted(start, model, target, english, parents, language, out, config, "calibrate", history)
    checkpoints.discard()


def self_train_model(
    config: Config, model: Path, pool: Path, language: str, out: Path, source: Path | None = None, sink: MetricSink | None = None
) -> None:
    """Stage 2: publish ``model`` self-trained on the pool of ``language``, unless ``out`` is that already."""
    target, english = read_pairs(pool), source_pairs(model, source, config)
    translated = _translated(config, target, language)
    parents = _parents(model, pool, english) | ({"translated": fingerprint(translated)} if translated else {})
    if _is_made_from(out, config, parents):
        return
    start = load_model(model)
    checkpoints = _checkpoints(config, out, "selftrain", [config.selftrain.model_dump(), parents])
    rounds = self_train(
        start.classifier,
        _tokens(target, start),
        _tokens(translated, start) if translated else None,
        _tokens(english, start),
        _labels(english),
        start.text,
        config,
        checkpoints,
        Progress("selftrain", sink),
    )
    history: dict[str, Any] = {"rounds": [], "back_translation": translated is not None}
    for done in rounds:
        selected, pseudo = torch.tensor(done.selected), torch.tensor(done.pseudo_labels)
        history["rounds"].append(
            {
                "bars": done.bars,
                "selected": torch.bincount(pseudo[selected], minlength=3).tolist(),
                "precision": _precision(target, selected, pseudo),
                "changed": done.changed,
                "losses": done.losses,
            }
        )
    if sink:
        for number, done in enumerate(history["rounds"]):
            sink(_round_metrics(done), number)
    _save_adapted(start, model, target, english, parents, language, out, config, "selftrain", history)
    checkpoints.discard()


def evaluate_model(
    config: Config, model: Path, pairs: Path, language: str, out: Path, before: Path | None = None
) -> dict[str, Any]:
    """Publish and return the evaluation of ``model`` on labelled pairs, compared with an earlier one if there is one."""
    loaded = load_model(model)
    tested = read_pairs(pairs)
    require_labels(tested, str(pairs))
    adapted_to = read_manifest(model).meta.get("language")
    protocol = protocol_of(_hashes(tested), loaded.seen, language, adapted_to, str(pairs))
    # in float32, as the exported model answers
    compute = config.compute.model_copy(update={"precision": "fp32"})
    classifier = loaded.classifier.move_to(set_up_compute(compute))
    logits = predict_logits(classifier, _tokens(tested, loaded), compute, config.evaluate.batch_tokens)
    parents = {"model": loaded.digest, "pairs": read_manifest(pairs).digest}
    return publish_evaluation(
        out,
        logits,
        _labels(tested),
        language=language,
        protocol=protocol,
        config=config,
        parents=parents,
        fingerprint=fingerprint(tested),
        before=before,
        trace=_trace(model),
    )


def export_model(config: Config, model: Path, pairs: Path, out: Path) -> float:
    """Publish the ONNX folder of ``model``; returns the largest difference of logits on at most 200 of the pairs."""
    some = read_pairs(pairs).take(200)
    return export_onnx(model, list(zip(some["premise"], some["hypothesis"], strict=True)), out, config)


def predict_pairs(model: Path, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
    """Class probabilities of premise and hypothesis, by a trained model, in float32."""
    loaded = load_model(model)
    premises, hypotheses = zip(*pairs, strict=True)
    tokens = tokenize(premises, hypotheses, loaded.tokenizer, max_length=loaded.text.max_length, pad_id=loaded.text.pad_id)
    if tokens.truncated:
        raise DataError(f"the pair is longer than the {loaded.text.max_length} tokens that the model reads; shorten it")
    return predict_logits(loaded.classifier, tokens, Compute(precision="fp32"), 8192).softmax(1).tolist()


def _parents(model: Path, pool: Path, english: Dataset) -> dict[str, str]:
    return {"model": read_manifest(model).digest, "pool": read_manifest(pool).digest, "source": fingerprint(english)}


def _is_made_from(out: Path, config: Config, parents: dict[str, str]) -> bool:
    if not (out / MANIFEST).exists():
        return False
    manifest = verify(out)
    made = manifest.parents == parents and manifest.config == config.to_dict()
    if made:
        log.info("%s was made from the same before and is kept", out)
    return made


def _save_starter(out: Path) -> None:
    model = load_starter()
    save_model(model, out, config={}, parents={"starter": model.digest}, meta={"language": "en"})


def _translated(config: Config, pool: Dataset, language: str) -> Dataset | None:
    settings = config.selftrain.back_translation
    if settings is None:
        log.info("%s trains without the back-translation view: selftrain.back_translation is not set", language)
        return None
    pivot = settings.pivots.get(language, "en")
    if pivot == language:
        raise ConfigError(f"selftrain.back_translation.pivots sends {language} through itself; name another language")
    cache = TranslationCache(cache_folder() / "translations.sqlite")
    try:
        return back_translate(pool, language, pivot, open_backend(settings.backend), cache)
    except UnsupportedDirection as error:
        log.warning("%s trains without the back-translation view: %s", language, error)
        return None


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
) -> None:
    seen = {
        role: torch.cat([start.seen.get(role, torch.empty(0, dtype=torch.int64)), _hashes(pairs)]).unique()
        for role, pairs in (("source", english), ("pool", pool))
    }

    def write_more(folder: Path) -> None:
        kept = json.loads((model / _HISTORY).read_text()) if (model / _HISTORY).is_file() else {}
        # the losses of the source model are told in its own folder
        _write_json(folder / _HISTORY, {key: kept[key] for key in ("calibrate",) if key in kept} | {stage: history})
        if (model / _KEPT_PAIRS).is_file():
            link_or_copy(model / _KEPT_PAIRS, folder / _KEPT_PAIRS)

    save_model(
        replace(start, seen=seen),
        out,
        config=config.to_dict(),
        parents=parents,
        meta={"language": language, "stage": stage},
        write_more=write_more,
    )


def _checkpoints(config: Config, out: Path, stage: str, identity: list[Any]) -> Checkpoints:
    whole = canonical_json([identity, config.seed, config.backbone.model_dump(), config.compute.precision])
    return Checkpoints(out.parent / f"{out.name}.{stage}-checkpoint", config.compute.checkpoint_every, whole)


def _tokens(pairs: Dataset, model: Model) -> TokenizedPairs:
    tokens = tokenize(
        pairs["premise"], pairs["hypothesis"], model.tokenizer, max_length=model.text.max_length, pad_id=model.text.pad_id
    )
    if tokens.truncated:
        log.info("%d of %d pairs are longer than %d tokens and were cut", tokens.truncated, len(tokens), model.text.max_length)
    return tokens


def _labels(pairs: Dataset) -> Tensor:
    return torch.tensor(pairs["label"], dtype=torch.int64)


def _hashes(pairs: Dataset) -> Tensor:
    """First 8 bytes of each pair's text hash, ``[n]`` int64."""
    words = (bytes.fromhex(text_hash(p, h)[:16]) for p, h in zip(pairs["premise"], pairs["hypothesis"], strict=True))
    return torch.tensor([int.from_bytes(word, signed=True) for word in words], dtype=torch.int64)


def _accuracy(model: Model, pairs: Dataset, config: Config) -> float:
    logits = predict_logits(model.classifier, _tokens(pairs, model), config.compute, config.evaluate.batch_tokens)
    return (logits.argmax(1) == _labels(pairs)).float().mean().item()


def _round_metrics(done: dict[str, Any]) -> dict[str, float]:
    metrics = {"selftrain/changed": done["changed"]}
    for label, name in enumerate(NAMES):
        metrics |= {f"selftrain/bar/{name}": done["bars"][label], f"selftrain/selected/{name}": done["selected"][label]}
        if done["precision"] and done["precision"][label] is not None:
            metrics[f"selftrain/precision/{name}"] = done["precision"][label]
    return metrics


def _precision(pool: Dataset, selected: Tensor, pseudo: Tensor) -> list[float | None] | None:
    """Of each class' selected pseudo-labels, where the pool happens to have labels; for the report, never for a decision."""
    if None in pool["label"]:
        return None
    right = _labels(pool) == pseudo
    chosen = [selected & (pseudo == label) for label in range(3)]
    return [right[mask].float().mean().item() if mask.any() else None for mask in chosen]


def _trace(model: Path) -> list[tuple[int, float]] | None:
    file = model / "history.json"
    history = json.loads(file.read_text()) if file.is_file() else {}
    return [(step, accuracy) for step, accuracy in history.get("calibrate", {}).get("trace", [])] or None


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True))
