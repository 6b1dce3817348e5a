"""Champions of the languages, and what runs leave for MLflow and S3."""

import argparse
from dataclasses import asdict
from pathlib import Path

from conlst.cli.command import Commands, Result, add_configured, read_config


def add_to(commands: Commands) -> None:
    sub = add_configured(
        commands, "promote", promote, "let the gate decide whether a version becomes champion of its language", "default"
    )
    sub.add_argument("--language", required=True)
    sub.add_argument("--version", type=int, help="default: the challenger")
    sub.add_argument(
        "--uncompared",
        default="",
        metavar="REASON",
        help="judge it by itself, as a first version: the champion was measured on other pairs, or otherwise",
    )

    sub = commands.add_parser("rollback", help="restore the champion that the present one replaced", allow_abbrev=False)
    sub.set_defaults(command=rollback)
    sub.add_argument("--language", required=True)

    sub = commands.add_parser(
        "history", help="who was champion of a language when, on what data and by which decision", allow_abbrev=False
    )
    sub.set_defaults(command=history)
    sub.add_argument("--language", required=True)

    sub = commands.add_parser(
        "replay", help="send to MLflow what a run kept while the tracking server was away", allow_abbrev=False
    )
    sub.set_defaults(command=replay)
    sub.add_argument("spool", help="a folder NAME.untracked, or the s3:// address that CONLST_UNTRACKED named")

    sub = commands.add_parser("push", help="upload an artifact folder, or what of it is missing in S3", allow_abbrev=False)
    sub.set_defaults(command=push)
    sub.add_argument("folder", type=Path, help="a model, served model, evaluation or other folder with a manifest")
    sub.add_argument("--store", required=True, metavar="S3-PREFIX")


def promote(options: argparse.Namespace) -> Result:
    from conlst.platform import registry

    version = options.version
    if version is None:
        challenger = registry.challenger(options.language)
        if challenger is None:
            raise registry.RegistryError(f"nli-{options.language} has no challenger; name a version with --version")
        version = challenger.version
    decision = registry.promote(options.language, version, read_config(options).gate, uncompared=options.uncompared)
    return {"language": options.language, "version": version, "promoted": decision.promote, "reasons": list(decision.reasons)}


def rollback(options: argparse.Namespace) -> Result:
    from conlst.platform import registry

    version = registry.rollback(options.language)
    return {"language": options.language, "champion": version.version, "uri": version.uri}


def history(options: argparse.Namespace) -> Result:
    from conlst.platform import registry

    entries = registry.history(options.language)
    for entry in entries:
        replaced = "the first" if entry.replaces is None else f"in place of {entry.replaces}"
        print(f"{entry.at}  {entry.action}  version {entry.version}, {replaced}  {entry.digest[:12]}  {'; '.join(entry.reasons)}")
    return {"language": options.language, "champions": [asdict(entry) for entry in entries]}


def replay(options: argparse.Namespace) -> Result:
    from conlst.platform import tracking

    if options.spool.startswith("s3://"):
        return {"sent": tracking.replay_stored(options.spool)}
    return {"sent": tracking.replay(Path(options.spool))}


def push(options: argparse.Namespace) -> Result:
    from conlst.platform.objects import push_folder

    return {"address": push_folder(options.folder, options.store)}
