"""The processes of ``conlst bench --jobs``."""

import subprocess
import sys
import time

import psutil

from conlst.bench.jobs import results_of

_TWO_LONG_CALLS = "import time; from conlst.bench.jobs import results_of; list(results_of(time.sleep, [600, 600], 2))"


def test_one_job_runs_in_order_in_this_process() -> None:
    made: list[int] = []
    results = results_of(lambda one: made.append(one) or one, [3, 1, 2], jobs=1)
    assert next(results) == 3
    assert made == [3]
    assert list(results) == [1, 2]


def test_processes_end_with_the_one_that_started_them() -> None:
    with subprocess.Popen([sys.executable, "-c", _TWO_LONG_CALLS]) as started:
        workers: list[psutil.Process] = []
        deadline = time.monotonic() + 60
        while len(workers) < 2:
            assert time.monotonic() < deadline, "no workers came"
            time.sleep(0.1)
            children = psutil.Process(started.pid).children()
            workers = [child for child in children if any("spawn_main" in part for part in child.cmdline())]
        started.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    for worker in alive:
        worker.kill()
    assert not alive
