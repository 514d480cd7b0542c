"""What the theory experiments share: where results go, and how modes are read off a run."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from torch_specgd.factorization import Trajectory

matplotlib.use("Agg")

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
# Colors that stay apart in gray and for color-blind readers; the same meaning in every figure.
COLORS = {
    "SpecGD": "#0072B2",
    "smoothed": "#009E73",
    "NS": "#CC79A7",
    "GD": "#D55E00",
    "Adam": "#E69F00",
    "theory": "#000000",
}


def save(name: str, figure: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Writes docs/figures/NAME.png and NAME.csv, and prints the rows."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURES / f"{name}.png", dpi=130)
    with (FIGURES / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            short = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(short)
            print("  ".join(f"{k} {v}" for k, v in short.items()))


def modes(run: Trajectory, target: Tensor, count: int) -> Tensor:
    """d_i = u_i^T W v_i in the target's singular basis; (K, S, count)."""
    u, _, vh = torch.linalg.svd(target)
    left, right = run.factors[-1], run.factors[0]
    for middle in run.factors[1:-1]:
        right = middle @ right
    return ((u[:, :count].mT @ left) * (vh[:count] @ right.mT)).sum(-1)


def arrivals(d: Tensor, times: Tensor, sigma: Tensor, fraction: float = 0.95) -> Tensor:
    """Time at which each mode first reaches a fraction of its target; nan if it never does."""
    reached = d >= fraction * sigma
    first = times[reached.double().argmax(0)]
    return torch.where(reached.any(0), first, torch.nan)


def rates(d: Tensor, times: Tensor, until: float) -> Tensor:
    """Mean growth of sqrt(d_i) between 20 % and 80 % of a time."""
    low, high = (int(torch.searchsorted(times, f * until)) for f in (0.2, 0.8))
    root = d.clamp(min=0).sqrt()
    return (root[high] - root[low]) / (times[high] - times[low])
