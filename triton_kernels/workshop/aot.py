"""Ahead-of-time compilation for targets that are not here, and what the compiled code uses.

No driver and no GPU is needed: Triton ships ptxas and the disassemblers. The numbers are read
from the machine code itself (SASS or AMDGCN), so a spill, a missing tensor-core instruction or
a tile that does not fit in shared memory is seen before anybody has the card.

Run ``python -m torch_specgd.triton_kernels.workshop.aot`` to print the report of all shipped
configurations, ``--check FILE`` to compare it with a committed one. Compilers differ: a report has
a part for each release of Triton, and the installed one's is written or compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specgd_common.optional import needed

from ..kernels.configuration import ARCHITECTURES, OLD, PROGRAM_COLUMNS, SERVED, load_table
from .disassemble import read_amd, read_nvidia

_FLAGS = ("HAS_C", "DESCRIPTOR", "LINES", "COLUMNS")
# What is compiled: an architecture for each table, and the others that it serves.
TARGETS = (*ARCHITECTURES, "sm_86", "sm_103", "sm_120", "gfx90a", "gfx950")
# What a release's own assembler does not know; the vendor's library runs there.
LACKING = {"Triton 3.5": ("sm_103",)}
_SHARED = {"gfx950": 163840}  # bytes, where a target has more than its table's
_STEPS, _LINKS = 3, 9  # of the default schedule
_PART = ("N", "BLOCK", "COLUMNS", "num_warps", "num_stages")
# Registers of an SM (or of a SIMD's lane), threads at most, for the occupancy estimate.
_REGISTERS, _THREADS = 65536, 2048


@dataclass(frozen=True)
class Variant:
    """One kernel with one configuration for one architecture."""

    kernel: str
    arch: str
    dtype: str
    config: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """Return a short name, the key of the report."""
        short = {"BLOCK_M": "", "BLOCK_N": "x", "BLOCK_K": "x", "N": "n", "BLOCK": "b"}
        tile = "".join(f"{short[k]}{v}" for k, v in self.config if k in short)
        options = dict(self.config)
        tail = "".join(f" {flag.lower()}" for flag in _FLAGS if options.get(flag))
        return (
            f"{self.arch} {self.kernel} {self.dtype} {tile} "
            f"{options['num_warps']}w{options['num_stages']}s{tail}"
        )


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes, `MachineCode` and more.

    Attributes:
        registers: A thread.
        spilled: Bytes a thread.
        shared: Bytes of shared memory a block.
        occupancy: Blocks that fit on a processor.
        matrix: Matrix instructions by name.
        loops: The same of each innermost loop, with shapes.
        copies: Asynchronous copies to shared memory, by name.
        widest: Bytes of the widest load from global memory to registers.
    """

    registers: int
    spilled: int
    shared: int
    occupancy: int
    matrix: dict[str, int]
    loops: list[dict[str, int]]
    copies: dict[str, int]
    widest: int


_FLOATS = ("alpha", "beta", "gamma", "mu", "lr", "weight_decay")
_COUNTS = ("tensors", "bits")  # integers that no power of two divides
# The operands that are read in tiles, and the sides of those.
_TILES = {
    "a": ("BLOCK_M", "BLOCK_K"),
    "b": ("BLOCK_N", "BLOCK_K"),
    "q": ("BLOCK_M", "BLOCK_K"),
    "x": ("BLOCK_K", "BLOCK_N"),
}


def table_of(arch: str) -> dict[str, Any]:
    """Return the table that serves a target, with the target's own shared memory."""
    table = load_table(SERVED.get(arch, arch))
    return table | {"shared_limit": _SHARED.get(arch, table["shared_limit"])}


def _constants(kernel: str, config: dict[str, Any], precision: str) -> dict[str, Any]:
    own = {k: v for k, v in config.items() if k not in ("num_warps", "num_stages")}
    if kernel not in ("momentum", "update"):
        own["PRECISION"] = precision
    return own


def _signature(variant: Variant, fn: Any, constants: dict[str, Any]) -> dict[str, Any]:
    """Return the type of every argument; sizes and strides are 32-bit, entries of tables 64-bit."""
    signature: dict[str, Any] = {}
    element = f"*{variant.dtype}"
    for name in fn.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name == "numbers":
            signature[name] = ("fp32",) * 3 * _LINKS
        elif name == "links":
            signature[name] = ("fp32",) * _STEPS
        elif name in ("scratch_ptr", "parts_ptr"):
            signature[name] = "*fp32"
        elif variant.kernel in ("momentum", "update") and name.endswith("_ptr"):
            signature[name] = "*i64"
        elif name in _TILES:
            rows, cols = (constants[size] for size in _TILES[name])
            described = f"tensordesc<{variant.dtype}[1, {rows}, {cols}]>"
            signature[name] = described if constants["DESCRIPTOR"] else element
        elif name.endswith(("_ptr", "_type")):
            signature[name] = element
        else:
            signature[name] = "fp32" if name in _FLOATS else "i32"
    return signature


def compile_variant(variant: Variant) -> Any:
    """Compile one variant and return Triton's compiled kernel (asm, metadata).

    Args:
        variant: What to compile.
    """
    needed("triton", "triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from ..kernels import apply, elementwise, small, symmetric

    fn = {
        "symmetric": symmetric.symmetric_kernel,
        "apply": apply.apply_kernel,
        "small": small.small_kernel,
        "parts": small.parts_kernel,
        "momentum": elementwise.momentum_kernel,
        "update": elementwise.update_kernel,
    }[variant.kernel]
    table, config = table_of(variant.arch), dict(variant.config)
    precision = table["float32_precision"] if variant.dtype == "fp32" else "ieee"
    if variant.kernel.startswith("small"):
        precision = table["float32_precision"]
    constants = _constants(variant.kernel, config, precision)
    if constants.get("COLUMNS") == 0:  # as a launch says it
        constants |= {"parts_ptr": None, "parts": 1}
    inner = {"symmetric": ("xk",), "apply": ("qk", "xm", "dm")}
    constants |= {f"stride_{s}": 1 for s in inner.get(variant.kernel, ("xm", "ym"))
                  if f"stride_{s}" in fn.arg_names}  # fmt: skip
    signature = _signature(variant, fn, constants)
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if isinstance(kind, str) and (kind[0] == "*" or (kind == "i32" and name not in _COUNTS))
    }
    source = ASTSource(fn, signature, constants, aligned)
    amd = variant.arch.startswith("gfx")
    target = GPUTarget("hip", variant.arch, 64) if amd else (
        GPUTarget("cuda", int(variant.arch.removeprefix("sm_")), 32)
    )  # fmt: skip
    options = {k: config[k] for k in ("num_warps", "num_stages")} | {"enable_fp_fusion": True}
    return compile(source, target=target, options=options)


def variants(archs: tuple[str, ...] = TARGETS) -> Iterator[Variant]:
    """Yield every kernel with every shipped configuration, with all its options and with none."""
    for arch in archs:
        table = table_of(arch)
        for kernel in ("symmetric", "apply"):
            yield from _products(arch, kernel, table[kernel])
        for size, config in table["small"].items():
            steps = {"STEPS": _STEPS, "LINKS": _LINKS, "SCHATTEN4": True}
            for columns in (0, PROGRAM_COLUMNS):
                full = {"N": int(size), **config, **steps, "COLUMNS": columns}
                yield Variant("small", arch, "fp32", tuple(full.items()))
            part = {k: v for k, v in full.items() if k in _PART}
            yield Variant("parts", arch, "fp32", tuple(part.items()))
        for kernel in ("momentum", "update"):
            extra = {"NESTEROV": True, "MAXIMIZE": False} if kernel == "momentum" else {}
            for lines in (True, False):
                full = table["elementwise"] | extra | {"READ": False, "LINES": lines}
                yield Variant(kernel, arch, "bf16", tuple(full.items()))


def _products(arch: str, kernel: str, lists: dict[str, list[dict[str, Any]]]) -> Iterator[Variant]:
    """Yield a product's configurations: bfloat16 or float32, and float16."""
    for load, configs in lists.items():
        for config in configs:
            dtypes = ("fp32",) if load.endswith("32") else ("bf16", "fp16")
            for dtype in dtypes:
                # The epilogue of the symmetric product that takes most registers has an addend.
                more = {"HAS_C": dtype != "fp16"} if kernel == "symmetric" else {"GROUP": 8}
                yield Variant(kernel, arch, dtype, tuple((config | more).items()))


def resources(variant: Variant) -> Resources:
    """Compile a variant and read what it takes from its machine code."""
    compiled = compile_variant(variant)
    amd = variant.arch.startswith("gfx")
    code = (read_amd if amd else read_nvidia)(compiled)
    shared = int(compiled.metadata.shared)
    options, table = dict(variant.config), table_of(variant.arch)
    threads = options["num_warps"] * (64 if amd else 32)
    registers = max(code.registers, 1)
    # gfx942 has 512 vector registers a lane and four SIMDs; accumulators are counted in them.
    by_registers = (
        512 // registers * 4 // options["num_warps"] if amd else _REGISTERS // (registers * threads)
    )
    by_shared = table["shared_limit"] // shared if shared else 32
    return Resources(
        code.registers,
        code.spilled,
        shared,
        min(by_registers, by_shared, _THREADS // threads),
        code.matrix,
        list(code.loops),
        code.copies,
        code.widest,
    )


def targets() -> dict[str, str]:
    """Say of every GPU that is known what runs on it."""
    library = "the vendor's library, in float16"
    return {
        **dict.fromkeys(OLD, library),
        **{arch: f"kernels, {arch}'s tiles" for arch in ARCHITECTURES},
        **{arch: f"kernels, {table}'s tiles" for arch, table in SERVED.items()},
    }


def compiler() -> str:
    """Return the release of Triton, the name of its part of a report."""
    triton = needed("triton", "triton")
    return "Triton " + ".".join(triton.__version__.split(".")[:2])


def report(archs: tuple[str, ...] = TARGETS, workers: int = 1) -> dict[str, Any]:
    """Return the resources of every shipped configuration, by name.

    Args:
        archs: Which architectures.
        workers: Threads that compile at once.
    """
    listed = list(variants(archs))
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(resources, listed))
    return {v.name: asdict(r) for v, r in zip(listed, found, strict=True)}


def written(parts: dict[str, dict[str, Any]]) -> str:
    """Return a report as JSON, a line for each entry."""
    texts = []
    for name, entries in sorted(parts.items()):
        lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in entries.items())
        texts.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(texts) + "\n}\n"


def main() -> int:
    """Print the report as JSON, write it, or compare it with a committed one."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--arch", nargs="*", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", type=Path, help="the report whose part to write")
    parser.add_argument("--check", type=Path, help="a committed report to compare with")
    options = parser.parse_args()
    archs = tuple(a for a in options.arch if a not in LACKING.get(compiler(), ()))
    parts = {"GPUs": targets(), compiler(): report(archs, options.workers)}
    if options.write:
        others = json.loads(options.write.read_text()) if options.write.exists() else {}
        options.write.write_text(written(others | parts))
    if not options.check:
        if not options.write:
            print(written(parts))
        return 0
    everything = json.loads(options.check.read_text())
    changed = 0
    for part, found in parts.items():
        committed = everything.get(part, {})
        if part != "GPUs":
            committed = {k: v for k, v in committed.items() if k.split()[0] in options.arch}
        for name in sorted({*found, *committed}):
            if found.get(name) != committed.get(name):
                changed += 1
                print(f"{part}, {name}: committed {committed.get(name)}, found {found.get(name)}")
    return int(changed > 0)


if __name__ == "__main__":
    sys.exit(main())
