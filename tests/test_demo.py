"""What the demonstration assumes of the pipeline and of its configuration."""

import signal
import subprocess
from pathlib import Path

import yaml
from kfp import compiler

from conlst.contract.config import load_config
from pipelines import demo
from pipelines.adaptation import adaptation
from pipelines.local import on_this_machine


def test_every_language_of_the_demo_has_questions() -> None:
    assert set(demo.QUESTIONS) == set(load_config("demo").languages)


def test_progress_counts_the_tasks_of_the_pipeline(tmp_path: Path) -> None:
    compiled = tmp_path / "pipeline.yaml"
    compiler.Compiler().compile(adaptation(load_config("demo").adapt, on_this_machine(1)), str(compiled))
    components = yaml.safe_load(compiled.read_text())["components"]

    def tasks_with(name: str) -> list[str]:
        (found,) = [list(c["dag"]["tasks"]) for c in components.values() if name in c.get("dag", {}).get("tasks", {})]
        return [task for task in found if not task.startswith(("for-loop", "condition"))]

    once = ["due", "anything", *tasks_with("source-model")]
    assert (len(once), len(tasks_with("calibrate"))) == (demo.TASKS_ONCE, demo.TASKS_A_LANGUAGE)


def test_progress_reads_the_runner_s_coloured_log() -> None:
    line = "14:10:43.1 - INFO - Task \x1b[96m'self-train'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m\n"

    assert demo.FINISHED.search(line).groups() == ("self-train", "SUCCESS")


def test_a_program_that_ignores_its_end_is_not_left_running() -> None:
    stubborn = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"]
    with demo._process(stubborn, subprocess.PIPE, seconds=0.2) as process:
        assert process.stdout.readline() == b"ready\n"
    assert process.returncode == -signal.SIGKILL
