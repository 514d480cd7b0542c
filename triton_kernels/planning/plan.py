"""What is asked for and what will be run, as data: the latter can be printed and counted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..kernels.configuration import PROGRAM_COLUMNS, Config
from ..schedule.named import Schedule

# FLOPs that good kernels reach while a byte is moved, from data sheets: 101 (A100) to 192 (H100).
# It is nearer to the newer card and decides between two forms of one result, never accuracy. A CPU
# is absent: its products are bound by arithmetic, and its passes over X are fused or in the cache.
FLOPS_A_BYTE = {"cuda": 180}

Tiles = tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]


def frozen(tiles: Mapping[str, Mapping[str, Any]]) -> Tiles:
    """Return the tiles of some kernels as pairs, which a cache can take for a key."""
    return tuple((kind, tuple(config.items())) for kind, config in tiles.items())


class Request(NamedTuple):
    """What is asked of the engine, checked and resolved.

    Attributes:
        method: See `orthogonalize`; or "torch_muon" for a bare triple of coefficients.
        schedule: The steps, or None: the plan's own.
        accuracy: See `orthogonalize`, likewise below.
        eps: Floor of the norm.
        dtype: Arithmetic of the iteration.
        smoothing: Unit of the singular values.
        tolerance: Relative size of a singular value that counts as zero.
        restarts: Of the Gram form, default those that it needs.
        tiles: Of the kernels, none for the plan's own.
    """

    method: str
    schedule: Schedule | None
    accuracy: str
    eps: float
    dtype: torch.dtype | None
    smoothing: float
    tolerance: float | None
    restarts: tuple[int, ...] | None = None
    tiles: Tiles = ()


@dataclass(frozen=True)
class Plan:
    """What will be run for a batch of matrices; print it.

    Attributes:
        shape: (short side, long side).
        batch: Number of matrices.
        dtype: Of the arithmetic.
        device: "cpu" or "cuda".
        accuracy: One of `ACCURACIES`.
        schedule: The steps.
        form: "direct" or "gram".
        restarts: Of the Gram form.
        one_launch: Whether a single kernel does all of it, after one that reads long rows.
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
    schedule: Schedule
    form: str
    restarts: tuple[int, ...] = ()
    one_launch: bool = False
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

    def flops(self) -> int:
        """Count the FLOPs of the batch, symmetric results counted half."""
        n, m = self.shape
        return self.batch * self.schedule.flops(n, m, form=self.form, restarts=self.restarts)

    def traffic(self) -> tuple[int, int]:
        """Count bytes moved by the products of the batch, and their launches."""
        n, m = self.shape
        if self.one_launch:
            return self.batch * self.dtype.itemsize * 3 * n * m, 1 + (m > PROGRAM_COLUMNS)
        segments, small = self.schedule.products(self.form, self.restarts)
        elements = segments * (3 * n * m + 2 * n * n) + small * 3 * n * n
        return self.batch * self.dtype.itemsize * elements, 2 * segments + small

    def work(self) -> int:
        """Count FLOPs, and bytes as the FLOPs that could be done meanwhile."""
        n, m = self.shape
        moved, _ = self.traffic()
        if self.dtype == torch.float16:
            moved += self.batch * 6 * n * m  # two passes more, see `normalize.prescale`
        return self.flops() + FLOPS_A_BYTE.get(self.device, 0) * moved

    def __str__(self) -> str:
        n, m = self.shape
        moved, launches = self.traffic()
        restarts = f", restart before {self.restarts}" if self.restarts else ""
        lines = [
            f"{self.batch} x ({n}, {m}) on {self.device}, {str(self.dtype)[6:]}, "
            f"accuracy {self.accuracy}" + (", one launch" if self.one_launch else ""),
            f"  {self.form}{restarts}, {self.flops() / 1e9:.3f} GFLOP, "
            f"{moved / 1e6:.1f} MB, {launches} products\n    {self.schedule}",
        ]
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
