"""Modules of ``benchmarks/``, which is no package."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

FOLDER = str(Path(__file__).resolve().parents[1] / "benchmarks")


def benchmark(name: str) -> ModuleType:
    """The module; its folder does not stay on the path, for its ``serving.py`` would take the place of the package."""
    with patch.object(sys, "path", [FOLDER, *sys.path]):
        return importlib.import_module(name)
