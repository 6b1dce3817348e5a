"""When and where a thread runs. Linux only: elsewhere a thread has no niceness or CPU of its own, and nothing happens.

Both make a process faster and no answer different, so a system that forbids them is only told of.
"""

import logging
import os
import sys

log = logging.getLogger(__name__)


def step_back(niceness: int) -> None:
    """Let threads that did not step back go before this one, and before those that it starts from now on. There is no way back.

    Args:
        niceness: added to the thread's own, which ends at 19. Five mean a third of the time of a thread that wants the same CPU.
    """
    if sys.platform == "linux":
        try:
            os.nice(niceness)
        except OSError as error:
            log.warning("threads cannot step back here (%s): the rest may wait for them", error)


def keep_apart(place: int, threads: int) -> None:
    """Give this thread a CPU of its own, if the process has exactly one for each of its threads that compute.

    Linux may leave two of them on one CPU for milliseconds while another is idle. A process that may use more CPUs than it has
    such threads shares them with others, who would all stay on the first ones. One that may use as many is taken to have them to
    itself: if it has not, a thread waits for its CPU although another may be idle.

    Args:
        place: of this thread among those that compute, from 0.
        threads: how many compute.
    """
    if sys.platform == "linux" and len(cpus := sorted(os.sched_getaffinity(0))) == threads:
        try:
            os.sched_setaffinity(0, {cpus[place]})
        except OSError as error:
            log.warning("threads cannot be kept on a CPU each here (%s): they may share one while another is idle", error)
