"""Whole optimizer steps of Muon, ours beside its peers, in one process and interleaved.

    python benchmarks/muon_step.py                       # every model, every peer that is installed
    python benchmarks/muon_step.py --models lora --json -
    pip install --no-deps --target PEERS gram-newton-schulz pytorch_optimizer heavyball opt-einsum
    python benchmarks/muon_step.py --peers PEERS

Columns: median and minimum of a step, both ratios to torch.optim.Muon's, the polar error of the
step that was taken, the floating-point operations of its matrix products, the time that they would
take at the measured GEMM peak of their dtype (the floor), and peak memory beyond parameters,
gradients and optimizer state. Every optimizer has AdamW for vectors inside its step.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from muon_models import MODELS, Model, polar_error
from muon_peers import PEERS, Absent
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

# Processor time on one thread is fair on a machine that others use too; wall time is the default.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLOCK = CLOCKS["wall"]
COLUMNS = ("optimizer", "median ms", "min ms", "x torch (median)", "x torch (min)", "polar error")
COLUMNS += ("GFLOP", "floor ms", "min / floor", "peak MB")
PRODUCTS = tuple(f"aten::{x}" for x in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_"))
DTYPES = {"c10::BFloat16": "bfloat16", "float": "float32", "c10::Half": "float16"}


def gemm_peak(dtype: torch.dtype, repeats: int = 8) -> float:
    """The best rate of a matrix product in operations a second, over sizes and repetitions."""
    best = 0.0
    # Processors without float16 products emulate them at a thousandth of the rate.
    sizes = ((1, 256),) if dtype == torch.float16 else ((1, 1024), (1, 2048), (8, 768))
    for batch, n in sizes:
        a, b = (torch.randn(batch, n, n).to(dtype) for _ in range(2))
        for _ in range(repeats):
            start = CLOCK()
            torch.bmm(a, b)
            best = max(best, 2 * batch * n**3 / (CLOCK() - start))
    return best


def count(step: object) -> tuple[dict[str, float], int]:
    """Operations of the matrix products of one step by dtype, and peak bytes that it allocated."""
    with profile(
        activities=[ProfilerActivity.CPU], record_shapes=True, with_flops=True, profile_memory=True
    ) as prof:
        step()  # type: ignore[operator]
    events = prof.profiler.kineto_results.events()
    flops: dict[str, float] = {}
    for e in events:
        if e.name() in PRODUCTS:
            kind = next((DTYPES.get(d, d) for d in e.dtypes() if d), "?")
            flops[kind] = flops.get(kind, 0.0) + operations(e.name(), e.shapes())
    held = peak = 0
    for e in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += e.nbytes()
        peak = max(peak, held)
    return flops, peak


def operations(name: str, shapes: list[list[int]]) -> float:
    """Two for every multiply-add of a product, from the shapes of its arguments."""
    first = 1 if "add" in name else 0  # (C, A, B), or (A, B) and perhaps an output
    a, b = shapes[first : first + 2]
    return 2.0 * torch.Size(a).numel() * b[-1]


class Contender:
    """One optimizer on its own copy of a model's parameters."""

    def __init__(self, name: str, model: Model, grads: list[Tensor]) -> None:
        self.name, self.grads = name, grads
        self.params = [torch.zeros_like(g) for g in grads]
        self.leaves, self.take = PEERS[name](model, self.params)
        self.times: list[float] = []
        self.sources = self._match(grads)

    def _match(self, grads: list[Tensor]) -> list[Tensor]:
        # A peer may hold views of a parameter (rows of a flattened convolution, one expert each).
        offset = {p.data_ptr(): g for p, g in zip(self.params, grads, strict=True)}
        found = []
        for leaf in self.leaves:
            if leaf.data_ptr() in offset and offset[leaf.data_ptr()].numel() == leaf.numel():
                found.append(offset[leaf.data_ptr()].view(leaf.shape))
                continue
            owner = next(
                i
                for i, p in enumerate(self.params)
                if p.data_ptr() <= leaf.data_ptr() < p.data_ptr() + p.nbytes
            )
            start = (leaf.data_ptr() - self.params[owner].data_ptr()) // leaf.element_size()
            flat = grads[owner].flatten()[start : start + leaf.numel()]
            found.append(flat.view(leaf.shape))
        return found

    def step(self) -> float:
        """Takes a step on fresh gradients and returns its seconds."""
        for leaf, source in zip(self.leaves, self.sources, strict=True):
            leaf.grad = source
        start = CLOCK()
        self.take()
        return CLOCK() - start


def measure(model: Model, names: list[str], repeats: int, peaks: dict[str, float]) -> list[dict]:
    """The rows of one model's table."""
    master = model.gradients()
    working = [g.clone() for g in master]
    rows: dict[str, dict] = {}
    contenders = []

    def refresh() -> None:
        # Some peers write into the gradients.
        torch._foreach_copy_(working, master)

    for name in names:
        try:
            contender = Contender(name, model, working)
        except Absent as reason:
            rows[name] = {"optimizer": name, "absent": str(reason)}
            continue
        refresh()
        contender.step()
        rows[name] = {"optimizer": name, "polar_error": polar_error(model, contender.params)}
        refresh()
        contender.step()  # the second warm-up: compilers specialize once more
        contenders.append(contender)
    for repeat in range(repeats):
        # Another order each time: what ran before decides which memory is warm, or there at all.
        for contender in random.Random(repeat).sample(contenders, len(contenders)):
            refresh()
            contender.times.append(contender.step())
    # Once more: on a shared machine the first measurement may have met a busy moment.
    for kind in ("float32", "bfloat16"):
        peaks[kind] = max(peaks[kind], gemm_peak(getattr(torch, kind)))
    for contender in contenders:
        refresh()
        flops, peak = count(contender.step)
        row = rows[contender.name]
        row["flops"] = sum(flops.values())
        row["floor_s"] = sum(f / peaks[kind] for kind, f in flops.items())
        row["peak_bytes"] = peak
        row["median_s"] = statistics.median(contender.times)
        row["min_s"] = min(contender.times)
        row["seconds"] = [round(t, 4) for t in contender.times]
    base = rows["torch.optim.Muon"]
    for row in rows.values():
        if "median_s" in row:
            row["speedup_median"] = base["median_s"] / row["median_s"]
            row["speedup_min"] = base["min_s"] / row["min_s"]
    return list(rows.values())


def show(model: Model, rows: list[dict]) -> None:
    print(f"\n{model.title}\n")
    print(
        "| optimizer | median ms | min ms | x torch (median) | x torch (min) | polar error ", end=""
    )
    print("| GFLOP | floor ms | min / floor | peak MB |\n|---|" + "---:|" * 9)
    for row in rows:
        if "absent" in row:
            print(f"| {row['optimizer']} | {row['absent']} |" + " |" * 8)
            continue
        floor = row["floor_s"]
        over = f"{row['min_s'] / floor:.2f}" if floor else "-"
        print(
            f"| {row['optimizer']} | {row['median_s'] * 1e3:.1f} | {row['min_s'] * 1e3:.1f} "
            f"| {row['speedup_median']:.2f} | {row['speedup_min']:.2f} | {row['polar_error']:.3f} "
            f"| {row['flops'] / 1e9:.2f} | {floor * 1e3:.1f} | {over} "
            f"| {row['peak_bytes'] / 1e6:.0f} |",
            flush=True,
        )


def profile_ours(model: Model) -> None:
    """Prints where the time of our step goes."""
    grads = model.gradients()
    contender = Contender("torch-specgd", model, grads)
    contender.step()
    with profile(activities=[ProfilerActivity.CPU]) as prof:
        contender.step()
    print(prof.key_averages().table(sort_by="self_cpu_time_total", row_limit=18))


def main() -> None:
    global CLOCK
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--only", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--peers", type=Path, help="folder that peers were installed into")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12, help="blocks of GPT-2 small")
    parser.add_argument("--json", help="also write all numbers here; - for standard output")
    parser.add_argument("--profile", action="store_true", help="where our own step's time goes")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    arguments = parser.parse_args()
    CLOCK = CLOCKS[arguments.clock]
    torch.set_num_threads(arguments.threads)
    if arguments.peers:
        sys.path.append(str(arguments.peers.resolve()))
    names = ["torch.optim.Muon", *(n for n in arguments.only if n != "torch.optim.Muon")]

    def make(name: str) -> Model:
        return MODELS[name](arguments.layers) if name == "gpt2" else MODELS[name]()

    if arguments.profile:
        for name in arguments.models:
            print(make(name).title)
            profile_ours(make(name))
        return
    peaks = {k: gemm_peak(getattr(torch, k)) for k in ("float32", "bfloat16")}
    peaks["float16"] = gemm_peak(torch.float16)
    about = (
        f"{platform.machine()}, {arguments.threads} threads, {arguments.clock} time, "
        f"torch {torch.__version__}, {arguments.repeats} interleaved steps each"
    )
    rates = ", ".join(f"{k} {v / 1e9:.1f}" for k, v in peaks.items())
    print(f"{about}; measured GEMM peak in GFLOP/s: {rates}")
    results = {"about": about, "gemm_peak": peaks, "models": {}}
    for name in arguments.models:
        model = make(name)
        results["models"][name] = measure(model, names, arguments.repeats, peaks)
        show(model, results["models"][name])
    if arguments.json:
        text = json.dumps(results, indent=1)
        if arguments.json == "-":
            print(text)
        else:
            Path(arguments.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
