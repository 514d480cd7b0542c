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

from ..kernels.configuration import Config, architecture, load_table, read_table

Measure = Callable[[str, Config, tuple[int, int, int]], float]
TILES = ((64, 64, 4), (64, 128, 4), (128, 128, 8), (128, 256, 8))
SHAPES = ((1, 1024, 1024), (16, 768, 3072), (1, 4096, 4096), (4, 4096, 14336))


def candidates(kind: str, descriptor: bool, shared_limit: int) -> list[Config]:
    """Return the configurations worth a measurement: tiles times stages that fit in memory.

    Args:
        kind: "symmetric" or "apply".
        descriptor: Whether tiles are loaded through tensor descriptors.
        shared_limit: Bytes of shared memory of a block.
    """
    found = []
    for block_m, block_n, warps in TILES:
        for stages in (2, 3, 4):
            if stages * (block_m + block_n) * 64 * 2 > shared_limit:
                continue
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
            found.append(config)
    return found


def best_order(kind: str, configs: Iterable[Config], measure: Measure) -> list[Config]:
    """Return for each tile the fastest configuration, largest tile first.

    Args:
        kind: "symmetric" or "apply".
        configs: From `candidates`.
        measure: Milliseconds of a configuration on a shape; infinity for one that fails.
    """
    best: dict[tuple[int, int], tuple[float, Config]] = {}
    for config in configs:
        tile = (config["BLOCK_M"], config["BLOCK_N"])
        total = sum(measure(kind, config, shape) for shape in SHAPES)
        if total < best.get(tile, (float("inf"), config))[0]:
            best[tile] = (total, config)
    return [best[tile][1] for tile in sorted(best, key=lambda t: -t[0] * t[1])]


def _on_device(kind: str, config: Config, shape: tuple[int, int, int]) -> float:
    """Time one configuration with CUDA events, the median of twenty launches."""
    import triton

    from ..kernels import launch

    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    q = torch.randn(shape[0], shape[1], shape[1], device="cuda", dtype=torch.bfloat16)
    chosen = config | {"enable_fp_fusion": True}
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
    except triton.runtime.errors.OutOfResources:
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
    table = dict(load_table(architecture(torch.device("cuda" if measure is None else "cpu"))))
    for kind in ("symmetric", "apply"):
        lists = dict(table[kind])
        for name in lists:
            if name.endswith("16"):
                listed = candidates(kind, name.startswith("descriptor"), table["shared_limit"])
                lists[name] = best_order(kind, listed, measure or _on_device) or lists[name]
        table[kind] = lists
    Path(path).write_text(json.dumps(table, indent=1) + "\n")
    read_table.cache_clear()  # this process may have read another table from that file
    return table
