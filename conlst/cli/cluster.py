"""The pipeline on Kubeflow: compiled, started, repeated; and stage 0 over several nodes."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from conlst.cli.command import Commands, Result, add_configuration, add_configured, positive, read_config
from conlst.contract.config import Config

if TYPE_CHECKING:
    from pipelines.backend import Backend


def add_to(commands: Commands) -> None:
    sub = add_configured(commands, "compile", compile_pipeline, "compile the pipeline for Kubeflow Pipelines")
    sub.add_argument("--out", type=Path, default=Path("pipeline.yaml"))
    _placed(sub)

    sub = add_configured(
        commands, "train-job", train_job, "write a TrainJob of Kubeflow Trainer that makes a source model on several nodes"
    )
    sub.add_argument("--job-name", default="conlst-source", metavar="NAME")
    sub.add_argument("--nodes", type=positive, default=2, metavar="N")
    sub.add_argument(
        "--data", nargs="+", required=True, metavar="ADDRESS", help="labelled English pairs: s3://…, hub:<id> or sample:en"
    )
    sub.add_argument("--dev", metavar="ADDRESS", help="labelled English pairs to report accuracy on")
    sub.add_argument("--service-account", default="conlst-pipeline", metavar="NAME", help="that the pods run as (that of infra/)")
    sub.add_argument("--out", type=Path, default=Path("train-job.yaml"))
    _compiled_from(sub)

    sub = add_configured(commands, "submit", submit, "compile the pipeline and start a run on Kubeflow Pipelines")
    sub.add_argument("--run-name", metavar="NAME", help="default: the configuration's name and its languages")
    _on_backend(sub)
    _compiled_from(sub)

    sub = commands.add_parser("schedule", help="recurring runs on Kubeflow Pipelines", allow_abbrev=False)
    actions = sub.add_subparsers(dest="action", required=True, metavar="action")
    for action, does in (
        ("create", "run the pipeline at the times of --cron: one run at a time, missed times are not made up for"),
        ("list", "all schedules"),
        ("pause", "start no further runs"),
        ("resume", "start runs again"),
        ("delete", "forget a schedule; its runs stay"),
    ):
        sub = actions.add_parser(action, help=does, description=does, allow_abbrev=False)
        sub.set_defaults(command=schedule)
        _on_backend(sub)
        if action != "list":
            sub.add_argument("schedule", metavar="NAME")
        if action == "create":
            sub.add_argument("--cron", required=True, help="five fields, UTC: '0 3 * * 1' is Monday at 3:00")
            add_configuration(sub)
            _compiled_from(sub)


def _on_backend(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--host", default="", help="address of the KFP API (default: $KF_PIPELINES_ENDPOINT, or the cluster's own)")
    sub.add_argument("--namespace", default="", help="of the runs, on a backend for several users")
    sub.add_argument("--service-account", default="", metavar="NAME", help="that the pods run as (default: the backend's)")


def _compiled_from(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--store", required=True, metavar="S3-PREFIX", help="s3://bucket/prefix for published models")
    _placed(sub)


def _placed(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--image", required=True, help="training image with its digest: registry/name@sha256:…")
    sub.add_argument("--cluster", type=Path, metavar="FILE", help="YAML of what pods need: GPUs, limits, secrets' names")


def compile_pipeline(options: argparse.Namespace) -> Result:
    from pipelines.cluster import compile_for_cluster, read_cluster

    compile_for_cluster(read_config(options), options.out, options.image, read_cluster(options.cluster))
    return {"pipeline": str(options.out), "image": options.image}


def train_job(options: argparse.Namespace) -> Result:
    import yaml

    from pipelines.cluster import read_cluster
    from pipelines.train_job import train_job as manifest

    cluster = read_cluster(options.cluster)
    made = manifest(
        options.job_name,
        read_config(options),
        options.image,
        cluster,
        nodes=options.nodes,
        store=options.store,
        data=options.data,
        dev=options.dev,
        service_account=options.service_account,
    )
    options.out.write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    return {"train_job": str(options.out), "nodes": options.nodes, "processes": options.nodes * (cluster.gpus or 1)}


def submit(options: argparse.Namespace) -> Result:
    from pipelines import backend

    with _compiled(options) as (config, package):
        name = options.run_name or f"{config.name} {', '.join(config.languages)}"
        run = backend.submit(_backend(options), package, {"store": options.store}, name)
    return {"run": run, "name": name}


def schedule(options: argparse.Namespace) -> Result:
    from pipelines import backend

    where = _backend(options)
    match options.action:
        case "create":
            with _compiled(options) as (_, package):
                made = backend.create_schedule(where, package, {"store": options.store}, options.schedule, options.cron)
        case "list":
            return {"schedules": [asdict(found) for found in backend.list_schedules(where)]}
        case "pause":
            made = backend.pause_schedule(where, options.schedule)
        case "resume":
            made = backend.pause_schedule(where, options.schedule, pause=False)
        case "delete":
            made = backend.delete_schedule(where, options.schedule)
    return {options.action: asdict(made)}


@contextmanager
def _compiled(options: argparse.Namespace) -> Iterator[tuple[Config, Path]]:
    from pipelines.cluster import compile_for_cluster, read_cluster

    config, cluster = read_config(options), read_cluster(options.cluster)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        compile_for_cluster(config, package, options.image, cluster)
        yield config, package


def _backend(options: argparse.Namespace) -> "Backend":
    from pipelines.backend import Backend

    return Backend(options.host, options.namespace, options.service_account)
