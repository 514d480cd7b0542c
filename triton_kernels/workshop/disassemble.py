"""Reading compiled kernels: registers, spills, loops, and the matrix instructions inside them.

A matrix instruction names its shape (HMMA.16816, HGMMA.64x256x16, v_mfma_f32_32x32x8_bf16) or
takes it from a descriptor that PTX holds (tcgen05), so the multiply-adds of one turn of a loop
can be counted, and compared with what the tile needs.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SASS = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
_NVIDIA_MATRIX = re.compile(r"(HMMA|HGMMA|UTC\w*MMA)(?:\.(\w+))?")
_AMD_MATRIX = re.compile(r"v_mfma_\w+?_(\d+)x(\d+)x(\d+)\w*")
# Copies from global to shared memory that run beside the multiplications.
_COPIES = ("UTMALDG", "LDGSTS")


@dataclass(frozen=True)
class MachineCode:
    """What one compiled kernel takes and does.

    Attributes:
        registers: A thread.
        spilled: Bytes a thread.
        matrix: Matrix instructions by name, all of them.
        loops: The same of each innermost loop that has some, in the order of the code; with
            shapes (m, n, k joined by x) where the code tells them.
        copies: Asynchronous copies to shared memory by name.
        widest: Bytes of the widest load from global memory to registers.
    """

    registers: int
    spilled: int
    matrix: dict[str, int]
    loops: tuple[dict[str, int], ...]
    copies: dict[str, int]
    widest: int


def _tool(name: str, *arguments: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def read_nvidia(compiled: Any) -> MachineCode:
    """Disassemble a cubin.

    Args:
        compiled: Triton's compiled kernel.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("cuobjdump", "-sass", file.name)
    fields = {k: int(v) for k, v in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    lines = [(int(at, 16), *rest) for at, *rest in _SASS.findall(code)]
    shape = _tensor_memory_shape(compiled.asm["ptx"])
    found = [(at, match) for at, _, name, _ in lines if (match := _NVIDIA_MATRIX.match(name))]
    names = [name for _, _, name, _ in lines]
    return MachineCode(
        fields["REG"],
        fields["STACK"] + fields["LOCAL"],
        _sorted(match[1] for _, match in found),
        _innermost(_jumps(lines), [(at, _nvidia_name(match, shape)) for at, match in found]),
        _sorted(copy for name in names for copy in _COPIES if name.startswith(copy)),
        max((_loaded(name) for name in names if name.startswith("LDG")), default=0),
    )


def _jumps(lines: list[tuple[int, str, str, str]]) -> list[tuple[int, int]]:
    """Return (target, from) of every branch.

    Args:
        lines: (address, predicate, name, operands) of each instruction.
    """
    ends = [at for at, predicate, name, _ in lines if name == "EXIT" and not predicate]
    found = [
        (int(target.group(), 16), at)
        for at, _, name, operands in lines
        if name.startswith("BRA") and (target := re.search(r"0x[0-9a-f]+", operands))
    ]
    # Code behind the kernel's end waits for barriers, and jumps back when they open: no loops.
    return [(to, at) for to, at in found if not any(to < end < at for end in ends)]


def _nvidia_name(match: re.Match[str], tensor_memory_shape: str) -> str:
    name, shape = match[1], match[2] or ""
    if name == "HMMA":
        shape = {"16816": "16x8x16", "1688": "16x8x8"}.get(shape, shape)
    elif name.startswith("UTC"):
        shape = tensor_memory_shape
    return f"{name}.{shape}" if shape else name


def _tensor_memory_shape(ptx: str) -> str:
    """Return the shape in the instruction descriptors of tcgen05.mma, if all have the same."""
    values = dict(re.findall(r"mov\.b32\s+(%r\d+), (\d+);", ptx))
    shapes = set()
    for kind, operands in re.findall(r"tcgen05\.mma\.\S+kind::(\w+) ([^;]*);", ptx):
        descriptor = re.findall(r"%r\d+", operands)[-1]
        if descriptor not in values:
            return ""
        bits = int(values[descriptor])
        # PTX ISA, "Instruction descriptor": N / 8 in bits 17 to 22, M / 16 in bits 24 to 28.
        rows, cols = (bits >> 24 & 31) * 16, (bits >> 17 & 63) * 8
        shapes.add(f"{rows}x{cols}x{8 if kind == 'tf32' else 16}")
    return shapes.pop() if len(shapes) == 1 else ""


def read_amd(compiled: Any) -> MachineCode:
    """Read AMD's assembler text.

    Args:
        compiled: Triton's compiled kernel.
    """
    code = compiled.asm["amdgcn"]
    fields = {k: int(v) for k, v in re.findall(r"\.(\w+_count|\w+_size):\s+(\d+)", code)}
    labels, found, branches = {}, [], []
    for at, line in enumerate(code.splitlines()):
        if label := re.match(r"(\.LBB\w+):", line):
            labels[label[1]] = at
        elif match := re.search(r"\bv_mfma_\w+", line):
            found.append((at, match[0]))
        elif branch := re.search(r"\bs_c?branch\w*\s+(\.LBB\w+)", line):
            branches.append((branch[1], at))
    return MachineCode(
        fields["vgpr_count"],
        4 * fields["vgpr_spill_count"] + fields["private_segment_fixed_size"],
        _sorted(name for _, name in found),
        _innermost([(labels[label], at) for label, at in branches], found),
        {},
        max(map(_loaded, re.findall(r"(?:global|buffer)_load_\w+", code)), default=0),
    )


def _loaded(name: str) -> int:
    """Return the bytes that a load moves a thread."""
    if match := re.search(r"\.(64|128)$|dwordx(2|3|4)", name):
        return int(match[1]) // 8 if match[1] else 4 * int(match[2])
    return {"U8": 1, "S8": 1, "U16": 2, "S16": 2}.get(
        name.split(".")[-1], 2 if "short" in name else 4
    )


def _sorted(names: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _innermost(
    jumps: list[tuple[int, int]], found: list[tuple[int, str]]
) -> tuple[dict[str, int], ...]:
    """Count names in each innermost loop that has some; a loop is a jump back, (target, from)."""
    loops = {(to, at) for to, at in jumps if to < at and any(to <= i <= at for i, _ in found)}
    inner = [
        one
        for one in loops
        if not any(o != one and one[0] <= o[0] and o[1] <= one[1] for o in loops)
    ]
    return tuple(
        _sorted(name for i, name in found if start <= i <= stop) for start, stop in sorted(inner)
    )


def flops(instruction: str, warps: int) -> int:
    """Count the FLOPs of one matrix instruction in a whole block of threads.

    Args:
        instruction: Name with shape, as in `MachineCode.loops`.
        warps: Of the block. Each runs its own HMMA or v_mfma; four together run an HGMMA;
            tensor memory is served by one thread for all.

    Raises:
        ValueError: For an instruction without a shape.
    """
    if match := _AMD_MATRIX.match(instruction):
        m, n, k = map(int, match.groups())
        return 2 * m * n * k * warps
    name, _, shape = instruction.partition(".")
    if shape.count("x") != 2:
        raise ValueError(f"{instruction} does not name its shape")
    m, n, k = map(int, shape.split("x"))
    copies = {"HMMA": warps, "HGMMA": warps // 4}.get(name, 1)
    return 2 * m * n * k * copies
