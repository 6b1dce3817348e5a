"""Who imports whom: the floors of the house, and a serving image without torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_HEAVY = ("torch", "transformers", "datasets", "pyarrow", "matplotlib")
_LIST = """
import sys
before = set(sys.modules)
import {module}
print(" ".join(sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})))
"""


def imported_by(module: str) -> set[str]:
    """Top-level packages that a fresh interpreter loads with ``module``."""
    command = [sys.executable, "-c", _LIST.format(module=module)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.split())


def test_each_floor_imports_only_what_stands_below_it() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "3 kept, 0 broken" in ended.stdout


@pytest.mark.parametrize("module", ["serving.service", "serving.http", "conlst.runtime.onnx", "conlst.platform.registry"])
def test_serving_needs_no_torch(module: str) -> None:
    loaded = imported_by(module)
    assert module.partition(".")[0] in loaded
    assert not loaded & {"torch", "transformers", "datasets"}


def test_the_runtime_needs_neither_the_platform_nor_the_service() -> None:
    assert not imported_by("conlst.runtime.onnx") & {"boto3", "mlflow", "bentoml", "kfp", *_HEAVY}


def test_the_maths_needs_torch_alone() -> None:
    # the stages' own imports are lint-imports' affair: transformers brings accelerate, and accelerate boto3
    loaded = imported_by("conlst.method.losses")
    assert "torch" in loaded
    assert not loaded & {"transformers", "datasets", "kfp", "mlflow", "boto3", "bentoml"}


def test_the_command_line_answers_help_without_loading_anything_heavy() -> None:
    assert not imported_by("conlst.cli") & {"kfp", "mlflow", "boto3", "bentoml", *_HEAVY}


def test_onnxruntime_is_told_to_report_nothing() -> None:
    code = "import os, conlst.runtime.onnx; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "1"
