"""Kernels compile for targets that are not here, and use what those targets offer."""

import json
from functools import lru_cache
from pathlib import Path

import pytest

pytest.importorskip("triton")

from torch_specgd.triton_kernels import aot
from torch_specgd.triton_kernels.kernels.configuration import (
    ARCHITECTURES,
    choose,
    load_table,
)

REPORT = Path(__file__).parents[1] / "docs" / "engine_resources.json"
INSTRUCTION = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "MMA", "gfx942": "v_mfma"}


@lru_cache
def _committed() -> dict[str, dict]:
    return json.loads(REPORT.read_text())


def _smallest(arch: str, kernel: str) -> aot.Variant:
    """The last listed configuration of a kernel: the smallest tile, the quickest to compile."""
    return [v for v in aot.variants((arch,)) if v.kernel == kernel][-1]


@pytest.mark.parametrize("kernel", ["symmetric", "apply", "small", "momentum", "update"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiles_and_matches_the_report(arch: str, kernel: str) -> None:
    """A change of a kernel would break a target, or make the committed report a lie."""
    variant = _smallest(arch, kernel)
    found = aot.resources(variant)
    assert found.spilled == 0
    committed = _committed()[variant.name]
    assert found.shared == committed["shared"]
    assert found.matrix == committed["matrix"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_report_covers_every_configuration(arch: str) -> None:
    """A configuration could ship that nobody ever compiled."""
    names = {v.name for v in aot.variants((arch,))}
    assert names == {name for name in _committed() if name.startswith(arch + " ")}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_shipped_configurations_fit(arch: str) -> None:
    """A tile that spills is slow; one beyond the shared memory cannot be launched at all."""
    limit = load_table(arch)["shared_limit"]
    for variant in aot.variants((arch,)):
        entry = _committed()[variant.name]
        assert entry["spilled"] == 0, variant.name
        assert entry["shared"] <= limit, variant.name
        assert entry["occupancy"] >= 1, variant.name
        if variant.kernel in ("symmetric", "apply") and variant.dtype == "bf16":
            used = "".join(entry["matrix"])
            assert INSTRUCTION[arch] in used, f"{variant.name} uses {used}"


@pytest.mark.parametrize("arch", ["sm_80", "gfx942"])
def test_batch_offsets_are_64_bit(arch: str) -> None:
    """A stack of experts beyond 2^31 elements would wrap around and corrupt memory."""
    compiled = aot.compile_variant(_smallest(arch, "symmetric"))
    assert "arith.extsi" in compiled.asm["ttir"]
    assert "arith.muli" in compiled.asm["ttir"]
    assert "i64" in compiled.asm["ttir"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_choice_fills_the_processor(arch: str) -> None:
    """A small matrix would occupy a handful of processors with one large tile each."""
    table = load_table(arch)
    small = choose(table, "symmetric", 2, 1, 256, 256, False)
    large = choose(table, "symmetric", 2, 64, 4096, 4096, False)
    assert small["BLOCK_M"] * small["BLOCK_N"] < large["BLOCK_M"] * large["BLOCK_N"]


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


def test_unknown_architecture() -> None:
    """The message must name the accepted ones."""
    with pytest.raises(ValueError, match="sm_90"):
        load_table("sm_1")


def test_tuning_keeps_the_fastest_of_each_tile(tmp_path: Path) -> None:
    """A tuned table would hold slow tiles, or ones that do not fit."""
    from torch_specgd.triton_kernels.kernels.tuning import tune

    def measure(kind: str, config: dict, shape: tuple[int, int, int]) -> float:
        return float("inf") if config["BLOCK_N"] == 256 else abs(config["num_stages"] - 3) + 1.0

    path = tmp_path / "table.json"
    table = tune(path, measure)
    assert json.loads(path.read_text()) == table
    listed = table["symmetric"]["pointer16"]
    assert [c["BLOCK_N"] for c in listed] == [128, 128, 64]
    assert all(c["num_stages"] == 3 for c in listed)


def test_long_strides_are_refused() -> None:
    """Offsets inside a tile would wrap around silently."""
    import torch

    from torch_specgd.triton_kernels.kernels.launch import symmetric

    x = torch.empty_strided((1, 2, 2), (0, 2**23, 1), device="meta")
    with pytest.raises(ValueError, match="contiguous copy"):
        symmetric(x, x)
