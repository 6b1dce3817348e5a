"""Calls spread over processes: a training step of one small batch gains little from a second core, another training all of it."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import TypeVar

from conlst.contract.logs import set_up_logging
from conlst.runtime.cpu import available_cpus

Given = TypeVar("Given")
Made = TypeVar("Made")


def results_of(function: Callable[[Given], Made], given: Iterable[Given], jobs: int) -> Iterator[Made]:
    """Call ``function`` with each of ``given``, ``jobs`` at a time; results come as they are ready.

    One job runs here, in order. More run in fresh processes, each with its share of the CPUs; they log under their number and
    end with this one, however it ends.

    Raises:
        Exception: the first one that a call raises; calls that have not begun are then dropped.
    """
    if jobs == 1:
        yield from map(function, given)
        return
    threads = max(1, available_cpus() // jobs)
    verbose = logging.getLogger().isEnabledFor(logging.DEBUG)
    # a forked process would inherit torch's thread pools without their threads
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (threads, verbose)) as pool:
        futures = [pool.submit(function, one) for one in given]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin(threads: int, verbose: bool) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    set_up_logging(verbose, prefix=f"[{os.getpid()}] ")
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Else a call under way would go on for hours, beside the same one of whoever starts again."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
