"""What rounding to bfloat16 adds: the largest outputs over matrices of few dimensions.

    python benchmarks/engine_rounding.py

Families: 40,000 rotations of two dimensions and 120,000 matrices of two to twelve; search: a
population that climbs (`tests/reference/search.py`), 6,000 matrices for 40 generations. Products
are emulated with one rounding each. Steps of degree 9 are also run as they used to be, as products
of two quadratics: fused, as a GPU's kernel had them, or from a stored R^2, as a library has to. The
last rows show how far the largest value goes beyond the design's after each step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torch_specgd.triton_kernels import SCHEDULES, Schedule, design_schedule
from torch_specgd.triton_kernels.iterate.iteration import direct
from torch_specgd.triton_kernels.iterate.normalize import begin
from torch_specgd.triton_kernels.iterate.products import plus_identity, scaled_sum

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference.polar import few_dimensions
from reference.rounded import RoundedProducts
from reference.search import Measure, rotations, searched

Run = Callable[[Tensor, Schedule], Tensor]
OPS = RoundedProducts()


def squares(x: Tensor, schedule: Schedule) -> Tensor:
    """Run the engine's own direct form."""
    start = begin(x, torch.bfloat16, schedule.normalization, OPS)
    return direct(start, schedule, OPS)


def quadratics(x: Tensor, schedule: Schedule, fused: bool) -> Tensor:
    """Run it with ``h = c (R^2 + a1 R + b1)(R^2 + a2 R + b2)``, the roots of h paired."""
    start = begin(x, torch.bfloat16, schedule.normalization, OPS)
    y = start.x * start.factor.to(start.x.dtype)
    for k, step in enumerate(schedule.coefficients):
        r = start.r if k == 0 else OPS.gram(y)
        roots = sorted(np.roots(step[::-1]), key=lambda z: (z.real, z.imag))
        if any(abs(z.imag) > 1e-12 for z in roots):
            pairs = [(z, z.conjugate()) for z in roots if z.imag > 0]
        else:
            pairs = [(roots[0], roots[3]), (roots[1], roots[2])]
        sums = [(-float((a + b).real), float((a * b).real)) for a, b in pairs]
        if fused:
            v, w = (OPS.symmetric(r, r, r, 1.0, a, b) for a, b in sums)
        else:
            u = OPS.symmetric(r, r)
            v, w = (plus_identity(scaled_sum(u, 1.0, r, a), b) for a, b in sums)
        y = OPS.apply(OPS.symmetric(v, w, alpha=step[4]), y)
    return y


def largest(y: Tensor) -> Tensor:
    """Return the largest singular value of each; infinity where anything is not finite."""
    lost = ~y.isfinite().all(dim=-1).all(dim=-1)
    top = torch.linalg.matrix_norm(y.float().nan_to_num(0.0, 0.0, 0.0), 2)
    return top.masked_fill(lost, torch.inf)


def measure(schedule: Schedule, run: Run) -> Measure:
    return lambda x: largest(run(x, schedule))


def worst(schedule: Schedule, run: Run = squares) -> tuple[float, float]:
    """Return the largest output over the families, and that of the searches."""
    torch.manual_seed(0)
    families = [rotations(40_000), *(few_dimensions(n, 20_000) for n in (2, 3, 4, 6, 8, 12))]
    known = max(float(measure(schedule, run)(x).max()) for x in families)
    # A search goes on among what is finite.
    finite: Measure = lambda x: measure(schedule, run)(x).clamp(max=1e15)  # noqa: E731
    return known, max(searched(finite, n, n, 6000, 40) for n in (2, 3))


def main() -> None:
    torch.set_num_threads(1)
    print("| steps | safety or headroom | exact | families | search |\n|---|---|---:|---:|---:|")

    def row(label: str, room: str, schedule: Schedule, run: Run = squares) -> None:
        known, found = worst(schedule, run)
        exact = schedule.range(1e-9)[1]
        print(f"| {label} | {room} | {exact:.3f} | {known:.4g} | {found:.4g} |", flush=True)

    for safety in (1.12, 1.02, 1.05):
        nine = design_schedule(9, 4, safety=safety, normalization="schatten4")
        for fused in (False, True):
            label = "fused quadratics" if fused else "quadratics of a stored R^2"
            run = partial(quadratics, fused=fused)
            row(f"four of degree 9, {label}", f"{safety}", nine, run)
        row("four of degree 9, squares", f"{safety}", nine)
    for name in ("deep", "flat"):
        row(name, ", ".join(map(str, np.atleast_1d(SCHEDULES[name].headroom))), SCHEDULES[name])
    deep = SCHEDULES["deep"]
    tight = design_schedule(17, 3, deep.lower, 1.0, headroom=1.03, normalization="schatten4")
    row("deep, designed with less", "1.03", tight)

    print("\n| schedule | after step | largest / the design's | room |\n|---|---|---:|---:|")
    for name in ("deep", "flat"):
        whole = SCHEDULES[name]
        room = (*np.atleast_1d(whole.headroom)[1:], float("nan"))
        for done in range(1, len(whole) + 1):
            part = replace(whole, steps=whole.steps[:done])
            found = max(worst(part)) / part.range(1e-9)[1]
            allowed = f"{room[done - 1]:.2f}" if done < len(whole) else ""
            print(f"| {name} | {done} | {found:.3f} | {allowed} |", flush=True)


if __name__ == "__main__":
    main()
