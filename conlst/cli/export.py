"""From a trained model to one that is served or shipped: as ONNX, with the vocabulary that it needs, as a small difference."""

import argparse
import json
from pathlib import Path

from conlst.cli.command import Commands, Result, add_configured, positive, read_config
from conlst.cli.inputs import local_copies, local_copy, read_text, work_folder


def add_to(commands: Commands) -> None:
    sub = add_configured(commands, "export", export, "write a model as ONNX, refused unless it answers as torch does", "default")
    sub.add_argument("--model", required=True, metavar="DIR", help="a model folder, its s3:// address, or 'starter'")
    sub.add_argument("--language", help="to serve the model for, if it was adapted to several")
    sub.add_argument(
        "--data", metavar="FILE", help="pairs to compare on (default: the sample of the model's language, or of English)"
    )
    sub.add_argument(
        "--development",
        metavar="FILE",
        help="labelled English pairs: with them INT8 is tried and probabilities are calibrated",
    )
    sub.add_argument("--out", type=Path, required=True, help="folder to serve")

    sub = commands.add_parser(
        "trim", help="cut exported models' vocabulary to what served text uses; its answers stay the same", allow_abbrev=False
    )
    sub.set_defaults(command=trim)
    sub.add_argument("--models", nargs="+", type=Path, required=True, metavar="DIR", help="folders that `conlst export` made")
    sub.add_argument("--texts", nargs="+", required=True, metavar="FILE", help="pairs that show every character to be known")
    sub.add_argument("--out", type=Path, required=True, help="folder of the trimmed folders, each by its old name")

    sub = commands.add_parser(
        "compact", help="keep a source model as low-rank differences from its backbone, to ship it", allow_abbrev=False
    )
    sub.set_defaults(command=compact)
    sub.add_argument("--model", type=Path, required=True, metavar="DIR", help="a source model with frozen embeddings")
    sub.add_argument("--rank", type=positive, default=64, help="directions kept of each matrix' difference")
    sub.add_argument("--card", type=Path, required=True, metavar="FILE", help="what it was trained on, kept with it")
    sub.add_argument("--out", type=Path, required=True)


def export(options: argparse.Namespace) -> Result:
    from conlst.data.sources import sample_languages
    from conlst.stages import folders
    from conlst.stages.export import language_to_serve

    config = read_config(options)
    work = work_folder(options.out)
    model = folders.resolve_source_model(local_copy(options.model, work), work / "starter")
    language = language_to_serve(model, options.language)
    # any text will do to compare torch with ONNX, the model's own language is best
    pairs_language = language if language in sample_languages() or options.data else "en"
    sources = local_copies([options.data or f"sample:{pairs_language}"], work)
    folders.ingest(config, "test", sources, pairs_language, work / "pairs")
    development = None
    if options.development:
        development = work / "development"
        folders.ingest(config, "source_dev", local_copies([options.development], work), "en", development)
    difference = folders.export_model(config, model, work / "pairs", options.out, development=development, language=language)
    settings = json.loads((options.out / "config.json").read_text(encoding="utf-8"))
    told = {name: settings[name] for name in ("precision", "precision_reason", "temperature")}
    return {"model": str(options.out), "language": language, "parity": difference, **told}


def trim(options: argparse.Namespace) -> Result:
    from conlst.data.sources import read_rows
    from conlst.stages.trim import alphabet_of, trim_vocabulary

    sources = local_copies(options.texts, work_folder(options.out))
    # rows of every language count, so no language is asked for
    texts = (str(row.get(part, "")) for source in sources for row in read_rows(source, "") for part in ("premise", "hypothesis"))
    alphabet = alphabet_of(options.models, texts)
    trimmed = {folder.name: vars(trim_vocabulary(folder, alphabet, options.out / folder.name)) for folder in options.models}
    return {"models": str(options.out), "trimmed": trimmed}


def compact(options: argparse.Namespace) -> Result:
    from conlst.contract.artifacts import publish, read_manifest
    from conlst.contract.config import config_from_dict
    from conlst.model.folder import load_model
    from conlst.model.starter import KIND, write_starter

    card = read_text(options.card, "--card")
    source = read_manifest(options.model, "model")
    config = config_from_dict(source.config, str(options.model))
    meta = {**source.meta, "rank": options.rank}
    with publish(options.out, kind=KIND, config=config.to_dict(), parents={"model": source.digest}, meta=meta) as staging:
        write_starter(load_model(options.model), config.backbone, options.rank, staging)
        (staging / "CARD.md").write_text(card, encoding="utf-8")
    size = sum(file.stat().st_size for file in options.out.iterdir())
    return {"starter": str(options.out), "bytes": size, **meta}
