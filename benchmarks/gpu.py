"""Orthogonalization on a GPU against its peers: products, whole orthogonalizations, updates.

    python benchmarks/gpu.py [--trials 30] [--json FILE]
    python benchmarks/gpu.py --first [--out FILE]    # on a new kind of GPU: see gpu_first.py

Times are medians of CUDA events over interleaved trials, after a warm-up that compiles. Peers:
cuBLAS/hipBLASLt through torch, a loop over torch.optim.Muon's function, gram-newton-schulz's
plain-torch path if it is installed, and torch._foreach for both halves of a step. Needs a GPU;
says so and exits with 2 without one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from gpu_first import first
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz

from torch_specgd.triton_kernels import (
    SCHEDULES,
    momentum_step,
    orthogonalize,
    plan,
    weight_step,
)

JORDAN = (3.4445, -4.7750, 2.0315)
PRODUCTS = ((1, 1024, 1024), (8, 1024, 4096), (1, 4096, 4096), (1, 8192, 8192))
UPDATES = ((12, 768, 3072), (192, 16, 1024))
WHOLE = ((12, 768, 768), (12, 768, 3072), (8, 4096, 4096), (2, 4096, 14336), (192, 16, 1024))


def milliseconds(work: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def medians(methods: dict[str, Callable[[], object]], trials: int) -> dict[str, float]:
    for work in methods.values():
        for _ in range(3):
            work()
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(trials):
        for name, work in methods.items():
            times[name].append(milliseconds(work))
    return {name: statistics.median(found) for name, found in times.items()}


def products(shape: tuple[int, int, int]) -> dict[str, Callable[[], object]]:
    from torch_specgd.triton_kernels.kernels import launch

    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    q = launch.symmetric(x, x)
    return {
        "gram torch": lambda: torch.bmm(x, x.mT),
        "gram triton": lambda: launch.symmetric(x, x),
        "apply torch": lambda: torch.bmm(q, x),
        "apply triton": lambda: launch.apply(q, x),
    }


def loop(x: Tensor) -> list[Tensor]:
    return [_zeropower_via_newtonschulz(one, JORDAN, 5, 1e-7) for one in x]


def whole(shape: tuple[int, int, int]) -> dict[str, Callable[[], object]]:
    x = torch.randn(shape, device="cuda")
    graph, static = torch.cuda.CUDAGraph(), x.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        orthogonalize(static)
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        orthogonalize(static)
    methods: dict[str, Callable[[], object]] = {
        "torch loop": lambda: loop(x),
        "ours": lambda: orthogonalize(x),
        "ours, CUDA graph": graph.replay,
        "ours, Polar Express": lambda: orthogonalize(x, schedule=SCHEDULES["polar_express"]),
    }
    try:
        from gram_newton_schulz.gram_newton_schulz import GramNewtonSchulz
    except ImportError:
        return methods
    other = GramNewtonSchulz(ns_use_kernels=False, compile_kwargs=None)
    return methods | {"gram-newton-schulz": lambda: other(x)}


def updates(shape: tuple[int, int, int]) -> dict[str, Callable[[], object]]:
    count, *rest = shape
    grads, buffers, weights = (
        [torch.randn(rest, device="cuda") for _ in range(count)] for _ in range(3)
    )
    outs = [torch.empty(rest, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
    scales = [1.0] * count
    return {
        f"{half} {'triton' if fused else 'foreach'}": work
        for fused in (True, False)
        for half, work in (
            ("momentum", partial(momentum_step, grads, buffers, outs, 0.9, fused=fused)),
            ("weights", partial(weight_step, weights, outs, scales, 1e-3, 0.1, fused=fused)),
        )
    }


KINDS = (
    ("products", PRODUCTS, products),
    ("whole", WHOLE, whole),
    ("updates", UPDATES, updates),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--first", action="store_true", help="the stages of gpu_first.py")
    parser.add_argument("--fake", action="store_true", help="those on a CPU, as far as they go")
    parser.add_argument("--out", type=Path, default=Path("gpu_first.json"))
    options = parser.parse_args()
    if options.first and (options.fake or torch.cuda.is_available()):
        return int(any("error" in found for found in first(options.out, options.fake).values()))
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a CUDA or ROCm device", file=sys.stderr)
        return 2
    rows = []
    for kind, shapes, make in KINDS:
        for shape in shapes:
            for name, time in medians(make(shape), options.trials).items():
                rows.append({"kind": kind, "shape": shape, "method": name, "ms": round(time, 4)})
                print(f"{kind:>8} {'x'.join(map(str, shape)):>16} {name:>20} {time:10.4f} ms")
            if kind == "whole":
                print(plan(shape[1:], batch=shape[0], device="cuda"))
    where = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    if options.json:
        options.json.write_text(json.dumps({"where": where, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
