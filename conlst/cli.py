"""``conlst``: everything that a person does, one command each. Logs go to stderr; the last line of stdout is JSON."""

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from conlst import __version__
from conlst.contract.config import Config, load_config
from conlst.contract.errors import ConfigError, ConlstError
from conlst.contract.logs import set_up_logging

if TYPE_CHECKING:
    from pipelines.backend import Backend

log = logging.getLogger(__name__)

Result = dict[str, Any]

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
    options = _parser().parse_args(arguments)
    set_up_logging(options.verbose)
    # threads that spin for work starve what else the machine does; read when torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        result = options.command(options)
    except ConlstError as error:
        log.debug("", exc_info=True)
        print(f"conlst {options.name}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, sort_keys=True))
    return 0


def train_source(options: argparse.Namespace) -> Result:
    from conlst.stages import folders

    config = _config(options)
    work = _work(options.out)
    pairs, dev = work / "pairs", work / "dev"
    folders.ingest(config, "source", _local(options.data, work), "en", pairs)
    if options.dev:
        folders.ingest(config, "source_dev", _local([options.dev], work), "en", dev)
    start = Path(_one_local(options.start, work)) if options.start else None
    folders.train_source_model(config, pairs, options.out, dev if options.dev else None, start=start)
    if rank := _rank():
        return {"process": rank}
    published = {}
    if options.store:
        from conlst.platform.objects import push_folder

        published = {"address": push_folder(options.out, options.store)}
    return {"model": str(options.out), **published, **_meta(options.out)}


def adapt(options: argparse.Namespace) -> Result:
    from conlst.stages import folders

    config = _config(options)
    work = _work(options.out)
    start = folders.resolve_source_model(_one_local(options.source_model, work), work / "starter")
    pool, language = _pool(config, options.pool, options.language, work)
    source = None
    if options.source_data:
        source = work / "source"
        folders.ingest(config, "source", _local(options.source_data, work), "en", source)
    if options.without_calibration:
        folders.self_train_model(config, start, pool, language, options.out, source)
        return {"model": str(options.out), **_meta(options.out)}
    calibrated = work / "calibrated"
    folders.calibrate_model(config, start, pool, language, calibrated, source)
    folders.self_train_model(config, calibrated, pool, language, options.out, source)
    return {"model": str(options.out), "calibrated": str(calibrated), **_meta(options.out)}


def _pool(config: Config, files: Sequence[str], languages: Sequence[str], work: Path) -> tuple[Path, str]:
    """The folder of the pool, and the code that it has as a whole."""
    from conlst.data.pairs import SEVERAL, merge_pairs
    from conlst.stages import folders

    pool = work / "pool"
    if len(languages) == 1:
        folders.ingest(config, "pool", _local(files, work), languages[0], pool)
        return pool, languages[0]
    if len(files) != len(languages) or len(set(languages)) < len(languages):
        raise ConfigError(
            f"{len(languages)} languages ({', '.join(languages)}) and {len(files)} files: several languages need a file each, "
            "in the same order, and every language once"
        )
    parts = [work / f"pool-{language}" for language in languages]
    for language, file, part in zip(languages, files, parts, strict=True):
        folders.ingest(config, "pool", _local([file], work), language, part)
    merge_pairs(parts, pool)
    return pool, SEVERAL


def evaluate(options: argparse.Namespace) -> Result:
    from conlst.stages import folders

    config = _config(options)
    out = options.out or Path(f"{options.model}.evaluation")
    work = _work(out)
    pairs = work / "pairs"
    model = folders.resolve_source_model(_one_local(options.model, work), work / "starter")
    folders.ingest(config, "test", _local([options.data], work), options.language, pairs)
    evaluation = folders.evaluate_model(config, model, pairs, options.language, out, options.before)
    return {"evaluation": str(out), "page": str(out / "page.html"), **evaluation}


def export(options: argparse.Namespace) -> Result:
    from conlst.data.sources import sample_languages
    from conlst.stages import folders
    from conlst.stages.export import language_to_serve

    config = _config(options)
    work = _work(options.out)
    model = folders.resolve_source_model(_one_local(options.model, work), work / "starter")
    language = language_to_serve(model, options.language)
    # any text will do to compare torch with ONNX, the model's own language is best
    pairs_language = language if language in sample_languages() or options.data else "en"
    sources = _local([options.data or f"sample:{pairs_language}"], work)
    folders.ingest(config, "test", sources, pairs_language, work / "pairs")
    development = None
    if options.development:
        development = work / "development"
        folders.ingest(config, "source_dev", _local([options.development], work), "en", development)
    difference = folders.export_model(config, model, work / "pairs", options.out, development=development, language=language)
    settings = json.loads((options.out / "config.json").read_text(encoding="utf-8"))
    told = {name: settings[name] for name in ("precision", "precision_reason", "temperature")}
    return {"model": str(options.out), "language": language, "parity": difference, **told}


def trim(options: argparse.Namespace) -> Result:
    from conlst.data.sources import read_rows
    from conlst.stages.trim import alphabet_of, trim_vocabulary

    sources = _local(options.texts, _work(options.out))
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

    try:
        card = options.card.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--card {options.card} cannot be read: {error}") from error
    source = read_manifest(options.model, "model")
    config = config_from_dict(source.config, str(options.model))
    meta = {**source.meta, "rank": options.rank}
    with publish(options.out, kind=KIND, config=config.to_dict(), parents={"model": source.digest}, meta=meta) as staging:
        write_starter(load_model(options.model), config.backbone, options.rank, staging)
        (staging / "CARD.md").write_text(card, encoding="utf-8")
    size = sum(file.stat().st_size for file in options.out.iterdir())
    return {"starter": str(options.out), "bytes": size, **meta}


def predict(options: argparse.Namespace) -> Result:
    if options.file and (options.premise or options.hypothesis):
        options.misused("give --premise and --hypothesis, or --file, not both")
    if not options.file and None in (options.premise, options.hypothesis):
        options.misused("give --premise and --hypothesis, or a --file of pairs")
    if options.out and not options.file:
        options.misused("--out keeps the answers to a --file")
    if options.url:
        return _predict_at_endpoint(options)
    asked = {
        "--file": options.file,
        "--language": options.language,
        "--truncate": options.truncate,
        "--key-file": options.key_file,
    }
    if wrong := [name for name, value in asked.items() if value]:
        options.misused(f"{', '.join(wrong)} is for an endpoint: `conlst serve --model LANGUAGE=DIR`, then --url")
    return _predict_by_folder(Path(options.model), (options.premise, options.hypothesis))


def _predict_by_folder(folder: Path, pair: tuple[str, str]) -> Result:
    from conlst.contract.artifacts import read_manifest
    from conlst.contract.labels import NAMES

    manifest = read_manifest(folder)
    if manifest.kind == "onnx":
        from conlst.runtime.onnx import Predictor

        predictor = Predictor(folder)
        probabilities = predictor.probabilities(predictor.logits([pair]))[0].tolist()
    else:
        from conlst.stages.folders import predict_pairs

        probabilities = predict_pairs(folder, [pair])[0]
    best = max(range(len(NAMES)), key=probabilities.__getitem__)
    return {
        "label": NAMES[best],
        "probabilities": dict(zip(NAMES, probabilities, strict=True)),
        "language": manifest.meta.get("language"),
        "digest": manifest.digest,
    }


def _predict_at_endpoint(options: argparse.Namespace) -> Result:
    from conlst.client import AsyncClient, Client

    key = _read(options.key_file, "--key-file") if options.key_file else None
    if options.file:
        from conlst.client.bulk import default_out, predict_file

        out = options.out or default_out(options.file)
        try:
            return predict_file(AsyncClient(options.url, key), options.file, out, options.language, options.truncate)
        except KeyboardInterrupt:
            # what is kept and how to go on was told
            raise SystemExit(130) from None
    with Client(options.url, key) as client:
        pair = (options.premise, options.hypothesis)
        answer = client.predict([pair], language=options.language, truncate=options.truncate)[0]
    return {
        "label": answer.label,
        "probabilities": dict(answer.probabilities),
        "language": answer.language,
        "digest": answer.model.digest,
        "model": answer.model.name,
        "version": answer.model.version,
    }


def run(options: argparse.Namespace) -> Result:
    from pipelines.local import run_locally

    return run_locally(_config(options), options.root, options.store, options.at_once)


def compile_pipeline(options: argparse.Namespace) -> Result:
    from pipelines.cluster import compile_for_cluster, read_cluster

    compile_for_cluster(_config(options), options.out, options.image, read_cluster(options.cluster))
    return {"pipeline": str(options.out), "image": options.image}


def train_job(options: argparse.Namespace) -> Result:
    import yaml

    from pipelines.cluster import read_cluster
    from pipelines.train_job import train_job as manifest

    cluster = read_cluster(options.cluster)
    made = manifest(
        options.job_name,
        _config(options),
        options.image,
        cluster,
        nodes=options.nodes,
        store=options.store,
        data=options.data,
        dev=options.dev,
        service_account=options.service_account,
    )
    options.out.write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    return {"train_job": str(options.out), "nodes": options.nodes, "processes": options.nodes * cluster.gpus}


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

    config, cluster = _config(options), read_cluster(options.cluster)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        compile_for_cluster(config, package, options.image, cluster)
        yield config, package


def _backend(options: argparse.Namespace) -> "Backend":
    from pipelines.backend import Backend

    return Backend(options.host, options.namespace, options.service_account)


def push(options: argparse.Namespace) -> Result:
    from conlst.platform.objects import push_folder

    return {"address": push_folder(options.folder, options.store)}


def replay(options: argparse.Namespace) -> Result:
    from conlst.platform import tracking

    if options.spool.startswith("s3://"):
        return {"sent": tracking.replay_stored(options.spool)}
    return {"sent": tracking.replay(Path(options.spool))}


def promote(options: argparse.Namespace) -> Result:
    from conlst.platform import registry

    version = options.version
    if version is None:
        challenger = registry.challenger(options.language)
        if challenger is None:
            raise registry.RegistryError(f"nli-{options.language} has no challenger; name a version with --version")
        version = challenger.version
    decision = registry.promote(options.language, version, _config(options).gate, uncompared=options.uncompared)
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


def serve(options: argparse.Namespace) -> NoReturn:
    environment = dict(os.environ)
    if options.model:
        environment["CONLST_MODELS"] = ",".join(options.model)
    if options.language:
        environment["CONLST_LANGUAGES"] = ",".join(options.language)
    command = [sys.executable, "-m", "serving", "--host", options.host, "--port", str(options.port)]
    # the server takes this process' place, and so its signals
    os.execve(sys.executable, command, environment)


def bench(options: argparse.Namespace) -> Result:
    from conlst.bench.cell import read_cells
    from conlst.bench.figures import draw
    from conlst.bench.matrix import read_matrix
    from conlst.bench.run import run_matrix
    from conlst.bench.tables import blocks, fill

    matrix = read_matrix(options.matrix)
    result: Result = {"results": str(options.out)}
    if options.document:
        # a document that cannot be filled is told before hours of training
        fill(_read(options.document), dict.fromkeys(blocks([], matrix.groups, matrix.development), ""))
    elif options.tables_only:
        raise ConfigError("--tables-only makes the tables of a document; name it with --document")
    if not options.tables_only:
        result |= run_matrix(matrix, options.data, options.work, options.out, options.subset, options.system, options.jobs)
    if options.document:
        cells = read_cells(options.out)
        tables = blocks(cells, matrix.groups, matrix.development)
        options.document.write_text(fill(_read(options.document), tables), encoding="utf-8")
        figures = draw(cells, matrix.groups, matrix.development, options.document.parent / "figures")
        result |= {"document": str(options.document), "figures": [str(figure) for figure in figures]}
    return result


def _read(file: Path, option: str = "--document") -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option} {file} cannot be read: {error}") from error


def _config(options: argparse.Namespace) -> Config:
    return load_config(options.config, tuple(options.set))


def _work(out: Path) -> Path:
    """Where a command keeps what lies between its input and its output: checked pairs, checkpoints, the calibrated model."""
    # processes that a launcher started on one machine must not write each other's
    work = out.parent / (f"{out.name}.work-{rank}" if (rank := _rank()) else f"{out.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    return work


def _rank() -> int:
    """Which of the processes this is that a launcher started, if one did; the first one publishes."""
    return int(os.environ.get("RANK", "0"))


def _local(sources: Sequence[str], work: Path) -> list[str]:
    return [_one_local(source, work) for source in sources]


def _one_local(source: str, work: Path) -> str:
    if not str(source).startswith("s3://"):
        return str(source)
    from conlst.platform.objects import localize

    return str(localize(source, work / "fetched"))


def _meta(folder: Path) -> Result:
    from conlst.contract.artifacts import read_manifest

    manifest = read_manifest(folder)
    return {"digest": manifest.digest, **manifest.meta}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="conlst", description=_TEACH, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--verbose", action="store_true", help="log more, and tracebacks")
    commands = parser.add_subparsers(dest="name", required=True, metavar="command")

    def command(name: str, function: Callable[[argparse.Namespace], Result], does: str, default: str | None = None) -> Any:
        sub = commands.add_parser(name, help=does, description=does, allow_abbrev=False)
        sub.set_defaults(command=function)
        sub.add_argument(
            "--config", default=default, required=default is None, help="a .yaml file, or the name of a profile in configs/"
        )
        sub.add_argument(
            "--set", action="extend", nargs="+", default=[], metavar="SECTION.KEY=VALUE", help="override a configuration value"
        )
        return sub

    sub = command("run", run, "run the whole pipeline on this machine through kfp.local")
    sub.add_argument("--root", type=Path, default=Path("runs"), help="where artifacts, MLflow's database and reports go")
    sub.add_argument("--at-once", type=int, default=1, metavar="N", help="languages adapted at the same time")
    sub.add_argument("--store", required=True, metavar="S3-PREFIX", help="s3://bucket/prefix for published models")

    sub = command("train-source", train_source, "stage 0: fine-tune a multilingual encoder on labelled English pairs")
    sub.add_argument("--data", nargs="+", required=True, metavar="FILE", help="labelled English pairs")
    sub.add_argument("--dev", metavar="FILE", help="labelled English pairs to report accuracy on")
    sub.add_argument("--start", metavar="DIR", help="a source model to train further, in place of the bare backbone")
    sub.add_argument("--out", type=Path, required=True, help="folder of the model")
    sub.add_argument("--store", metavar="S3-PREFIX", help="publish the model there too; its address is printed")

    sub = command("adapt", adapt, "stages 1 and 2: calibrate and self-train on unlabelled pairs of a language")
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
    sub.add_argument("--without-calibration", action="store_true", help="self-training alone, about half the cost")
    sub.add_argument("--source-data", nargs="+", metavar="FILE", help="labelled English pairs; default: those the model carries")
    sub.add_argument("--out", type=Path, required=True, help="folder of the adapted model; DIR.work keeps the calibrated one")

    sub = command("evaluate", evaluate, "accuracy, calibration and confidence bands on labelled pairs", "default")
    sub.add_argument("--model", required=True, metavar="DIR", help="a model folder, its s3:// address, or 'starter'")
    sub.add_argument("--data", required=True, metavar="FILE", help="labelled pairs")
    sub.add_argument("--language", required=True)
    sub.add_argument("--before", type=Path, metavar="DIR", help="an earlier evaluation of the same pairs to compare with")
    sub.add_argument("--out", type=Path, help="folder of the report (default: MODEL.evaluation)")

    sub = command("export", export, "write a model as ONNX, refused unless it answers as torch does", "default")
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

    sub = commands.add_parser("trim", help="cut exported models' vocabulary to what served text uses; its answers stay the same")
    sub.set_defaults(command=trim)
    sub.add_argument("--models", nargs="+", type=Path, required=True, metavar="DIR", help="folders that `conlst export` made")
    sub.add_argument("--texts", nargs="+", required=True, metavar="FILE", help="pairs that show every character to be known")
    sub.add_argument("--out", type=Path, required=True, help="folder of the trimmed folders, each by its old name")

    sub = commands.add_parser("compact", help="keep a source model as low-rank differences from its backbone, to ship it")
    sub.set_defaults(command=compact)
    sub.add_argument("--model", type=Path, required=True, metavar="DIR", help="a source model with frozen embeddings")
    sub.add_argument("--rank", type=int, default=64, help="directions kept of each matrix' difference")
    sub.add_argument("--card", type=Path, required=True, metavar="FILE", help="what it was trained on, kept with it")
    sub.add_argument("--out", type=Path, required=True)

    sub = commands.add_parser("bench", help="run an experiment: systems, languages and seeds of a matrix", allow_abbrev=False)
    sub.set_defaults(command=bench)
    sub.add_argument("benchmark", choices=["xnli"])
    sub.add_argument("--matrix", type=Path, required=True, metavar="FILE", help="what to run, for example benchmarks/xnli.yaml")
    sub.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="what {data} stands for in the matrix")
    sub.add_argument("--work", type=Path, default=Path("runs/bench"), metavar="DIR", help="where models are kept while it runs")
    sub.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/xnli"), metavar="DIR", help="one JSON a cell; those there stay"
    )
    sub.add_argument("--system", action="extend", nargs="+", default=[], metavar="NAME", help="run only these; default: all")
    sub.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at a time, each with its share of the CPUs")
    sub.add_argument("--subset", type=int, metavar="N", help="N random pairs of every split, to see that the matrix runs")
    sub.add_argument("--document", type=Path, metavar="FILE", help="Markdown whose tables are made anew, with figures beside it")
    sub.add_argument("--tables-only", action="store_true", help="run nothing, only make tables and figures")

    sub = command("compile", compile_pipeline, "compile the pipeline for Kubeflow Pipelines")
    sub.add_argument("--out", type=Path, default=Path("pipeline.yaml"))
    _placed(sub)

    sub = command("train-job", train_job, "write a TrainJob of Kubeflow Trainer that makes a source model on several nodes")
    sub.add_argument("--job-name", default="conlst-source", metavar="NAME")
    sub.add_argument("--nodes", type=int, default=2, metavar="N")
    sub.add_argument("--data", nargs="+", required=True, metavar="S3", help="labelled English pairs")
    sub.add_argument("--dev", metavar="S3", help="labelled English pairs to report accuracy on")
    sub.add_argument("--service-account", default="conlst-pipeline", metavar="NAME", help="that the pods run as (that of infra/)")
    sub.add_argument("--out", type=Path, default=Path("train-job.yaml"))
    _compiled_from(sub)

    sub = command("submit", submit, "compile the pipeline and start a run on Kubeflow Pipelines")
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
            sub.add_argument("--config", required=True, help="a .yaml file, or the name of a profile in configs/")
            sub.add_argument("--set", action="extend", nargs="+", default=[], metavar="SECTION.KEY=VALUE")
            _compiled_from(sub)

    sub = command("promote", promote, "let the gate decide whether a version becomes champion of its language", "default")
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

    sub = commands.add_parser("serve", help="serve champions from the registry, or given folders", allow_abbrev=False)
    sub.set_defaults(command=serve)
    sub.add_argument("--model", action="append", metavar="LANGUAGE=DIR", help="serve this folder; default: the champions")
    sub.add_argument("--language", action="append", help="serve only this champion (repeatable)")
    sub.add_argument("--host", default="127.0.0.1")
    sub.add_argument("--port", type=int, default=3000)

    sub = commands.add_parser(
        "predict",
        help="answer a pair with a model folder, or pairs and files of them with an endpoint",
        description="Answer one pair with a model folder, or one pair or a file of any size with an endpoint. A file's answers "
        "come in its order, a row each; a pair that cannot be answered says why in the column error. A run that was interrupted "
        "goes on where it stopped when it is started again. The API key is that of --key-file, or of the variable CONLST_API_KEY",
        allow_abbrev=False,
    )
    sub.set_defaults(command=predict, misused=sub.error)
    who = sub.add_mutually_exclusive_group(required=True)
    who.add_argument("--model", metavar="DIR", help="an exported or a trained model folder")
    who.add_argument("--url", help="an endpoint, for example http://localhost:3000")
    sub.add_argument("--premise")
    sub.add_argument("--hypothesis")
    sub.add_argument(
        "--file", type=Path, metavar="FILE", help=".tsv[.gz] or .jsonl[.gz] with premise and hypothesis, as columns or keys"
    )
    sub.add_argument(
        "--out", type=Path, metavar="FILE", help="answers as .tsv or .jsonl; default: beside FILE, NAME.predictions.tsv or .jsonl"
    )
    sub.add_argument("--language", help="of the pairs; default: the endpoint detects it")
    sub.add_argument("--truncate", action="store_true", help="cut pairs that are too long for the model instead of refusing them")
    sub.add_argument("--key-file", type=Path, metavar="FILE", help="holds the API key")
    return parser


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


if __name__ == "__main__":
    sys.exit(main())
