"""Servers as processes of their own on CPUs of their own: started, waited for, measured, ended."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

CHECKOUT = Path(__file__).resolve().parents[1]
_PATIENCE = 180.0
_OURS, _PEERS = 39700, 39800


def divide_cpus(threads: int) -> tuple[set[int], set[int]]:
    """CPUs of the servers and of everything else; the same ones where there are too few to keep them apart."""
    cpus = sorted(os.sched_getaffinity(0))
    return (set(cpus[:threads]), set(cpus[threads:])) if len(cpus) > threads else (set(cpus), set(cpus))


@contextmanager
def program_on(cpus: set[int], command: list[str], threads: int) -> Iterator[Callable[[str], str]]:
    """A program that answers every line with one, and ends when no more will come."""
    process = subprocess.Popen(
        command,
        env=_environment(threads),
        preexec_fn=lambda: _place(cpus),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask(line: str) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        print(line, file=process.stdin, flush=True)
        if answer := process.stdout.readline():
            return answer
        raise RuntimeError(f"{command} ended when it was asked {line!r}")

    with process:
        yield ask


class Server:
    """A process with its children."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, log: Path, cpus: set[int]) -> None:
        self.port = port
        self.log = log
        self.cpus = cpus
        self._process = process

    def wait_until_ready(self) -> None:
        """Raises: RuntimeError with the end of its log if it ends or is not ready in time."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.2)
        raise RuntimeError(f"{self.log} ends with:\n{self.log.read_text()[-2000:]}")

    def processes(self) -> list[psutil.Process]:
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]

    def resident_mb(self) -> float:
        return sum(process.memory_info().rss for process in self.processes()) / 1e6

    def stolen_seconds(self) -> float:
        """Time of its CPUs that the machine's host gave to others, since the machine was started."""
        times = psutil.cpu_times(percpu=True)
        return sum(getattr(times[cpu], "steal", 0.0) for cpu in self.cpus)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def conlst_server(
    folders: Mapping[str, Path], cpus: set[int], threads: int, work: Path, name: str, port: int
) -> Iterator[Server]:
    """``python -m serving`` on a model folder of each language, with the settings that it has by default."""
    models = ",".join(f"{language}={folder}" for language, folder in folders.items())
    settings = {"CONLST_MODELS": models, "CONLST_THREADS": str(threads)}
    command = [sys.executable, "-m", "serving", "--port", str(_OURS + port)]
    with _started(command, settings, cpus, threads, work / f"{name}.log", _OURS + port) as server:
        yield server


@contextmanager
def peer_server(folder: Path, cpus: set[int], threads: int, work: Path) -> Iterator[Server]:
    """The pipeline of ``benchmarks/serving_peer.py``."""
    command = [sys.executable, "-m", "bentoml", "serve", "serving_peer:Pipeline", "--host", "127.0.0.1", "--port", str(_PEERS)]
    command += ["--working-dir", str(CHECKOUT / "benchmarks")]
    settings = {"PEER_MODEL": str(folder), "PEER_THREADS": str(threads)}
    with _started(command, settings, cpus, threads, work / "pipeline.log", _PEERS) as server:
        yield server


@contextmanager
def _started(
    command: list[str], settings: dict[str, str], cpus: set[int], threads: int, log: Path, port: int
) -> Iterator[Server]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=CHECKOUT,
            env={**_environment(threads), "BENTOML_HOME": str(log.parent), "BENTOML_DO_NOT_TRACK": "True", **settings},
            preexec_fn=lambda: _place(cpus),
            stdout=output,
            stderr=output,
        )
    server = Server(process, port, log, cpus)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def _place(cpus: set[int]) -> None:
    """In the new process: on these CPUs, and as any process, though the load that starts it may be a batch one."""
    os.sched_setaffinity(0, cpus)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
