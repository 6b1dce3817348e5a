"""What the demonstration assumes of the pipeline and of its configuration."""

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
    compiler.Compiler().compile(adaptation(on_this_machine(1)), str(compiled))
    spec = yaml.safe_load(compiled.read_text())
    once = [name for name in spec["root"]["dag"]["tasks"] if not name.startswith("for-loop")]
    (loop,) = [component for name, component in spec["components"].items() if name.startswith("comp-for-loop")]

    assert (len(once), len(loop["dag"]["tasks"])) == (demo.TASKS_ONCE, demo.TASKS_A_LANGUAGE)


def test_progress_reads_the_runner_s_coloured_log() -> None:
    line = "14:10:43.1 - INFO - Task \x1b[96m'self-train'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m\n"

    assert demo.FINISHED.search(line).groups() == ("self-train", "SUCCESS")
