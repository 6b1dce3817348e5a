"""How many CPUs this process may really use: thread pools sized to the host are throttled inside a container."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path


def available_cpus(root: Path = Path("/")) -> int:
    """Whole CPUs that affinity and the cgroup quotas (v1 or v2) leave to this process, at least one.

    A quota of 2.5 CPUs counts as 2: a third thread would be throttled for half of its time, and the other two wait for it.

    Args:
        root: where ``proc`` and ``sys`` are mounted.
    """
    # Linux only; elsewhere there are no cgroups either
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(int(quota) for quota in _quotas(root))]))


def cpu_model(root: Path = Path("/")) -> str:
    """What the CPU calls itself, for the record of a measurement."""
    facts = root / "proc/cpuinfo"
    lines = facts.read_text().splitlines() if facts.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _quotas(root: Path) -> Iterator[float]:
    """Every CPU quota, in CPUs, from the process's cgroup up to the root: each of them binds."""
    memberships = root / "proc/self/cgroup"
    if not memberships.is_file():
        return
    for line in memberships.read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            for folder in _upwards(root / "sys/fs/cgroup", group):
                yield from _quota(_numbers(folder / "cpu.max"))
        elif "cpu" in controllers.split(","):
            for folder in _upwards(root / "sys/fs/cgroup" / controllers, group):
                yield from _quota(_numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us"))


def _upwards(mount: Path, group: str) -> Iterator[Path]:
    # inside a container the host's path may not be visible, the container's own limit is then at the mount itself
    folder = mount / group.strip("/")
    while folder != mount:
        yield folder
        folder = folder.parent
    yield mount


def _numbers(file: Path) -> list[str]:
    return file.read_text().split() if file.is_file() else []


def _quota(fields: list[str]) -> Iterator[float]:
    # "max" (v2) and -1 (v1) mean no limit
    if len(fields) == 2 and fields[0].isdigit() and int(fields[1]) > 0:
        yield int(fields[0]) / int(fields[1])
