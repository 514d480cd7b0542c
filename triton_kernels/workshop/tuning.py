"""`tune`: measure configurations on the GPU at hand and write a table of the best ones.

Never called by anything but the user: a step that tunes itself is slow once and different
from one run to the next.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ..kernels import available
from ..kernels.configuration import Config, architecture, load_table, read_table
from ..planning.choose import forget_plans

Measure = Callable[[str, Config, tuple[int, int, int]], float]
TILES = ((64, 64, 4), (64, 128, 4), (128, 128, 8), (128, 256, 8))
# Batches of matrices from small to large: the last ones fill any GPU with any tile.
SHAPES = ((1, 1024, 1024), (16, 768, 3072), (1, 4096, 4096), (4, 4096, 14336))
_BARRIERS = 64  # bytes at most, where copies report their end


def shared_memory(arch: str, config: Config, itemsize: int) -> int:
    """Return the bytes of shared memory that a product's block takes, or a little more.

    Hopper's and Blackwell's instructions read the tile that they multiply from there; others have
    it in registers, and keep one stage less.

    Args:
        arch: Whose code.
        config: Of a product.
        itemsize: Bytes of an element.
    """
    reads = arch in ("sm_90", "sm_100")
    stages = config["num_stages"] - (0 if reads else 1)
    tile = (config["BLOCK_M"] + config["BLOCK_N"]) * config["BLOCK_K"] * itemsize
    return int(stages * tile + (_BARRIERS if reads else 0))


def candidates(kind: str, descriptor: bool, arch: str) -> list[Config]:
    """Return the configurations worth a measurement: tiles times stages that fit in memory.

    Args:
        kind: "symmetric" or "apply".
        descriptor: Whether tiles are loaded through tensor descriptors.
        arch: Whose shared memory, one of `ARCHITECTURES`.
    """
    found = []
    for block_m, block_n, warps in TILES:
        for stages in (2, 3, 4):
            config: Config = {
                "BLOCK_M": block_m,
                "BLOCK_N": block_n,
                "BLOCK_K": 64,
                "num_warps": warps,
                "num_stages": stages,
                "DESCRIPTOR": descriptor,
            }
            if kind == "symmetric":
                config["STRIPS"] = 2 if block_n > 128 else 1
            if shared_memory(arch, config, 2) <= load_table(arch)["shared_limit"]:
                found.append(config)
    return found


def best_order(kind: str, configs: Iterable[Config], measure: Measure) -> list[Config]:
    """Return for each tile the fastest configuration, largest tile first.

    A step takes the first tile that fills the GPU. So a tile is left out if a smaller one is faster
    where both fill it, and if it fails.

    Args:
        kind: "symmetric" or "apply".
        configs: From `candidates`.
        measure: Milliseconds of a configuration on a shape; infinity for one that fails.
    """
    best: dict[tuple[int, int], tuple[float, float, Config]] = {}
    for config in configs:
        times = [measure(kind, config, shape) for shape in SHAPES]
        tile = (config["BLOCK_M"], config["BLOCK_N"])
        if sum(times) < best.get(tile, (float("inf"),))[0]:
            best[tile] = sum(times), times[-1], config
    kept: list[Config] = []
    fastest = float("inf")
    for tile in sorted(best, key=lambda t: t[0] * t[1]):
        _, filled, config = best[tile]
        if filled < fastest:
            kept.insert(0, config)
            fastest = filled
    return kept


def _on_device(kind: str, config: Config, shape: tuple[int, int, int]) -> float:
    """Time one configuration with CUDA events, the median of twenty launches."""
    from ..kernels import launch

    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    q = torch.randn(shape[0], shape[1], shape[1], device="cuda", dtype=torch.bfloat16)
    chosen = config | {"PRECISION": "ieee", "enable_fp_fusion": True}
    times = []
    try:
        for _ in range(25):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            if kind == "symmetric":
                launch.symmetric(x, x, config=chosen)
            else:
                launch.apply(q, x, config=chosen)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
    except Exception:  # compilers and drivers raise errors of many kinds
        return float("inf")
    return statistics.median(times[5:])


def tune(path: str | Path, measure: Measure | None = None) -> dict[str, Any]:
    """Measure all candidates on the current GPU and write a table for it.

    Set the environment variable TORCH_SPECGD_TRITON_CONFIG to the file to use it.

    Args:
        path: Where the table goes.
        measure: How to time a configuration; default on the GPU.

    Returns:
        The table.

    Raises:
        RuntimeError: Without a GPU.
    """
    if measure is None and not torch.cuda.is_available():
        raise RuntimeError("tune() measures on a CUDA or ROCm device, and there is none here")
    arch = architecture(torch.device("cuda" if measure is None else "cpu"))
    table = dict(load_table(arch))
    if measure is None:
        table["processors"] = torch.cuda.get_device_properties().multi_processor_count
    for kind in ("symmetric", "apply"):
        lists = dict(table[kind])
        for name in lists:
            if name.endswith("16"):
                listed = candidates(kind, name.startswith("descriptor"), arch)
                lists[name] = best_order(kind, listed, measure or _on_device) or lists[name]
        table[kind] = lists
    Path(path).write_text(json.dumps(table, indent=1) + "\n")
    # This process may have read another table from that file, and made plans with it.
    read_table.cache_clear()
    forget_plans()
    available.forget()
    return table
