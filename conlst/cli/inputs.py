"""How commands come by what a person names: files, addresses, and a folder to work in."""

import os
from collections.abc import Sequence
from pathlib import Path

from conlst.contract.errors import ConfigError


def work_folder(out: Path) -> Path:
    """Where a command keeps what lies between its input and its output: checked pairs, checkpoints, the calibrated model."""
    # processes that a launcher started on one machine must not write each other's
    work = out.parent / (f"{out.name}.work-{rank}" if (rank := process_rank()) else f"{out.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    return work


def process_rank() -> int:
    """Which of the processes this is that a launcher started, if one did; the first one publishes."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """How many processes a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_copies(sources: Sequence[str], work: Path) -> list[str]:
    """Every source by :func:`local_copy`, in their order."""
    return [local_copy(source, work) for source in sources]


def local_copy(source: str, work: Path) -> str:
    """What stands for ``source`` on this machine: the copy of an ``s3://`` address below ``work``, anything else as it is.

    Raises:
        ArtifactError, OccupiedError, BackendError: as :func:`conlst.platform.objects.localize`.
    """
    if not str(source).startswith("s3://"):
        return str(source)
    from conlst.platform.objects import localize

    return str(localize(source, work / "fetched"))


def read_text(file: Path, option: str) -> str:
    """The text of a file that ``option`` names.

    Raises:
        ConfigError: with the option, if the file cannot be read as UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option} {file} cannot be read: {error}") from error
