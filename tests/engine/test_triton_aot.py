"""Kernels compile for targets that are not here, and use what those targets offer."""

import json
import re
from functools import lru_cache
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from torch_specgd.triton_kernels import plan
from torch_specgd.triton_kernels.kernels.configuration import (
    ARCHITECTURES,
    choose,
    load_table,
    symmetric_tiles,
)
from torch_specgd.triton_kernels.workshop import aot
from torch_specgd.triton_kernels.workshop.cost import CountingProducts, cost_on_paper
from torch_specgd.triton_kernels.workshop.disassemble import flops

REPORT = Path(__file__).parents[2] / "docs" / "engine_resources.json"
COMPILERS = ("Triton 3.5", "Triton 3.9")  # the oldest that runs, and that of CI
INSTRUCTION = {"sm_90": "HGMMA", "sm_100": "UTCHMMA", "sm_103": "UTCHMMA"} | dict.fromkeys(
    ("sm_80", "sm_86", "sm_89", "sm_120"), "HMMA"
)
# Of the largest tile, with an addend: two registers more than a thread has. Neither other warps nor
# other stages avoid it, smaller tiles would cost large matrices more.
SPILLS = {("Triton 3.5", "sm_100 symmetric bf16 128x256x64 8w3s has_c descriptor"): 8}
# Where the Gram matrices of a long matrix's parts are summed, next to the start of the steps.
SPILLS |= {
    ("Triton 3.5", f"{arch} small fp32 {tile} columns"): spilled
    for arch in ("sm_86", "sm_89")
    for tile, spilled in (("n32b64 4w1s", 8), ("n64b16 8w1s", 48))
}
SPILLS[("Triton 3.9", "sm_80 small fp32 n64b32 8w1s columns")] = 8
SPILLS |= {("Triton 3.9", f"sm_{n} small fp32 n64b32 4w1s columns"): 48 for n in (100, 103)}


@lru_cache
def _committed(compiler: str = COMPILERS[1]) -> dict[str, dict]:
    return json.loads(REPORT.read_text())[compiler]


def _smallest(arch: str, kernel: str) -> aot.Variant:
    """The last listed configuration of a kernel: the smallest tile, the quickest to compile."""
    return [v for v in aot.variants((arch,)) if v.kernel == kernel][-1]


@pytest.mark.parametrize("kernel", ["symmetric", "apply", "small", "parts", "momentum", "update"])
@pytest.mark.parametrize("arch", aot.TARGETS)
def test_compiles_and_matches_the_report(arch: str, kernel: str) -> None:
    """A change of a kernel would break a target, or make the committed report a lie."""
    if aot.compiler() not in COMPILERS or arch in aot.LACKING.get(aot.compiler(), ()):
        pytest.skip(f"the report is of {COMPILERS}, and compilers differ")
    variant = _smallest(arch, kernel)
    found = aot.resources(variant)
    assert found.spilled == SPILLS.get((aot.compiler(), variant.name), 0)
    committed = _committed(aot.compiler())[variant.name]
    for field in ("shared", "matrix", "loops", "copies"):
        assert getattr(found, field) == committed[field], field


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("arch", aot.TARGETS)
def test_report_covers_every_configuration(arch: str, compiler: str) -> None:
    """A configuration could ship that nobody ever compiled."""
    lacking = arch in aot.LACKING.get(compiler, ())
    names = set() if lacking else {v.name for v in aot.variants((arch,))}
    assert names == {name for name in _committed(compiler) if name.startswith(arch + " ")}


def test_report_names_what_runs_on_every_gpu() -> None:
    """The owner of a T4 or of a B300 would look for it in vain, or read what was true once."""
    gpus = json.loads(REPORT.read_text())["GPUs"]
    assert gpus == aot.targets()
    assert gpus.keys() >= {"sm_75", "sm_86", "sm_103", "sm_121", "gfx90a", *aot.TARGETS}
    compiled = {arch for arch, what in gpus.items() if what.startswith("kernels")}
    # These two are made of the parts of others: sm_86's and sm_120's.
    assert compiled - set(aot.TARGETS) == {"sm_87", "sm_121"}


@pytest.mark.parametrize("compiler", COMPILERS)
def test_shipped_configurations_fit(compiler: str) -> None:
    """A tile that spills is slow; one beyond the shared memory cannot be launched at all."""
    for name, entry in _committed(compiler).items():
        limit = aot.table_of(name.split()[0])["shared_limit"]
        assert entry["spilled"] == SPILLS.get((compiler, name), 0), name
        assert entry["shared"] <= limit, name
        assert entry["occupancy"] >= 1, name


PRODUCTS = [v for v in aot.variants() if v.kernel in ("symmetric", "apply")]


@pytest.mark.parametrize("variant", PRODUCTS, ids=lambda v: v.name)
def test_inner_loop_multiplies_one_step_of_the_tile(variant: aot.Variant) -> None:
    """The cost model counts tiles times FLOPs: the machine code must do neither less nor more.

    One innermost loop, only the target's matrix instructions in it, and as many as the tile's
    step needs (float32 is three products of TF32, but on AMD, which multiplies it).
    """
    (loop,) = _committed()[variant.name]["loops"]
    config = dict(variant.config)
    step = 2 * config["BLOCK_M"] * config["BLOCK_N"] * config["BLOCK_K"]
    if variant.dtype == "fp32" and aot.table_of(variant.arch)["float32_precision"] == "tf32x3":
        step *= 3
    assert all(name.startswith(INSTRUCTION.get(variant.arch, "v_mfma")) for name in loop)
    assert sum(n * flops(name, config["num_warps"]) for name, n in loop.items()) == step


@pytest.mark.parametrize("variant", PRODUCTS, ids=lambda v: v.name)
def test_tiles_are_copied_beside_the_multiplications(variant: aot.Variant) -> None:
    """A descriptor that the compiler turned into plain loads, or an address it cannot trust to be
    aligned, would leave the matrix units waiting for memory."""
    copies = _committed()[variant.name]["copies"]
    if variant.arch.startswith("gfx"):
        assert not copies  # through registers, which the backend pipelines
    elif dict(variant.config)["DESCRIPTOR"]:
        assert set(copies) == {"UTMALDG"}
    else:
        assert set(copies) == {"LDGSTS"}


@pytest.mark.parametrize("arch", aot.TARGETS)
def test_elementwise_kernels_load_whole_lines(arch: str) -> None:
    """Momentum and update move memory and nothing else: two bytes at a time take eight times as
    many instructions, and a division of 64-bit integers an element more than the memory's time."""
    for variant in aot.variants((arch,)):
        if dict(variant.config).get("LINES"):
            # 1024 elements of 2 bytes over 4 warps of 32 or 64 threads.
            widest = 8 if arch.startswith("gfx") else 16
            assert _committed()[variant.name]["widest"] == widest


# Triton 3.8 builds syntax trees in a way that Python 3.13 deprecates.
@pytest.mark.filterwarnings("ignore:AnnAssign:DeprecationWarning")
@pytest.mark.parametrize(("kernel", "shape"), [("small", "m64n64k8"), ("apply", "m64n128k16")])
def test_code_of_hopper(kernel: str, shape: str) -> None:
    """Compilers of several versions made wrong code for products of 16 or 32 columns, and each
    block of a program would write its own descriptor, field by field."""
    chosen = [v for v in aot.variants(("sm_90",)) if v.kernel == kernel]
    if kernel == "apply":
        chosen = [v for v in chosen if dict(v.config)["DESCRIPTOR"]][-1:]
    else:
        chosen = [v for v in chosen if dict(v.config)["N"] == 64]
    assert chosen
    for variant in chosen:
        code = aot.compile_variant(variant).asm["ptx"]
        assert set(re.findall(r"wgmma\.mma_async\S*?\.(m\d+n\d+k\d+)", code)) == {shape}
        assert "tensormap.replace" not in code


def test_descriptors_where_the_target_has_them() -> None:
    """Hopper and Blackwell would load tiles as Ampere does."""
    for arch in ("sm_90", "sm_100"):
        assert {"symmetric", "apply"} == {
            v.kernel for v in PRODUCTS if v.arch == arch and dict(v.config)["DESCRIPTOR"]
        }


@pytest.mark.parametrize(("n", "m", "k"), [(256, 512, 128), (300, 1000, 70)])
def test_cost_counts_the_launch(n: int, m: int, k: int) -> None:
    """The table on paper would be about other launches than those that run."""
    ops = CountingProducts("sm_90")
    x = torch.empty(3, n, k, dtype=torch.bfloat16, device="meta")
    ops.gram(x)
    ops.apply(x.new_empty(3, n, n), x.new_empty(3, n, m))
    gram, product = ops.launches
    block_m, block_n, block_k = gram.tile
    assert gram.needed == 3 * n * n * k
    assert product.needed == 2 * 3 * n * n * m
    assert gram.tiles == 3 * symmetric_tiles(n, block_m, block_n)
    # Each tile that touches the lower triangle once: no fewer elements than it has.
    assert gram.tiles * block_m * block_n >= 3 * n * (n + 1) // 2
    assert gram.tile_flops == -(-k // block_k) * 2 * block_m * block_n * block_k
    for launch in (gram, product):
        assert launch.flops >= launch.needed
        assert launch.moved > 0
    names = {v.name for v in PRODUCTS if v.arch == "sm_90"}
    for launch in (gram, product):
        tile = "x".join(map(str, launch.tile))
        assert any(tile in name and name.split()[1] == launch.kind for name in names)


@pytest.mark.parametrize("ratio", [1.0, 1.25, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("n", [256, 1024, 4096])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_plan_takes_the_form_that_is_faster_on_paper(arch: str, n: int, ratio: float) -> None:
    """Chosen by FLOPs alone, small matrices would pay more for traffic than they save."""
    shape, batch = (n, int(n * ratio)), max(1, 64 * 1024**2 // n**2)
    seconds = {
        leg: cost_on_paper(
            plan(shape, batch, device="cuda", form=form, arithmetic=dtype), arch
        ).seconds
        for leg, form, dtype in (
            ("direct", "direct", torch.bfloat16),
            ("gram", "gram", torch.float16),
        )
    }
    # One rule for all GPUs: an A100 moves more bytes a FLOP than an H100.
    assert seconds[plan(shape, batch, device="cuda").form] < 1.04 * min(seconds.values())


def test_cost_of_few_small_matrices_is_the_librarys() -> None:
    """Few matrices of 256 rows leave our tiles half idle: the library multiplies, nothing halved,
    and identities and sums are launches of their own."""
    few, many = (plan((256, 400), batch=b, device="cuda") for b in (1, 64))
    one, all_ = cost_on_paper(few, "sm_100"), cost_on_paper(many, "sm_100")
    assert all_.needed == many.flops()
    assert one.needed > few.flops()
    assert len(one.launches) > len(all_.launches)


@pytest.mark.parametrize("accuracy", ["default", "fast", "high"])
@pytest.mark.parametrize("shape", [(768, 3072), (1024, 1024)])
def test_cost_of_a_plan_is_what_the_plan_says(shape: tuple[int, int], accuracy: str) -> None:
    """The plan chooses by FLOPs that nothing it runs would have."""
    chosen = plan(shape, batch=12, device="cuda", accuracy=accuracy)
    cost = cost_on_paper(chosen, "sm_100")
    assert cost.needed == chosen.flops()
    products = [one for one in cost.launches if one.tiles]
    assert len(products) == chosen.traffic()[1]
    assert cost.moved >= sum(one.moved for one in products)
    text = str(cost)
    assert "on paper" in text
    assert "tiles 128x256x64" in text
    with pytest.raises(ValueError, match="cpu"):
        cost_on_paper(plan(shape), "sm_90")


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


def test_unknown_architecture() -> None:
    """The message must name the accepted ones."""
    with pytest.raises(ValueError, match="sm_90"):
        load_table("sm_1")


def test_long_strides_are_refused() -> None:
    """Offsets inside a tile would wrap around silently."""
    from torch_specgd.triton_kernels.kernels.launch import symmetric

    x = torch.empty_strided((1, 2, 2), (0, 2**23, 1), device="meta")
    with pytest.raises(ValueError, match="contiguous copy"):
        symmetric(x, x)
