"""Tests that need what a machine may lack: skipped with the reason by `make test`, all run by `.ci/run`."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

SHARED = Path(__file__).parents[2] / "shared" / "data"

Test = TypeVar("Test", bound=Callable[..., object])


def needs(present: bool, what: str) -> Callable[[Test], Test]:
    """Mark a test that needs ``what``: with ``-m machine`` alone, none of them may skip."""

    def mark(test: Test) -> Test:
        return pytest.mark.machine(pytest.mark.skipif(not present, reason=f"{what} is not on this machine")(test))

    return mark


needs_shared_data = needs(SHARED.is_dir(), "the folder of real XNLI and English NLI beside the checkout")
