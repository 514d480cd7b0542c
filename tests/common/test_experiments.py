"""The experiments: one command finds them all, and a stopped one goes on where it was."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parents[2] / "experiments"


def module(name: str) -> ModuleType:
    """Load a file of experiments/ without putting the folder on the path."""
    spec = importlib.util.spec_from_file_location(f"experiment_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


ALL = module("all")
BED = module("bed")


@pytest.mark.parametrize("name", ALL.programs())
def test_every_program_can_be_tried_in_seconds(name: str) -> None:
    """A program without --quick would break unseen: the one command could not try it."""
    assert ALL.has_quick(name)


def test_full_run_reports_last_and_names_programs_that_exist() -> None:
    """Tables are made from result files that are complete by then."""
    names = ALL.programs()
    assert {*ALL.RUNS, *ALL.REPORTS, *ALL.NEEDS} - {*names} == set()
    lines = ALL.command_lines(names, quick=False, reports=False)
    first = next(i for i, line in enumerate(lines) if line == ("muon_figures", ""))
    assert all((name, arguments) in ALL.REPORTS.items() for name, arguments in lines[first:])
    assert len(lines[first:]) == len(ALL.REPORTS)


def test_rows_are_added_and_read_back(tmp_path: Path) -> None:
    """Runs that finished before a stop are there afterwards, and are not run again."""
    path = tmp_path / "runs" / "x.csv"
    BED.append(path, [{"seed": 0, "loss": 1 / 3}])
    BED.append(path, [{"seed": 1, "loss": 2.0}])  # as str() has it: keys are compared so
    assert BED.read(path) == [{"seed": "0", "loss": "0.333333"}, {"seed": "1", "loss": "2.0"}]
    BED.write(path, [{"seed": 2, "loss": 0.5}])
    assert BED.read(path) == [{"seed": "2", "loss": "0.5"}]


def test_a_table_goes_between_its_markers_alone(tmp_path: Path) -> None:
    """Typed text around a generated table stays, and a page without the place is refused."""
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- t: begin -->\nold\n<!-- t: end -->\nb\n")
    BED.replace_between(page, "t", "| new |")
    assert page.read_text() == "a\n<!-- t: begin -->\n| new |\n<!-- t: end -->\nb\n"
    with pytest.raises(ValueError, match="must hold the markers"):
        BED.replace_between(page, "other", "| new |")


def test_reading_idx_files(tmp_path: Path) -> None:
    """Fashion-MNIST's format: sizes are big-endian, pixels are bytes."""
    import gzip

    head = bytes([0, 0, 8, 2]) + (2).to_bytes(4, "big") + (3).to_bytes(4, "big")
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(head + bytes(range(6))))
    assert BED.read_idx(path).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_verdicts_follow_from_the_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page would otherwise print a verdict that its own numbers do not bear."""
    monkeypatch.syspath_prepend(str(HERE))
    claims = importlib.import_module("claims")
    low, high = ({str(s): v + s / 100 for s in range(3)} for v in (1.0, 5.0))
    wild = {"0": -9.0, "1": 0.0, "2": 12.0}
    assert claims.paired(high, low).verdict == claims.HOLDS
    assert claims.paired(high, low, sign=-1).verdict == claims.FAILS
    assert claims.paired(low, high, margin=5.0).verdict == claims.HOLDS
    assert claims.paired(wild, low).verdict == claims.UNDECIDED
    assert claims.paired({"0": 1.0}, low).verdict == claims.NOT_RUN
    both = {"a": (high, low), "b": (high, low)}
    assert claims.in_cells(both).verdict == claims.HOLDS
    assert claims.in_cells(both, sign=-1).verdict == claims.FAILS
    assert claims.in_cells({**both, "c": (wild, low)}).verdict == claims.UNDECIDED
    # One cell of forty on the other side is chance.
    many = {str(k): (high, low) for k in range(39)} | {"odd": (low, high)}
    found = claims.in_cells(many)
    assert found.verdict == claims.UNDECIDED
    assert "above in 39, below in 1" in found.text
    assert "worst -4.0 (odd)" in found.text
