"""Stage 0 between artifact folders: the model to start from."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from datasets import Dataset, concatenate_datasets

from conlst.contract.artifacts import read_manifest, republish, verify
from conlst.contract.config import Config, config_from_dict
from conlst.contract.errors import ConfigError
from conlst.data.pairs import check_no_leak, fingerprint, read_pairs, require_labels
from conlst.data.substitution import synonym_copies
from conlst.data.synonyms import read_synonyms
from conlst.model.backbones import load_backbone
from conlst.model.folder import Model, load_model, save_model
from conlst.model.starter import load_starter, shipped_digest, starter_backbone
from conlst.parallel import in_processes, world
from conlst.stages.evaluate import SOURCE_LANGUAGE
from conlst.stages.folders.checkpoints import checkpoints_for, is_made_from
from conlst.stages.folders.measure import accuracy
from conlst.stages.folders.pairs import HISTORY, KEPT_PAIRS, hashes_of, labels_of, tokens_of, write_json
from conlst.stages.metalearn import meta_learn
from conlst.stages.progress import MetricSink, Progress
from conlst.stages.source import train_source
from conlst.training import require_one_process, settled

log = logging.getLogger(__name__)

TRAIN, STARTER = "train", "starter"


def provide_source_model(
    config: Config, given: str, pairs: Path, dev: Path, out: Path, *, sink: MetricSink | None = None
) -> None:
    """Publish the model to start from.

    Args:
        given: ``train`` fine-tunes the backbone on ``pairs``; ``starter`` builds the shipped model; else a model folder.
    """
    if given == TRAIN:
        return train_source_model(config, pairs, out, dev, sink=sink)
    if given == STARTER:
        return _save_starter(out)
    verify(Path(given), "model")
    return republish(Path(given), out)


@in_processes
def train_source_model(
    config: Config,
    pairs: Path,
    out: Path,
    dev: Path | None = None,
    *,
    sink: MetricSink | None = None,
    auxiliary: Mapping[str, Path] | None = None,
    start: Path | None = None,
) -> None:
    """Stage 0: publish the backbone fine-tuned on labelled English pairs, with its accuracy on ``dev``, unless ``out`` is that
    already.

    Args:
        auxiliary: labelled pairs of the languages of ``source.meta_learning``.
        start: a source model to train further, in place of the bare backbone.

    Raises:
        ConfigError: if the auxiliary languages are not those of the configuration, if several processes should learn from them,
            or if ``start`` was made of another backbone.
    """
    config = settled(config)
    source = read_pairs(pairs)
    require_labels(source, str(pairs))
    learned = {language: read_pairs(folder) for language, folder in (auxiliary or {}).items()}
    _require_auxiliary(learned, config)
    history: dict[str, Any] = {}
    if dev is not None:
        checked = read_pairs(dev)
        require_labels(checked, str(dev))
        check_no_leak(source, checked, ("the source data", "the development data"))
    learned_from = {"pairs": read_manifest(pairs).digest} | ({"start": read_manifest(start).digest} if start else {})
    learned_from |= {f"auxiliary/{language}": read_manifest(folder).digest for language, folder in (auxiliary or {}).items()}
    trained, copies = _with_synonyms(source, config)
    # the table of synonyms may change below its name, and the published accuracy is that on the development pairs
    parents = learned_from | ({"synonyms": fingerprint(copies or trained)} if copies or len(trained) > len(source) else {})
    parents |= {"dev": read_manifest(dev).digest} if dev else {}
    if is_made_from(out, config, parents):
        return
    model = _trained_before(start, config) if start else load_backbone(config.backbone, config.seed)
    copied = fingerprint(copies) if copies else None
    identity = [config.source.model_dump(), model.digest, learned_from, fingerprint(trained), copied]
    checkpoints = checkpoints_for(config, out, "source", identity)
    history["losses"] = train_source(
        model.classifier,
        tokens_of(trained, model),
        labels_of(trained),
        config,
        checkpoints,
        Progress("source", sink),
        tokens_of(copies, model) if copies else None,
        model.text,
    )
    if learned:
        tasks = {language: (tokens_of(one, model), labels_of(one)) for language, one in learned.items()}
        meta_checkpoints = checkpoints_for(config, out, "metalearn", identity)
        history["meta_losses"] = meta_learn(model.classifier, tasks, config, meta_checkpoints, Progress("metalearn", sink))
        meta_checkpoints.discard()
    if not world().is_first:
        checkpoints.discard()
        return
    meta: dict[str, Any] = {"language": SOURCE_LANGUAGE, "pairs": len(source)}
    if dev is not None:
        meta |= {"dev_accuracy": accuracy(model, checked, config), "dev_pairs": len(checked)}
        log.info("source model: %.2f %% on %d development pairs", 100 * meta["dev_accuracy"], len(checked))
    chosen = torch.randperm(len(source), generator=torch.Generator().manual_seed(config.seed))[: config.source.keep_pairs]

    def write_more(folder: Path) -> None:
        write_json(folder / HISTORY, history)
        if len(chosen):
            kept = source.select(sorted(chosen.tolist())).with_format("arrow")[:]
            pq.write_table(kept, folder / KEPT_PAIRS, compression="zstd")

    hashes = [hashes_of(one) for one in (source, *learned.values())]
    if "source" in model.seen:
        hashes.append(model.seen["source"])
    save_model(
        replace(model, seen={**model.seen, "source": torch.cat(hashes).unique()}),
        out,
        config=config.to_dict(),
        parents=parents,
        meta=meta,
        write_more=write_more,
    )
    checkpoints.discard()


def resolve_source_model(name: str, folder: Path) -> Path:
    """A published model folder for ``starter`` or a path; the starter is built into ``folder`` unless this one is there."""
    if name != STARTER:
        path = Path(name)
        read_manifest(path, "model")
        return path
    if not folder.exists() or read_manifest(folder, "model").parents != {STARTER: shipped_digest()}:
        _save_starter(folder)
    return folder


def _trained_before(start: Path, config: Config) -> Model:
    manifest = read_manifest(start, "model")
    # no configuration of this installation made the starter
    made = starter_backbone() if STARTER in manifest.parents else config_from_dict(manifest.config, str(start)).backbone
    if made != config.backbone:
        changed = [name for name, value in made.model_dump().items() if value != getattr(config.backbone, name)]
        raise ConfigError(
            f"{start} was made with other settings of the backbone ({', '.join(changed)}); train further with those of its own"
        )
    return load_model(start)


def _with_synonyms(source: Dataset, config: Config) -> tuple[Dataset, Dataset | None]:
    """The pairs to train on, and one synonym copy of each where a robust training reads both side by side."""
    if settings := config.source.synonyms:
        copies = synonym_copies(source, read_synonyms(settings.table), settings.copies, config.seed)
        return concatenate_datasets([source, copies]), None
    if robust := config.source.ept_apt:
        return source, synonym_copies(source, read_synonyms(robust.synonyms), 1, config.seed)
    return source, None


def _require_auxiliary(auxiliary: Mapping[str, Dataset], config: Config) -> None:
    """Meta-learning comes after the fine-tuning; that it cannot begin should be known before."""
    for language, pairs in auxiliary.items():
        require_labels(pairs, f"the auxiliary pairs of {language}")
    meta = config.source.meta_learning
    if meta:
        require_one_process(config, "meta-learning")
    if (wanted := set(meta.languages if meta else ())) != set(auxiliary):
        raise ConfigError(
            f"source.meta_learning has the languages {', '.join(sorted(wanted)) or 'none'}, and there are auxiliary pairs of"
            f" {', '.join(sorted(auxiliary)) or 'none'}; give pairs of each"
        )


def _save_starter(out: Path) -> None:
    model = load_starter()
    save_model(model, out, config={}, parents={STARTER: model.digest}, meta={"language": SOURCE_LANGUAGE})
