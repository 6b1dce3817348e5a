"""What a result was measured with."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from conlst.runtime.cpu import cpu_model

_CHECKOUT = Path(__file__).resolve().parents[1]


def provenance(*packages: str) -> dict[str, Any]:
    """``commit`` and whether the checkout differed from it, versions of ``packages``, and the machine. Ask before measuring: the
    checkout may change meanwhile.

    Raises:
        subprocess.CalledProcessError: outside a git checkout, where a result could not be traced.
    """
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", "*.py")),
        "versions": {name: version(name) for name in ("conlst", *packages)},
        "machine": {"processor": cpu_model(), "cores": os.cpu_count(), "python": platform.python_version()},
    }


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=_CHECKOUT, capture_output=True, text=True, check=True).stdout.strip()
