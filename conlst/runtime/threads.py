"""When and where a thread runs. Linux only: elsewhere a thread has no niceness or CPU of its own, and nothing happens."""

import os
import sys


def step_back(niceness: int) -> None:
    """Let threads that did not step back go before this one, and before those that it starts from now on. There is no way back.

    Args:
        niceness: added to the thread's own, which ends at 19. Five mean a third of the time of a thread that wants the same CPU.
    """
    if sys.platform == "linux":
        os.nice(niceness)


def keep_apart(place: int, threads: int) -> None:
    """Give this thread a CPU of its own, if there is exactly one for each of the threads that compute.

    Linux may leave two of them on one CPU for milliseconds while another is idle. Where there are more CPUs, other processes may
    need any of them, and those with as many threads would all stay on the first.

    Args:
        place: of this thread among those that compute, from 0.
        threads: how many compute.
    """
    if sys.platform == "linux" and len(cpus := sorted(os.sched_getaffinity(0))) == threads:
        os.sched_setaffinity(0, {cpus[place]})
