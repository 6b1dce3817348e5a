"""The whole pipeline on this machine; :mod:`conlst.cli.cluster` has it on Kubeflow."""

import argparse
from pathlib import Path

from conlst.cli.command import Commands, Result, add_configured, positive, read_config


def add_to(commands: Commands) -> None:
    sub = add_configured(commands, "run", run, "run the whole pipeline on this machine through kfp.local")
    sub.add_argument("--root", type=Path, default=Path("runs"), help="where artifacts, MLflow's database and reports go")
    sub.add_argument("--at-once", type=positive, default=1, metavar="N", help="languages adapted at the same time")
    sub.add_argument("--store", required=True, metavar="S3-PREFIX", help="s3://bucket/prefix for published models")


def run(options: argparse.Namespace) -> Result:
    from pipelines.local import run_locally

    return run_locally(read_config(options), options.root, options.store, options.at_once)
