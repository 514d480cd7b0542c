"""Ahead-of-time compilation for targets that are not here, and what the compiled code uses.

No driver and no GPU is needed: Triton ships ptxas and the disassemblers. The numbers are read
from the machine code itself (SASS or AMDGCN), so a spill, a missing tensor-core instruction or
a tile that does not fit in shared memory is seen before anybody has the card.

Run ``python -m torch_specgd.triton_kernels.workshop.aot`` to print the report of all shipped
configurations, ``--check FILE`` to compare it with a committed one.
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

from ..kernels.configuration import ARCHITECTURES, load_table
from .disassemble import read_amd, read_nvidia

_FLAGS = ("HAS_C", "DESCRIPTOR", "FLAT")
_STEPS, _LINKS = 3, 9  # of the default schedule
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


# The operands that are read in tiles, and the sides of those.
_TILES = {
    "a": ("BLOCK_M", "BLOCK_K"),
    "b": ("BLOCK_N", "BLOCK_K"),
    "q": ("BLOCK_M", "BLOCK_K"),
    "x": ("BLOCK_K", "BLOCK_N"),
}


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
        elif name in ("scalars_ptr", "scratch_ptr"):
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
            signature[name] = "fp32" if name in ("alpha", "beta", "gamma") else "i32"
    return signature


def compile_variant(variant: Variant) -> Any:
    """Compile one variant and return Triton's compiled kernel (asm, metadata).

    Args:
        variant: What to compile.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from ..kernels import apply, elementwise, small, symmetric

    fn = {
        "symmetric": symmetric.symmetric_kernel,
        "apply": apply.apply_kernel,
        "small": small.small_kernel,
        "momentum": elementwise.momentum_kernel,
        "update": elementwise.update_kernel,
    }[variant.kernel]
    table, config = load_table(variant.arch), dict(variant.config)
    precision = table["float32_precision"] if variant.dtype == "fp32" else "ieee"
    if variant.kernel.startswith("small"):
        precision = table["float32_precision"]
    constants = _constants(variant.kernel, config, precision)
    inner = {"symmetric": ("ak", "bk"), "apply": ("qk", "xm", "dm")}
    constants |= {f"stride_{s}": 1 for s in inner.get(variant.kernel, ("xm", "ym"))
                  if f"stride_{s}" in fn.arg_names}  # fmt: skip
    signature = _signature(variant, fn, constants)
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if isinstance(kind, str) and (kind[0] == "*" or (kind == "i32" and name != "tiles"))
    }
    source = ASTSource(fn, signature, constants, aligned)
    backend, arch, warp = table["target"]
    options = {k: config[k] for k in ("num_warps", "num_stages")} | {"enable_fp_fusion": True}
    return compile(source, target=GPUTarget(backend, arch, warp), options=options)


def variants(archs: tuple[str, ...] = ARCHITECTURES) -> Iterator[Variant]:
    """Yield every kernel with every shipped configuration, with all its options and with none."""
    for arch in archs:
        table = load_table(arch)
        for kernel in ("symmetric", "apply"):
            yield from _products(arch, kernel, table[kernel])
        for size, config in table["small"].items():
            steps = {"STEPS": _STEPS, "LINKS": _LINKS, "SCHATTEN4": True}
            full = {"N": int(size), **config, **steps}
            yield Variant("small", arch, "fp32", tuple(full.items()))
        for kernel in ("momentum", "update"):
            for flat in (True, False):
                extra = {"FLAT": flat} | ({"NESTEROV": True} if kernel == "momentum" else {})
                yield Variant(kernel, arch, "bf16", tuple((table["elementwise"] | extra).items()))


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
    options, table = dict(variant.config), load_table(variant.arch)
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


def report(archs: tuple[str, ...] = ARCHITECTURES, workers: int = 1) -> dict[str, Any]:
    """Return the resources of every shipped configuration, by name.

    Args:
        archs: Which architectures.
        workers: Threads that compile at once.
    """
    listed = list(variants(archs))
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(resources, listed))
    return {v.name: asdict(r) for v, r in zip(listed, found, strict=True)}


def main() -> int:
    """Print the report as JSON, write it, or compare it with a committed one."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--arch", nargs="*", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", type=Path, help="where to write the report")
    parser.add_argument("--check", type=Path, help="a committed report to compare with")
    options = parser.parse_args()
    found = report(tuple(options.arch), options.workers)
    text = json.dumps(found, indent=1)
    if options.write:
        options.write.write_text(text + "\n")
    if options.check:
        everything = json.loads(options.check.read_text())
        committed = {k: v for k, v in everything.items() if k.split()[0] in options.arch}
        changed = [k for k in {*found, *committed} if found.get(k) != committed.get(k)]
        for name in sorted(changed):
            print(f"{name}: committed {committed.get(name)}, found {found.get(name)}")
        return int(bool(changed))
    if not options.write:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
