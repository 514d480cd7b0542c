"""Polar errors and costs of the schedules, computed; writes docs/engine_tables.md.

    python benchmarks/engine_accuracy.py [--write docs/engine_tables.md]

Errors: mean |sigma - 1| over the nonzero directions, in three precisions, products emulated
with 16-bit storage and float32 accumulation (what tensor cores do). Costs: counted FLOPs and
launches of one orthogonalization on paper; no GPU was timed. Rates are the data sheets' dense
16-bit peaks (H100 989, B200 2250 TFLOP/s) at 65 %.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from torch_specgd.triton_kernels import SCHEDULES, Schedule, plan
from torch_specgd.triton_kernels.iteration import direct, gram
from torch_specgd.triton_kernels.normalize import begin

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference.polar import spectra, with_spectrum
from reference.rounded import RoundedProducts

Form = tuple[int, ...] | None
METHODS: list[tuple[str, str, dict[torch.dtype, Form]]] = [
    ("torch.optim.Muon (Jordan)", "jordan", {}),
    ("Polar Express, 5 steps", "polar_express", {}),
    ("ours, default (deep)", "deep", {torch.float16: (1, 2), torch.float32: ()}),
    ("ours, flat spectra (flat)", "flat", {torch.float16: (1,), torch.float32: ()}),
]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
RATE = {"H100": 989e12 * 0.65, "B200": 2250e12 * 0.65}
MODELS: dict[str, list[tuple[int, int, int]]] = {
    "GPT-2 (124M)": [(12, 768, 768), (36, 768, 768), (12, 768, 3072), (12, 3072, 768)],
    "Llama-3-8B": [(64, 4096, 4096), (64, 1024, 4096), (96, 4096, 14336)],
    "64 experts, 2048 x 1408": [(192, 2048, 1408)],
}


def error(x: Tensor, name: str, dtype: torch.dtype, restarts: Form, rank: int) -> float:
    ops, schedule = RoundedProducts(), SCHEDULES[name]
    start = begin(x[None], dtype, schedule.normalization, ops)
    go_direct = restarts is None
    y = direct(start, schedule, ops) if go_direct else gram(start, schedule, ops, restarts or ())
    return float((torch.linalg.svdvals(y[0].double())[:rank] - 1).abs().mean())


def accuracy_table() -> list[str]:
    torch.manual_seed(0)
    n = 128
    inputs: dict[str, tuple[Tensor, int]] = {
        "Gaussian 128x128": (torch.randn(n, n), n),
        "Gaussian 128x512": (torch.randn(n, 4 * n), n),
    }
    for label, key in (
        ("decay to 1e-2", "log2"),
        ("decay to 1e-3", "log3"),
        ("1/i", "power_one"),
        ("rank 12", "low_rank"),
        ("rank 1", "rank_one"),
    ):
        values = spectra(n)[key]
        inputs[label] = (with_spectrum(values, n, 2 * n).float(), int((values > 1e-9).sum()))
    lines = [
        "| method | arithmetic | " + " | ".join(inputs) + " |",
        "|---" * (len(inputs) + 2) + "|",
    ]
    for label, name, forms in METHODS:
        for dtype in DTYPES:
            restarts = forms.get(dtype)
            form = "direct" if restarts is None else f"Gram, restarts {list(restarts)}"
            cells = [f"{error(x, name, dtype, restarts, r):.3f}" for x, r in inputs.values()]
            lines.append(f"| {label} | {str(dtype)[6:]}, {form} | " + " | ".join(cells) + " |")
    return lines


def costs(batch: int, a: int, b: int) -> dict[str, tuple[float, int]]:
    """Return (FLOPs, launches) of one shape group for every method."""
    jordan: Schedule = SCHEDULES["jordan"]
    ours = plan((a, b), batch=batch, device="cuda")
    return {
        "torch.optim.Muon": (batch * jordan.flops(a, b, symmetric=False), 15 * batch),
        "flash-muon (symmetric X X^T only)": (
            batch * (jordan.flops(a, b) + 5 * min(a, b) ** 3), 15 * batch),
        "dion (symmetric, batched)": (batch * jordan.flops(a, b), 15),
        "gram-newton-schulz (restart 2)": (
            batch * (jordan.flops(a, b, form="gram", restarts=(2,)) if a != b
                     else jordan.flops(a, b)), 18 if a != b else 15),
        "ours, default": (ours.flops(), ours.traffic()[1]),
        "ours, flat": (
            plan((a, b), batch=batch, device="cuda", accuracy="fast").flops(),
            plan((a, b), batch=batch, device="cuda", accuracy="fast").traffic()[1]),
    }  # fmt: skip


def cost_table() -> list[str]:
    lines = [
        "| model | method | TFLOP a step | launches | ms on H100 (paper) | ms on B200 (paper) |",
        "|---|---|---|---|---|---|",
    ]
    for model, shapes in MODELS.items():
        total: dict[str, list[float]] = {}
        for shape in shapes:
            for method, (flops, launches) in costs(*shape).items():
                entry = total.setdefault(method, [0.0, 0])
                entry[0] += flops
                entry[1] += launches
        for method, (flops, launches) in total.items():
            times = " | ".join(f"{1e3 * flops / rate:.3f}" for rate in RATE.values())
            lines.append(f"| {model} | {method} | {flops / 1e12:.3f} | {launches} | {times} |")
    return lines


def schedule_table() -> list[str]:
    lines = [
        "| schedule | steps | degree | safety | norm | output on [lower, 1] | slope | reach "
        "| diverges above |",
        "|---" * 9 + "|",
    ]
    for s in SCHEDULES.values():
        low, high = s.range()
        degrees = ",".join(str(2 * len(step) - 1) for step in s.steps)
        lines.append(
            f"| {s.name} | {len(s)} | {degrees} | {s.safety:g} | {s.normalization} | "
            f"[{s.lower:g}, 1] -> [{low:.4f}, {high:.4f}] | {s.slope:.4g} | {s.reach():.2g} | "
            f"{s.divergence_threshold:.4f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = "\n".join(
        [
            "# Tables of the engine",
            "",
            "Written by `python benchmarks/engine_accuracy.py --write docs/engine_tables.md`.",
            "",
            "## Schedules (exact arithmetic)",
            "",
            *schedule_table(),
            "",
            "`reach`: the smallest normalized input from which on the output is 0.7 or more.",
            "",
            "## Polar error, mean |sigma - 1| over nonzero directions",
            "",
            *accuracy_table(),
            "",
            "## Cost of one optimizer step, on paper",
            "",
            "Counted, not timed: symmetric results count half where the method has a symmetric",
            "kernel, the rate is 65 % of the dense 16-bit peak, and launches cost nothing here.",
            "",
            *cost_table(),
            "",
        ]
    )
    if options.write:
        options.write.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
