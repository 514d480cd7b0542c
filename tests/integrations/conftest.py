"""The examples are imported as a user runs them: their folder stands on the path."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps its settings in a singleton for the process; each test starts anew."""
    from accelerate.state import AcceleratorState, GradientState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
