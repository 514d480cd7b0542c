"""Orthogonalization on the CPU: time and polar error against its peers, in one run.

    python benchmarks/engine_cpu.py [--trials 7] [--threads 2] [--json FILE]

Every trial runs all methods once, in an order drawn anew, so that a busy machine slows them
alike; the table gives medians. "ours, out=" writes into memory that was there before. Peers: a loop
over torch.optim.Muon's `_zeropower_via_newtonschulz`, and the plain-torch path of
gram-newton-schulz if it is installed (pip install gram-newton-schulz --no-deps); that one computes
in float16, which few CPUs multiply fast, and gets fewer trials. Its API knows no other dtype, so
its source is also run with bfloat16 and float32 in float16's place. "CPU ms" is processor time of
all threads, the better measure where the machine is shared.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz

from torch_specgd.triton_kernels import orthogonalize
from torch_specgd.triton_kernels.planning.choose import plan

PEER = "gram-newton-schulz"
JORDAN = (3.4445, -4.7750, 2.0315)
CASES = ((12, 768, 3072), (12, 768, 768), (192, 16, 1024), (192, 1024, 16))
Method = Callable[[Tensor], Tensor]


def torch_loop(x: Tensor) -> Tensor:
    return torch.stack([_zeropower_via_newtonschulz(one, JORDAN, 5, 1e-7) for one in x])


def peers() -> dict[str, Method]:
    methods: dict[str, Method] = {
        "torch loop": torch_loop,
        "ours": orthogonalize,
        "ours, out=": _into_kept_memory(),
        "ours fast": lambda x: orthogonalize(x, accuracy="fast"),
    }
    try:
        from gram_newton_schulz import gram_newton_schulz as module
    except ImportError:
        return methods
    other = module.GramNewtonSchulz(ns_use_kernels=False, compile_kwargs=None)
    methods[PEER] = lambda x: _in_dtype(module, other, x, torch.float16)
    for dtype in (torch.bfloat16, torch.float32):
        methods[f"{PEER}, {str(dtype)[6:]}"] = partial(_in_dtype, module, other, dtype=dtype)
    return methods


def _into_kept_memory() -> Method:
    """Write into the same result every time, as the optimizer's steps do: no page is new."""
    kept: dict[torch.Size, Tensor] = {}
    return lambda x: orthogonalize(x, out=kept.setdefault(x.shape, torch.empty_like(x)))


def _in_dtype(module: Any, method: Method, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Run gram-newton-schulz with another dtype in the place of the float16 in its source."""

    class Torch:
        float16 = dtype

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    module.torch = Torch()
    try:
        return method(x)
    finally:
        module.torch = torch


def polar_error(y: Tensor, x: Tensor) -> float:
    """Relative Frobenius distance to the exact polar factor, of the first matrix."""
    u, _, vh = torch.linalg.svd(x[0].double(), full_matrices=False)
    exact = u @ vh
    return float((y[0].double() - exact).norm() / exact.norm())


def measure(method: Method, x: Tensor) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    method(x)
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def peak(threads: int, dtype: torch.dtype) -> float:
    """Measured GFLOP/s of a large square product, the best of several."""
    n = 2048
    a = torch.randn(n, n).to(dtype)
    best = min(measure(lambda m: m @ m, a)[0] for _ in range(5))
    return 2 * n**3 / best / 1e6


def run(shape: tuple[int, int, int], methods: dict[str, Method], trials: int) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    errors = {}
    for name, method in methods.items():
        sample = x[:1] if name == PEER and shape[1] >= 512 else x
        errors[name] = polar_error(method(sample), x)
    for trial in range(trials):
        # Another order each time: who comes after the loop finds its memory cold or gone.
        for name, method in random.Random(trial).sample(list(methods.items()), len(methods)):
            if name == PEER and shape[1] >= 512:
                # Tens of seconds in float16: one matrix, once, stands for all.
                if not times[name]:
                    wall, cpu = measure(method, x[:1])
                    times[name].append((wall * shape[0], cpu * shape[0]))
                continue
            times[name].append(measure(method, x))
    base = [statistics.median(t[i] for t in times["torch loop"]) for i in (0, 1)]
    rows = []
    for name, found in times.items():
        wall, cpu = (statistics.median(t[i] for t in found) for i in (0, 1))
        rows.append(
            {
                "shape": shape,
                "method": name,
                "wall_ms": round(wall, 2),
                "cpu_ms": round(cpu, 2),
                "speedup_wall": round(base[0] / wall, 2),
                "speedup_cpu": round(base[1] / cpu, 2),
                "polar_error": round(errors[name], 4),
                "trials": len(found),
            }
        )
    return rows


def share_of_peak(row: dict[str, Any], gflops: float) -> float:
    """FLOPs that our plan needs, symmetric results counted half, over what the peak would do."""
    batch, a, b = row["shape"]
    chosen = plan((a, b), batch=batch, accuracy="fast" if "fast" in row["method"] else "default")
    return chosen.flops(0) / 1e6 / row["wall_ms"] / gflops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cases", type=int, nargs="*", default=list(range(len(CASES))))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peaks = {str(d)[6:]: peak(options.threads, d) for d in (torch.bfloat16, torch.float32)}
    where = {
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": options.threads,
        "peak_gflops": {k: round(v) for k, v in peaks.items()},
    }
    print(json.dumps(where))
    rows = []
    print(f"{'shape':>16} {'method':>28} {'wall ms':>9} {'CPU ms':>9} {'x':>6} {'x CPU':>6} error")
    for case in options.cases:
        for row in run(CASES[case], peers(), options.trials):
            if row["method"].startswith("ours"):
                dtype = str(plan(row["shape"][1:], row["shape"][0]).dtype)[6:]
                row["share_of_peak"] = round(share_of_peak(row, peaks[dtype]), 3)
            rows.append(row)
            shape = "x".join(map(str, row["shape"]))
            print(
                f"{shape:>16} {row['method']:>28} {row['wall_ms']:9.1f} {row['cpu_ms']:9.1f} "
                f"{row['speedup_wall']:6.2f} {row['speedup_cpu']:6.2f} {row['polar_error']:.4f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps({"where": where, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
