"""The first minutes on a GPU, without one: every stage runs to its end on a fake driver."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("triton")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """benchmarks/gpu_first.py."""
    spec = importlib.util.spec_from_file_location("gpu_first", BENCHMARKS / "gpu_first.py")
    assert spec is not None
    assert spec.loader is not None
    before = list(sys.path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def test_every_stage_runs(program: ModuleType, tmp_path: Path) -> None:
    """A typo in the seventh stage would cost the rest of the only ten minutes on a GPU."""
    found = program.first(tmp_path / "out.json", fake=True, apart=False)
    assert list(found) == list(program.STAGES)
    assert json.loads((tmp_path / "out.json").read_text()).keys() == found.keys()
    # What runs on the CPU in the GPU's place is right as well.
    assert max(found["modes"][key] for key in found["modes"] if key != "seconds") < 1e-6
    names = {key.split()[0] for key in found["modes"]}
    assert names >= {"autocast", "inference", "deterministic", "float64", "bfloat16"}
    graphs = {found["capture"][f"graph, state {kept}"] for kept in program.STATES}
    assert graphs == {0.0}
    assert found["tests"]["exit"] == found["optimizers"]["exit"] == 0


def test_a_stage_that_hangs_or_fails_is_noted(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stages behind it would never run."""
    for stage in list(program.STAGES)[2:]:
        monkeypatch.delitem(program.STAGES, stage)
    monkeypatch.setitem(program.STAGES, "products", (program.products, 0.0))
    monkeypatch.setattr(program, "__file__", str(tmp_path / "absent.py"))
    found = program.first(tmp_path / "out.json", fake=True)
    assert "took longer than" in found["products"]["error"]
    assert "absent.py" in found["small"]["error"]
