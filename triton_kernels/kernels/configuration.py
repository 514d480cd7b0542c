"""Which tiles a kernel runs with: one JSON table per architecture, chosen by waves.

The rule of thumb behind the tables: the largest tile of which there are enough for every
processor of the GPU. A 768 x 768 product has 36 tiles of 128 x 128; on an H100, which has 132
processors, they leave three quarters idle.
Another table comes from the environment variable TORCH_SPECGD_TRITON_CONFIG (a file); the
file that `tune()` writes is such a table.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100", "gfx942")
# Whose table serves other architectures: consumer cards have 99 KiB of shared memory.
SERVED = {
    "sm_86": "sm_89",
    "sm_87": "sm_89",
    "sm_120": "sm_89",
    "sm_121": "sm_89",
    "sm_103": "sm_100",
    "gfx90a": "gfx942",
    "gfx950": "gfx942",
}
# Of a matrix that one program of the one-launch kernel takes; longer ones are divided. An estimate:
# at 64 rows a program then moves 6 MiB, in the time of some tens of launches.
PROGRAM_COLUMNS = 8192
OLD = ("sm_60", "sm_61", "sm_70", "sm_72", "sm_75")  # without kernels, and without bfloat16
ENVIRONMENT = "TORCH_SPECGD_TRITON_CONFIG"
Config = dict[str, Any]
_CONFIGS = Path(__file__).parent / "configs"


@lru_cache(maxsize=8)
def read_table(path: str) -> dict[str, Any]:
    """Return the table in a file, read once.

    Args:
        path: Of the JSON file.

    Raises:
        ValueError: For one without the needed keys.
    """
    table = json.loads(Path(path).read_text())
    missing = {"processors", "symmetric", "apply", "small", "elementwise"} - table.keys()
    if missing:
        raise ValueError(f"configuration table {path} lacks {sorted(missing)}")
    return table


def load_table(arch: str) -> dict[str, Any]:
    """Return the table of an architecture, or the one that the environment names instead.

    Args:
        arch: One of `ARCHITECTURES`.

    Raises:
        ValueError: For an unknown architecture or a table without the needed keys.
    """
    override = os.environ.get(ENVIRONMENT)
    if override:
        return read_table(override)
    if arch not in ARCHITECTURES:
        raise ValueError(f"no configuration table for {arch!r}; available: {ARCHITECTURES}")
    return read_table(f"{_CONFIGS}/{arch}.json")


@lru_cache(maxsize=16)
def _of_device(index: int) -> str:
    if torch.version.hip:
        name = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
    else:
        name = "sm_{}{}".format(*torch.cuda.get_device_capability(index))
    return SERVED.get(name, name)


def architecture(device: torch.device) -> str:
    """Return whose table serves a device, or a name without a table; for a CPU that of sm_80.

    Args:
        device: A GPU, or a CPU on which kernels are interpreted.
    """
    if device.type != "cuda":
        return "sm_80"
    return _of_device(torch.cuda.current_device() if device.index is None else device.index)


def tables_of(device: torch.device) -> tuple[str | None, str | None]:
    """Return what a plan's tiles depend on: a GPU's architecture, if there is one, and the file.

    Args:
        device: Of the tensors, a CPU as well.
    """
    known = device.type == "cuda" and torch.cuda.is_available()
    return architecture(device) if known else None, os.environ.get(ENVIRONMENT)


def has_table(arch: str) -> bool:
    """Say whether there are configurations for an architecture: elsewhere a library multiplies."""
    return arch in ARCHITECTURES or ENVIRONMENT in os.environ


def has_bfloat16(arch: str) -> bool:
    """Say whether a GPU multiplies bfloat16: NVIDIA's do from compute capability 8 on."""
    return arch not in OLD


def symmetric_tiles(n: int, block_m: int, block_n: int) -> int:
    """Count the tiles of ``block_m x block_n`` that touch the lower triangle (n x n)."""
    blocks = -(-n // block_n)
    return block_n // block_m * blocks * (blocks + 1) // 2


def worth_tiles(table: dict[str, Any], batch: int, n: int) -> bool:
    """Say whether the smallest tiles of a symmetric product keep most of the processors busy.

    Below, the vendor's library is as fast, which splits the inner dimension.

    Args:
        table: From `load_table`.
        batch: Number of matrices.
        n: Rows.
    """
    return n >= 256 and batch * (n // 64) ** 2 // 2 >= 0.6 * table["processors"]


def choose(
    table: dict[str, Any], kind: str, itemsize: int, batch: int, n: int, m: int, describable: bool
) -> Config:
    """Pick the largest tile that fills the processors once, else the smallest.

    Args:
        table: From `load_table`.
        kind: "symmetric" (n x n, lower triangle) or "apply" (n x m).
        itemsize: Bytes of an element: 2 or 4.
        batch: Number of matrices.
        n: Rows of the result.
        m: Columns of the result.
        describable: Whether tensor descriptors can read the operands.
    """
    lists = table[kind]
    configs = lists[f"pointer{8 * itemsize}"]
    if describable:
        configs = lists.get(f"descriptor{8 * itemsize}", configs)
    for config in configs:
        rows, cols = -(-n // config["BLOCK_M"]), -(-m // config["BLOCK_N"])
        tiles = batch * rows * cols
        if kind == "symmetric":
            tiles = tiles // 2 + batch * rows // 2
        if tiles >= table["processors"]:
            break
    precision = table["float32_precision"] if itemsize == 4 else "ieee"
    # Named, because releases of Triton differ in their default, and results would with it.
    return config | {"PRECISION": precision, "enable_fp_fusion": True}


def tiles_of_plan(arch: str, batch: int, n: int, m: int, itemsize: int) -> dict[str, Config]:
    """Return the tiles of both products of an iteration, {} where the vendor's library multiplies.

    Args:
        arch: One of `ARCHITECTURES`.
        batch: Number of matrices.
        n: Short side.
        m: Long side.
        itemsize: Bytes of an element of the arithmetic.
    """
    if itemsize != 2 or not has_table(arch) or not worth_tiles(load_table(arch), batch, n):
        return {}
    table = load_table(arch)
    describable = n * itemsize % 16 == 0 and m * itemsize % 16 == 0
    return {
        kind: choose(table, kind, itemsize, batch, n, columns, describable)
        for kind, columns in (("symmetric", n), ("apply", m))
    }


def small_config(arch: str, n: int) -> Config:
    """Return the configuration of the one-launch kernel for matrices of n rows.

    Args:
        arch: One of `ARCHITECTURES`.
        n: Short side.

    Raises:
        ValueError: For more rows than the architecture's table has.
    """
    configs = load_table(arch)["small"]
    size = max(16, 1 << (n - 1).bit_length())
    if str(size) not in configs:
        limit = max(int(known) for known in configs)
        raise ValueError(f"the one-launch kernel takes at most {limit} rows, got {n}")
    return {"N": size, **configs[str(size)]}
