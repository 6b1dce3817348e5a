"""`make demo`: the whole way on one machine, on the shipped sample, with a real S3 server, registry and endpoint."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import IO, Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from conlst.contract.config import Config, load_config
from conlst.contract.errors import BackendError, ConlstError
from conlst.contract.labels import NAMES
from conlst.platform import objects, registry
from pipelines.local_services import free_port, seaweedfs, stop

QUESTIONS = {
    "sw": [
        ("Basi la kwenda Mombasa liliondoka saa mbili asubuhi.", "Basi limeondoka asubuhi."),
        ("Basi la kwenda Mombasa liliondoka saa mbili asubuhi.", "Abiria wengi walikuwa watalii."),
        ("Basi la kwenda Mombasa liliondoka saa mbili asubuhi.", "Basi liliondoka usiku wa manane."),
    ],
    "ur": [
        ("بچے باغ میں فٹ بال کھیل رہے ہیں۔", "بچے باہر کھیل رہے ہیں۔"),
        ("بچے باغ میں فٹ بال کھیل رہے ہیں۔", "بچوں نے نئے جوتے پہنے ہوئے ہیں۔"),
        ("بچے باغ میں فٹ بال کھیل رہے ہیں۔", "باغ میں کوئی بچہ نہیں ہے۔"),
    ],
}
TASKS_A_LANGUAGE = 10
TASKS_ONCE = 6
FINISHED = re.compile(r"Task \S*'([\w-]+)'\S* finished with status \S*(SUCCESS|FAILURE)")

console = Console(highlight=False)


def main() -> int:
    """Run the demonstration; returns the exit status."""
    # an exception, so that what was started is stopped
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    root = Path("runs/demo")
    # artifacts of an earlier demonstration; the registry and the S3 store go on from it
    shutil.rmtree(root / "artifacts", ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    try:
        with seaweedfs(root / "s3") as s3:
            environment = {
                **s3.environment,
                "MLFLOW_TRACKING_URI": f"sqlite:///{root.resolve() / 'mlflow.db'}",
                "CONLST_CACHE": str(root.resolve() / "cache"),
            }
            os.environ.update(environment)
            _run(root, s3.bucket)
    except ConlstError as error:
        console.print(f"[red]demo failed:[/red] {error}")
        return 1
    return 0


def _run(root: Path, bucket: str) -> None:
    console.rule("1  data into S3")
    config = load_config("demo")
    data = f"s3://{bucket}/data"
    for language in ("en", *config.languages):
        with resources.as_file(resources.files("conlst.data") / "sample" / f"{language}.tsv") as sample:
            objects.push_file(sample, f"{data}/{language}.tsv")
        console.print(f"   {data}/{language}.tsv")

    console.rule("2  the compiled pipeline, through kfp.local")
    overrides = [
        f"data.source=[{data}/en.tsv]",
        f"data.source_dev={data}/en.tsv",
        f'data.pools=["{data}/{{language}}.tsv"]',
        f'data.tests="{data}/{{language}}.tsv"',
    ]
    result = _pipeline(config, root, f"s3://{bucket}/models", overrides)

    console.rule("3  the gate")
    for row in result["decisions"]:
        verdict = "[green]promoted[/green]" if row["promoted"] else "[yellow]refused[/yellow]"
        console.print(f"   nli-{row['language']} version {row['version']}: {verdict}: {'; '.join(row['reasons'])}")

    console.rule("4  the endpoint")
    champions = registry.resolve_champions()
    if champions:
        with _endpoint(root) as url:
            for language in sorted(champions):
                _ask(url, language)
    else:
        console.print("   no champion to serve: the gate refused every language")

    console.rule("5  what came of it")
    console.print(_table(result["decisions"]))
    console.print("   180 self-written pairs a language: this shows the way, not the worth of the method.\n", soft_wrap=True)
    for what, where in (
        ("pages", f"{root}/artifacts/*/*/evaluate-2/evaluation/page.html"),
        ("figures", f"{root}/artifacts/*/*/evaluate-2/evaluation/figures"),
        ("MLflow", f".venv/bin/mlflow ui --backend-store-uri sqlite:///{root}/mlflow.db"),
        ("served page", "the endpoint's / while it runs, see .venv/bin/conlst serve --help"),
        ("logs", f"{root}/pipeline.log  {root}/serving.log"),
    ):
        console.print(f"   {what:<12} {where}", soft_wrap=True)


def _pipeline(config: Config, root: Path, store: str, overrides: list[str]) -> dict[str, Any]:
    """`conlst run` as a user would call it, its log in a file, its tasks on a bar."""
    command = [sys.executable, "-m", "conlst.cli", "run", "--config", "demo", "--root", str(root), "--store", store]
    command += ["--at-once", "2", "--set", *overrides]
    total = TASKS_ONCE + TASKS_A_LANGUAGE * len(config.languages)
    columns = (TextColumn("   {task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    last = ""
    with (
        (root / "pipeline.log").open("w", encoding="utf-8") as log,
        _process(command, stdout=subprocess.PIPE) as process,
        Progress(*columns, console=console) as progress,
    ):
        bar = progress.add_task("tasks", total=total)
        for raw in process.stdout or ():
            last = raw.decode("utf-8", "replace")
            log.write(last)
            log.flush()
            if finished := FINISHED.search(last):
                name, status = finished.groups()
                progress.update(bar, advance=status == "SUCCESS", description=f"{name:<22}")
        process.wait()
    if process.returncode:
        raise BackendError(f"the pipeline failed; {root / 'pipeline.log'} tells where: {last.strip()}")
    return json.loads(last)


@contextmanager
def _process(command: list[str], stdout: int | IO[bytes], seconds: float = 60) -> Iterator[subprocess.Popen[bytes]]:
    """A program with all its children, ended with the block; it has ``seconds`` to end by itself."""
    process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process
    finally:
        stop(process, seconds)


@contextmanager
def _endpoint(root: Path) -> Iterator[str]:
    """`conlst serve` until the block ends."""
    port = free_port()
    command = [sys.executable, "-m", "serving", "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with (root / "serving.log").open("wb") as log, _process(command, log) as process:
        _wait_until_ready(url, process, root / "serving.log")
        console.print(f"   ready at {url}")
        yield url


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BackendError(f"the endpoint ended with status {process.returncode}; {log} tells why")
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    raise BackendError(f"the endpoint was not ready within 180 s; {log} tells why")


def _ask(url: str, language: str) -> None:
    pairs = [{"premise": premise, "hypothesis": hypothesis} for premise, hypothesis in QUESTIONS[language]]
    response = httpx.post(f"{url}/predict", json={"pairs": pairs, "language": language}, timeout=60)
    response.raise_for_status()
    answer = response.json()
    console.print(f"\n   [bold]{language}[/bold], model {answer['model']['name']} version {answer['model']['version']}")
    for pair, prediction in zip(pairs, answer["predictions"], strict=True):
        shares = "  ".join(f"{name} {prediction['probabilities'][name]:.2f}" for name in NAMES)
        console.print(f"   {pair['premise']}\n     → {pair['hypothesis']}\n     [cyan]{prediction['label']}[/cyan]   {shares}")


def _table(decisions: list[Mapping[str, Any]]) -> Table:
    table = Table("language", "pairs", "zero-shot", "adapted", "ECE", "promoted", title="Accuracy (transductive, sample)")
    for row in decisions:
        metrics = row["metrics"]
        table.add_row(
            row["language"],
            f"{metrics['n']:.0f}",
            f"{100 * metrics['zero_shot_accuracy']:.1f} %",
            f"{100 * metrics['accuracy']:.1f} %",
            f"{metrics['ece']:.3f}",
            "yes" if row["promoted"] else "no",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
