"""``conlst``: everything that a person does, one command each. Logs go to stderr; the last line of stdout is JSON."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence

from conlst import __version__
from conlst.cli import adaptation, cluster, endpoint, experiment, export, pipeline, registry
from conlst.contract.errors import ConlstError
from conlst.contract.logs import set_up_logging

log = logging.getLogger(__name__)

_TEACH = """\
From an English NLI model to a served one in a language without labels:

  conlst train-source --config xnli-e5-small --data mnli.tsv.gz --dev dev.tsv.gz --out models/en
  conlst adapt --config xnli-e5-small --source-model models/en --pool unlabelled.tsv --language sw --out models/sw
  conlst evaluate --model models/sw --data labelled.tsv --language sw
  conlst export --model models/sw --out served/sw
  conlst serve --model sw=served/sw

or all of it as a pipeline, on this machine (`conlst run`) or compiled for Kubeflow (`conlst compile`).
Pairs come from .tsv[.gz], .jsonl[.gz], .parquet, s3://…, hub:<id>, or the shipped sample:<language>.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    options = command_line().parse_args(arguments)
    set_up_logging(options.verbose)
    # threads that spin for work starve what else the machine does; read when torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        result = options.command(options)
    except ConlstError as error:
        return _failed(options.name, str(error))
    except OSError as error:
        # without a file's name there is nothing that the caller could have named otherwise
        if error.filename is None:
            raise
        return _failed(options.name, f"{error.filename}: {error.strerror}")
    print(json.dumps(result, sort_keys=True))
    return 0


def _failed(command: str, why: str) -> int:
    log.debug("", exc_info=True)
    print(f"conlst {command}: {why}", file=sys.stderr)
    return 1


def command_line() -> argparse.ArgumentParser:
    """What ``conlst`` takes; the options that it reads hold the command's function as ``command``."""
    parser = argparse.ArgumentParser(
        prog="conlst", description=_TEACH, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--verbose", action="store_true", help="log more, and tracebacks")
    commands = parser.add_subparsers(dest="name", required=True, metavar="command")
    for commands_of in (pipeline, adaptation, export, experiment, cluster, registry, endpoint):
        commands_of.add_to(commands)
    return parser
