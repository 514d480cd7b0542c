"""The engine's page of tables says what the current code says, where that depends on no machine."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """The program that writes the page."""
    path = ROOT / "benchmarks" / "engine_accuracy.py"
    spec = importlib.util.spec_from_file_location("engine_accuracy", path)
    assert spec is not None
    assert spec.loader is not None
    before = list(sys.path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.mark.parametrize(
    "table", ["schedule_table", "targets_table", "resource_table", "cost_table"]
)
def test_page_is_current(program: ModuleType, table: str) -> None:
    """A reader would compare schedules, kernels and peers by numbers of an older version."""
    page = (ROOT / "docs" / "engine_tables.md").read_text().splitlines()
    missing = [line for line in getattr(program, table)() if line not in page]
    assert not missing, "run python benchmarks/engine_accuracy.py --write docs/engine_tables.md"


def test_page_has_every_table(program: ModuleType) -> None:
    """Errors in three precisions and restarts differ in their last digit from machine to machine,
    but must be there, for every method and choice."""
    page = (ROOT / "docs" / "engine_tables.md").read_text()
    for label, *_ in program.METHODS:
        assert page.count(f"| {label} |") == len(program.DTYPES)
    for name, choices in program.RESTART_CHOICES.items():
        rows = [line for line in page.splitlines() if line.startswith(f"| {name} | 1.")]
        assert len(rows) == 1 + len(choices)
