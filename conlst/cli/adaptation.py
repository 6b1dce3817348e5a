"""From labelled English pairs to a model of a language without labels, and what it is worth."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from conlst.cli.command import Commands, Result, add_configured, read_config
from conlst.cli.inputs import local_copies, local_copy, process_count, process_rank, work_folder
from conlst.contract.config import with_settings
from conlst.contract.errors import ConfigError


def add_to(commands: Commands) -> None:
    sub = add_configured(
        commands, "train-source", train_source, "stage 0: fine-tune a multilingual encoder on labelled English pairs"
    )
    sub.add_argument("--data", nargs="+", required=True, metavar="FILE", help="labelled English pairs")
    sub.add_argument("--dev", metavar="FILE", help="labelled English pairs to report accuracy on")
    sub.add_argument("--start", metavar="DIR", help="a source model to train further, in place of the bare backbone")
    sub.add_argument("--out", type=Path, required=True, help="folder of the model")
    sub.add_argument("--store", metavar="S3-PREFIX", help="publish the model there too; its address is printed")

    sub = add_configured(
        commands,
        "adapt",
        adapt,
        "stages 1 and 2, or those of adapt.stages: calibrate and self-train on unlabelled pairs of a language",
    )
    sub.add_argument("--source-model", required=True, metavar="DIR", help="a model folder, its s3:// address, or 'starter'")
    sub.add_argument(
        "--pool",
        action="extend",
        nargs="+",
        required=True,
        metavar="FILE",
        help="pairs of the language, or a file for each of several; their labels are not used",
    )
    sub.add_argument(
        *("--language", "--languages"),
        action="extend",
        nargs="+",
        required=True,
        metavar="LANGUAGE",
        help="code of the language, for example sw; several train one model for all of them, and each has one file of --pool",
    )
    sub.add_argument("--source-data", nargs="+", metavar="FILE", help="labelled English pairs; default: those the model carries")
    sub.add_argument(
        "--out", type=Path, required=True, help="folder of the adapted model; if both stages run, DIR.work keeps that of stage 1"
    )

    sub = add_configured(
        commands, "evaluate", evaluate, "accuracy, calibration and confidence bands on labelled pairs", "default"
    )
    sub.add_argument("--model", required=True, metavar="DIR", help="a model folder, its s3:// address, or 'starter'")
    sub.add_argument("--data", required=True, metavar="FILE", help="labelled pairs")
    sub.add_argument("--language", required=True)
    sub.add_argument("--before", type=Path, metavar="DIR", help="an earlier evaluation of the same pairs to compare with")
    sub.add_argument(
        "--out", type=Path, help="folder of the report (default: MODEL.evaluation beside it; to be named for an address)"
    )


def train_source(options: argparse.Namespace) -> Result:
    from conlst.stages import folders

    config = read_config(options)
    work = work_folder(options.out)
    pairs, dev = work / "pairs", work / "dev"
    folders.ingest(config, "source", local_copies(options.data, work), "en", pairs)
    if options.dev:
        folders.ingest(config, "source_dev", local_copies([options.dev], work), "en", dev)
    start = Path(local_copy(options.start, work)) if options.start else None
    folders.train_source_model(config, pairs, options.out, dev if options.dev else None, start=start)
    if rank := process_rank():
        return {"process": rank}
    published = {}
    if options.store:
        from conlst.platform.objects import push_folder

        published = {"address": push_folder(options.out, options.store)}
    return {"model": str(options.out), **published, **_meta(options.out)}


def adapt(options: argparse.Namespace) -> Result:
    from conlst.stages import folders

    config = with_settings(read_config(options), {"adapt.joint": len(options.language) > 1})
    if process_count() > 1 and len(config.adapt.stages) > 1:
        # each process would look for stage 1 in a work folder of its own
        raise ConfigError(
            "under a launcher a command trains one stage: --set adapt.stages=[calibrate] first, then adapt.stages=[selftrain] "
            "with its model as --source-model; or let compute.processes start the processes"
        )
    work = work_folder(options.out)
    start = folders.resolve_source_model(local_copy(options.source_model, work), work / "starter")
    pool = work / "pool"
    language = folders.ingest_pool(config, _pool_files(options.pool, options.language, work), pool)
    source = None
    if options.source_data:
        source = work / "source"
        folders.ingest(config, "source", local_copies(options.source_data, work), "en", source)
    stages = {"calibrate": folders.calibrate_model, "selftrain": folders.self_train_model}
    made = {stage: work / stage for stage in config.adapt.stages[:-1]}
    made[config.adapt.stages[-1]] = options.out
    model = start
    for stage, out in made.items():
        stages[stage](config, model, pool, language, out, source)
        model = out
    return {"model": str(options.out), "stages": {stage: str(out) for stage, out in made.items()}, **_meta(options.out)}


def _pool_files(files: Sequence[str], languages: Sequence[str], work: Path) -> dict[str, list[str]]:
    """Each language's files of the pool, on this machine."""
    if len(languages) == 1:
        return {languages[0]: local_copies(files, work)}
    if len(files) != len(languages) or len(set(languages)) < len(languages):
        raise ConfigError(
            f"{len(languages)} languages ({', '.join(languages)}) and {len(files)} files: several languages need a file each, "
            "in the same order, and every language once"
        )
    return {language: [local_copy(file, work)] for language, file in zip(languages, files, strict=True)}


def _meta(folder: Path) -> Result:
    from conlst.contract.artifacts import read_manifest

    manifest = read_manifest(folder)
    return {"digest": manifest.digest, **manifest.meta}


def evaluate(options: argparse.Namespace) -> Result:
    from conlst.stages import folders

    config = read_config(options)
    out = options.out or _beside(options.model)
    work = work_folder(out)
    pairs = work / "pairs"
    model = folders.resolve_source_model(local_copy(options.model, work), work / "starter")
    folders.ingest(config, "test", local_copies([options.data], work), options.language, pairs)
    evaluation = folders.evaluate_model(config, model, pairs, options.language, out, options.before)
    return {"evaluation": str(out), "page": str(out / "page.html"), **evaluation}


def _beside(model: str) -> Path:
    """Where the report of a model's folder goes; inside it, the report would be a file that the manifest does not know."""
    if "://" in model:
        raise ConfigError(f"{model} has no folder beside it for the report; name one with --out")
    folder = Path(model)
    # "." and ".." name no folder
    folder = folder.resolve() if folder.name in ("", "..") else folder
    return folder.parent / f"{folder.name}.evaluation"
