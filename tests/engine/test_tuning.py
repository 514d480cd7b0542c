"""Tables of tiles: another one by name, and the one that `tune` measures."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from torch_specgd.triton_kernels import plan
from torch_specgd.triton_kernels.kernels import configuration
from torch_specgd.triton_kernels.kernels.configuration import (
    ARCHITECTURES,
    choose,
    load_table,
    read_table,
)
from torch_specgd.triton_kernels.workshop import aot, tuning
from torch_specgd.triton_kernels.workshop.tuning import tune

CONFIGS = Path(configuration.__file__).parent / "configs"
REPORT = Path(__file__).parents[2] / "docs" / "engine_resources.json"
COMMITTED = json.loads(REPORT.read_text())["Triton 3.9"]
PRODUCTS = [v for v in aot.variants(ARCHITECTURES) if v.kernel in ("symmetric", "apply")]


def test_environment_names_another_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuned table would be ignored, or a broken one used silently."""
    table = load_table("sm_90") | {"processors": 7}
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table))
    monkeypatch.setenv("TORCH_SPECGD_TRITON_CONFIG", str(path))
    assert load_table("sm_80")["processors"] == 7
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    monkeypatch.setenv("TORCH_SPECGD_TRITON_CONFIG", str(broken))
    with pytest.raises(ValueError, match="lacks"):
        load_table("sm_80")


def test_tuning_keeps_the_fastest_of_each_tile(tmp_path: Path) -> None:
    """A tuned table would hold slow tiles, or ones that do not fit."""

    def measure(kind: str, config: dict, shape: tuple[int, int, int]) -> float:
        return float("inf") if config["BLOCK_N"] == 256 else abs(config["num_stages"] - 3) + 1.0

    path = tmp_path / "table.json"
    table = tune(path, measure)
    assert json.loads(path.read_text()) == table
    (only,) = table["symmetric"]["pointer16"]
    assert (only["BLOCK_N"], only["num_stages"]) == (64, 3)  # larger tiles are no faster


def test_tuning_leaves_out_what_a_smaller_tile_beats(tmp_path: Path) -> None:
    """A tile that was measured ten times slower was chosen because it is larger."""

    def measure(kind: str, config: dict, shape: tuple[int, int, int]) -> float:
        slow = {64: 4.0, 128: 2.0, 256: 10.0}[config["BLOCK_N"]] / config["BLOCK_M"]
        return slow * shape[0] * shape[1]

    path = tmp_path / "table.json"
    table = tune(path, measure)
    for kind in ("symmetric", "apply"):
        tiles = [(c["BLOCK_M"], c["BLOCK_N"]) for c in table[kind]["pointer16"]]
        assert tiles == [(128, 128), (64, 128), (64, 64)]
        chosen = choose(json.loads(path.read_text()), kind, 2, 8, 4096, 4096, False)
        assert (chosen["BLOCK_M"], chosen["BLOCK_N"]) == (128, 128)


def test_tuning_writes_the_card_and_survives_its_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of another card's processors fills this one badly, or one error ends an hour."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(
        multi_processor_count=78
    ))  # fmt: skip
    monkeypatch.setattr(tuning, "architecture", lambda device: "sm_90")

    def fails(*arguments: object, **options: object) -> None:
        raise ValueError("ptxas")

    # There is no GPU: every candidate fails, and what was there stays.
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: torch.empty(1))
    monkeypatch.setattr("torch_specgd.triton_kernels.kernels.launch.symmetric", fails)
    monkeypatch.setattr("torch_specgd.triton_kernels.kernels.launch.apply", fails)
    monkeypatch.setattr(torch.cuda, "Event", lambda **options: SimpleNamespace(record=lambda: None))
    table = tune(tmp_path / "table.json")
    assert table["processors"] == 78
    assert table["symmetric"] == load_table("sm_90")["symmetric"]


def test_a_plan_takes_the_tuned_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are kept: the process that tuned would go on with the tiles of before."""
    path = tmp_path / "table.json"
    monkeypatch.setenv("TORCH_SPECGD_TRITON_CONFIG", str(path))
    path.write_text(json.dumps(read_table(str(CONFIGS / "sm_80.json"))))
    stages = []
    for best in (2, 3):
        tune(path, lambda kind, config, shape, best=best: abs(config["num_stages"] - best) + 1.0)
        chosen = plan((1024, 1024), 8, device="cuda", arch="sm_80")
        stages.append(chosen.configs()["apply"]["num_stages"])
    assert stages == [2, 3]


@pytest.mark.parametrize("variant", PRODUCTS, ids=lambda v: v.name)
def test_memory_formula_agrees_with_the_compiler(variant: aot.Variant) -> None:
    """Candidates that fit would be left out, or ones that do not fit cost an error each."""
    found = COMMITTED[variant.name]["shared"]
    size = 4 if variant.dtype == "fp32" else 2
    formula = tuning.shared_memory(variant.arch, dict(variant.config), size)
    assert found <= formula <= found + 64


def test_a_tuned_table_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody would tune for an hour, and run with the shipped tiles or those of last time."""

    def chosen(kind: str) -> int:
        return choose(load_table("sm_80"), kind, 2, 64, 4096, 4096, True)["num_stages"]

    def clock(best: int, kind: str, config: dict, shape: tuple[int, int, int]) -> float:
        return float("inf") if config["BLOCK_N"] > 128 else abs(config["num_stages"] - best) + 1.0

    path = tmp_path / "table.json"
    for best in (3, 2):
        tune(path, partial(clock, best))
        with monkeypatch.context() as patch:
            patch.setenv("TORCH_SPECGD_TRITON_CONFIG", str(path))
            assert [chosen(kind) for kind in ("symmetric", "apply")] == [best, best]
        assert chosen("apply") == 3
    with pytest.raises(RuntimeError, match="none here"):
        tune(path)
