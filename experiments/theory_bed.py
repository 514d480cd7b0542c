"""What the theory experiments share: where results go, and how modes are read off a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from bed import RESULTS, Row, pyplot, save_figure, short, write
from torch import Tensor

from torch_specgd.factorization import Trajectory

plt = pyplot()


def is_quick(text: str | None) -> bool:
    """Read the command line: whether the smallest setting is asked for, of which nothing stays."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="seconds, assertions, no files")
    torch.set_num_threads(1)
    return parser.parse_args().quick


def save(name: str, figure: Any, rows: Sequence[Row]) -> None:
    """Write the figure and experiments/results/NAME.csv, and print the rows."""
    save_figure(figure, name)
    write(RESULTS / f"{name}.csv", rows)
    for row in rows:
        print("  ".join(f"{k} {short(v)}" for k, v in row.items()))


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
