"""A plan as data: what will be run, printed and counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .kernels.configuration import Config
from .schedules import Schedule

__all__ = ["Leg", "Plan", "Tiles"]

# FLOPs that good kernels reach while a byte is moved: 101 (A100) to 192 (H100). A CPU's products
# are bound by arithmetic, and its passes over X are fused or in the cache.
FLOPS_A_BYTE = {"cuda": 180}

Tiles = tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]


@dataclass(frozen=True)
class Leg:
    """One way through: a schedule in one form.

    Attributes:
        schedule: The steps.
        form: "direct" or "gram".
        restarts: Of the Gram form.
        flatness: Smallest ratio of the Frobenius norm to the normalizing bound for which this
            leg reaches as far as it has to; the first leg that does is taken, a matrix at a time.
    """

    schedule: Schedule
    form: str
    restarts: tuple[int, ...] = ()
    flatness: float = 0.0

    @property
    def reads_x_first(self) -> bool:
        """Whether X itself is not read any more when the result is written."""
        return self.form == "direct" and len(self.schedule) > 1

    def traffic(self, n: int, m: int, itemsize: int) -> tuple[int, int]:
        """Count bytes moved by the products of one n x m matrix, and their launches."""
        segments, small = self.schedule.products(self.form, self.restarts)
        elements = segments * (3 * n * m + 2 * n * n) + small * 3 * n * n
        return itemsize * elements, 2 * segments + small

    def work(self, n: int, m: int, dtype: torch.dtype, device: str) -> int:
        """Count FLOPs, and bytes as the FLOPs that could be done meanwhile."""
        moved = self.traffic(n, m, dtype.itemsize)[0]
        if dtype == torch.float16:
            moved += 6 * n * m  # two more passes to begin with, see `normalize.prescale`
        flops = self.schedule.flops(n, m, form=self.form, restarts=self.restarts)
        return flops + FLOPS_A_BYTE.get(device, 0) * moved


@dataclass(frozen=True)
class Plan:
    """What will be run for a batch of matrices; print it.

    Attributes:
        shape: (short side, long side).
        batch: Number of matrices.
        dtype: Of the arithmetic.
        device: "cpu" or "cuda".
        accuracy: One of `ACCURACIES`.
        legs: Cheapest first; the last takes every matrix.
        one_launch: Whether a single kernel does all of it.
        arch: Whose tiles: one of `kernels.configuration.ARCHITECTURES`, or None on a CPU and
            where no GPU was named.
        tiles: Of the kernels "symmetric" and "apply", or "small", as pairs; none where the
            vendor's library multiplies.
    """

    shape: tuple[int, int]
    batch: int
    dtype: torch.dtype
    device: str
    accuracy: str
    legs: tuple[Leg, ...]
    one_launch: bool
    arch: str | None = None
    tiles: Tiles = ()

    def configs(self) -> dict[str, Config]:
        """Return the tiles by kernel, as its launch takes them."""
        return {kind: dict(config) for kind, config in self.tiles}

    def tiles_for(self, shape: Sequence[int], arch: str) -> dict[str, Config]:
        """Return the tiles if they were chosen for such a batch, else none.

        Another batch may run other kernels, or the vendor's library, and another GPU may be unable
        to run these.

        Args:
            shape: (..., rows, columns).
            arch: Whose tiles.
        """
        same = (tuple(sorted(shape[-2:])), math.prod(shape[:-2]), arch)
        return self.configs() if same == (self.shape, self.batch, self.arch) else {}

    def flops(self, leg: int = -1) -> int:
        """Count the FLOPs of the batch through one leg, symmetric results counted half."""
        n, m = self.shape
        chosen = self.legs[leg]
        return self.batch * chosen.schedule.flops(
            n, m, form=chosen.form, restarts=chosen.restarts
        )  # fmt: skip

    def traffic(self, leg: int = -1) -> tuple[int, int]:
        """Count bytes moved by products, and their launches, of the batch through one leg."""
        n, m = self.shape
        size = self.dtype.itemsize
        if self.one_launch:
            return self.batch * 3 * n * m * size, 1
        moved, launches = self.legs[leg].traffic(n, m, size)
        return self.batch * moved, launches

    def __str__(self) -> str:
        n, m = self.shape
        lines = [
            f"{self.batch} x ({n}, {m}) on {self.device}, {str(self.dtype)[6:]}, "
            f"accuracy {self.accuracy}" + (", one launch" if self.one_launch else "")
        ]
        for i, leg in enumerate(self.legs):
            when = f"flatness >= {leg.flatness:.2f}" if leg.flatness else "otherwise"
            if leg.schedule.long and leg.flatness:
                when += ", and where rounding errors average out"
            restarts = f", restart before {leg.restarts}" if leg.restarts else ""
            size, launches = self.traffic(i)
            lines.append(
                f"  {when}: {leg.form}{restarts}, {self.flops(i) / 1e9:.3f} GFLOP, "
                f"{size / 1e6:.1f} MB, {launches} products\n    {leg.schedule}"
            )
        if self.arch:
            lines += [f"  tiles on {self.arch}: {kind} {_written(c)}" for kind, c in self.tiles]
        if self.arch and not self.tiles:
            lines.append(
                f"  tiles on {self.arch}: the vendor's library (float32, or too small for them)"
            )
        return "\n".join(lines)


def _written(config: tuple[tuple[str, Any], ...]) -> str:
    known = dict(config)
    sides = [known[key] for key in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "N", "BLOCK") if key in known]
    loads = ", descriptors" if known.get("DESCRIPTOR") else ""
    warps, stages = known["num_warps"], known["num_stages"]
    return f"{'x'.join(map(str, sides))}, {warps} warps, {stages} stages{loads}"
