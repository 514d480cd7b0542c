"""A schedule: odd polynomials whose composition sends every singular value to one.

One step maps a singular value by ``p(s) = c0 s + c1 s^3 + c2 s^5 + ...``; on the matrix this
is ``X <- h(X X^T) X`` with ``h(r) = c0 + c1 r + c2 r^2 + ...``, so a step never touches the
singular vectors. A schedule is a finite list of such steps, and everything one wants to know
about it (range, reach, safety, cost) follows from the scalar map alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from .squares import Step, chain_of_squares

ROOTS = (2, 4, 8)
NORMALIZATIONS = ("frobenius", "schatten4", "schatten8")

# Products of n x n matrices that one step needs beyond the Gram matrix, by its coefficients: h has
# degree len(step) - 1; degrees 2, 4 and 8 are chains of one, two and three squares.
_SMALL_PRODUCTS = {2: 0, 3: 1, 4: 2, 5: 2, 9: 3}
# How far an eigenvalue of R that ought to be zero may grow within a segment of the Gram form. The
# largest singular value then rises by about a quarter of that, see docs/engine_tables.md.
_GROWTH = 0.12
# Outputs outside (0, _BOUND] count as lost: no schedule in use comes near this on [0, 1].
_BOUND = 1.5


@dataclass(frozen=True)
class Schedule:
    """A list of odd polynomial steps, with the facts that its scalar map implies.

    Each step maps ``s -> c0 s + c1 s^3 + ...``. With a safety factor the argument of every
    step but the last is divided by it, so that rounding which lifts a singular value slightly
    above one cannot reach the region where the step grows. Steps that were designed with headroom
    (`design_schedule`) have that room already, and need no factor.

    Args:
        name: How the schedule is called in tables and errors.
        steps: One tuple of 2 to 5 coefficients (degree 3 to 9) a step, or of 9 (degree 17) whose
            polynomial is a chain of squares; before the safety factor.
        safety: Factor of at least 1 (default 1.0: the steps as they are).
        lower: Smallest singular value, after normalization, that the design reaches.
        normalization: "frobenius", "schatten4" or "schatten8": the bound of the largest
            singular value by which the matrix is divided first.
        source: Where the numbers come from.
        headroom: What the largest input of each step may be exceeded by, as a factor; one for
            all steps or one a step. It is a fact about the steps, and changes nothing.

    Raises:
        ValueError: For no steps, a step of a wrong length or of degree 17 that three products
            cannot evaluate, or a safety factor below 1.

    Example:
        >>> from torch_specgd.triton_kernels import SCHEDULES
        >>> round(SCHEDULES["jordan"].slope)
        485
    """

    name: str
    steps: tuple[Step, ...]
    safety: float = 1.0
    lower: float = 1e-3
    normalization: str = "frobenius"
    source: str = ""
    headroom: float | tuple[float, ...] = 1.0
    root: int = 2
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError(f"schedule {self.name!r} has no steps")
        for step in self.steps:
            if len(step) not in _SMALL_PRODUCTS or not all(map(math.isfinite, step)):
                raise ValueError(
                    "a step has 2 to 5 finite coefficients (degree 3 to 9), or 9 (degree 17), "
                    f"got {step}"
                )
            # Dynamo cannot trace numpy here; a compiled step meets the error when it runs.
            if len(step) > 4 and not torch.compiler.is_compiling():
                chain_of_squares(step)
        if not self.safety >= 1.0:
            raise ValueError(f"safety must be at least 1, got {self.safety}")
        if self.normalization not in NORMALIZATIONS:
            raise ValueError(
                f"normalization must be one of {NORMALIZATIONS}, got {self.normalization!r}"
            )
        if self.weights and len(self.weights) != len(self.steps) + 1:
            raise ValueError(
                f"weights must be {len(self.steps) + 1} numbers, one more than steps, "
                f"got {self.weights}"
            )

    @cached_property
    def coefficients(self) -> tuple[Step, ...]:
        """The steps as they are applied: ``c_k / safety^(2k+1)`` on all but the last."""
        *head, last = self.steps
        powers = [self.safety ** (self.root * k + 1) for k in range(9)]
        divided = [tuple(c / p for c, p in zip(s, powers, strict=False)) for s in head]
        return (*divided, last)

    def __len__(self) -> int:
        return len(self.steps)

    def __call__(self, sigma: float | np.ndarray) -> np.ndarray:
        """Apply the composed scalar map in float64: what happens to a singular value."""
        found = self.iterates(sigma)
        return np.tensordot(self.weights, found, axes=1) if self.weights else found[-1]

    def iterates(self, sigma: float | np.ndarray) -> np.ndarray:
        """Return what becomes of a singular value: itself, and its image after each step."""
        found = [np.asarray(sigma, dtype=np.float64)]
        for step in self.coefficients:
            s = found[-1]
            found.append(s * np.polynomial.polynomial.polyval(s**self.root, step))
        return np.stack(found)

    @property
    def slope(self) -> float:
        """Derivative of the steps at zero: how much the tiniest singular values grow."""
        return math.prod(step[0] for step in self.coefficients)

    def range(self, lower: float | None = None, upper: float = 1.0) -> tuple[float, float]:
        """Return the smallest and largest output on ``[lower, upper]``.

        Args:
            lower: Left end, default the design's own.
            upper: Right end, default 1, which is where normalization puts the largest value.
        """
        left = self.lower if lower is None else lower
        values = self(np.geomspace(left, upper, 100_001))
        return float(values.min()), float(values.max())

    def reach(self, level: float = 0.7) -> float:
        """Return the smallest input from which on every output is at least `level`, or inf."""
        grid = np.geomspace(1e-8, 1.0, 200_001)
        below = np.flatnonzero(self(grid) < level)
        first = int(below[-1]) + 1 if below.size else 0
        return float(grid[first]) if first < grid.size else float("inf")

    @property
    def divergence_threshold(self) -> float:
        """Smallest input above one whose output leaves ``(0, 1.5]``: how much overshoot is safe."""
        grid = np.linspace(1.0, 3.0, 200_001)
        with np.errstate(over="ignore", invalid="ignore"):
            values = self(grid)
        lost = np.flatnonzero(~((values > 0) & (values <= _BOUND)))
        return float(grid[lost[0]]) if lost.size else float("inf")

    def flops(
        self,
        m: int,
        n: int,
        *,
        form: str = "direct",
        restarts: Sequence[int] = (),
        symmetric: bool = True,
    ) -> int:
        """Count the multiply-adds (two each) of one orthogonalization of an m x n matrix.

        Args:
            m: Rows.
            n: Columns.
            form: "direct" or "gram".
            restarts: Steps of the Gram form before which the Gram matrix is formed anew.
            symmetric: Count a symmetric result as half, which is what triangular kernels do.
        """
        short, long = min(m, n), max(m, n)
        half = 1 if symmetric else 2
        segments, small = self.products(form, restarts)
        general = 0 if form == "direct" else len(self) - segments
        cubes = half * (small - general) + 2 * general
        return segments * (half + 2) * short * short * long + cubes * short**3

    def products(self, form: str = "direct", restarts: Sequence[int] = ()) -> tuple[int, int]:
        """Return how often X is touched (a Gram matrix and a product each) and the n^3 products."""
        own = sum(_SMALL_PRODUCTS[len(step)] for step in self.steps)
        if form == "direct":
            return len(self), own
        segments = 1 + len(set(restarts) - {0})
        # Every step but a segment's last carries R along (two products) and Q (one, general).
        return segments, own + 3 * (len(self) - segments)

    def restarts(self, roundoff: float) -> tuple[int, ...]:
        """Return the steps before which the Gram form has to form R anew, as few as are safe.

        In R, what ought to be zero is off by a rounding, and a segment multiplies that by the
        square of its slope: a segment ends before the product reaches 0.12.

        Args:
            roundoff: Unit roundoff of the arithmetic, half the machine epsilon.

        Example:
            >>> from torch_specgd.triton_kernels import SCHEDULES
            >>> SCHEDULES["deep"].restarts(2**-11), SCHEDULES["deep"].restarts(2**-24)
            ((1, 2), ())
        """
        found, slope = [], 1.0
        for k, (first, *_) in enumerate(self.coefficients):
            slope *= first
            if k and slope**2 * roundoff > _GROWTH:
                found.append(k)
                slope = first
        return tuple(found)

    def _cost(self, form: str) -> str:
        segments, _ = self.products(form)
        cubes = self.flops(1, 1, form=form) - 3 * segments
        return f"{3 * segments} n^2 m" + (f" + {cubes} n^3" if cubes else "")

    def __str__(self) -> str:
        low, high = self.range()
        degrees = ",".join(str(2 * len(step) - 1) for step in self.steps)
        room = self.headroom if isinstance(self.headroom, tuple) else (self.headroom,)
        kept = f"safety {self.safety:g}"
        if max(room) > 1.0:
            kept = "headroom " + ",".join(f"{factor:g}" for factor in room)
        return (
            f"{self.name}: {len(self)} steps of degree {degrees}, {kept}, "
            f"{self.normalization}; [{self.lower:g}, 1] -> [{low:.4f}, {high:.4f}], "
            f"slope {self.slope:.4g}, diverges above {self.divergence_threshold:.4f}; "
            f"FLOPs {self._cost('direct')} direct"
            + (
                f", {self._cost('gram')} Gram (a restart + 3 n^2 m - 4 n^3)"
                if not self.weights
                else ""
            )
        )
