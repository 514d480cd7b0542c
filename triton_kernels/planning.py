"""Which schedule, form and precision an orthogonalization takes, and what that costs.

A plan is a pure function of the shape, the batch, the dtype, the device and the accuracy, so
it is cached, can be printed before anything runs, and any part of it can be overridden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from .schedules import SCHEDULES, Schedule, resolve_schedule

__all__ = ["ACCURACIES", "Leg", "Plan", "plan"]

ACCURACIES = ("default", "fast", "high")
FORMS = ("direct", "gram")

# Short sides up to here run in float32 (LoRA factors keep their accuracy, 16 bits gain nothing)
# and, on a GPU, in the one-launch kernel.
SMALL = 64
# Columns up to which one program takes a matrix from end to end; a longer one it would stream
# alone, beside idle processors.
STREAMED = 8192
# Slope at zero of five Polar Express steps with safety factor 1.02: the reach to be had at least.
REACH = 947.9

# FLOPs that good kernels reach while a byte is moved: 101 (A100) to 192 (H100). A CPU's products
# are bound by arithmetic, and its passes over X are fused or in the cache.
FLOPS_A_BYTE = {"cuda": 180}


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
    """

    shape: tuple[int, int]
    batch: int
    dtype: torch.dtype
    device: str
    accuracy: str
    legs: tuple[Leg, ...]
    one_launch: bool

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
            restarts = f", restart before {leg.restarts}" if leg.restarts else ""
            size, launches = self.traffic(i)
            lines.append(
                f"  {when}: {leg.form}{restarts}, {self.flops(i) / 1e9:.3f} GFLOP, "
                f"{size / 1e6:.1f} MB, {launches} products\n    {leg.schedule}"
            )
        return "\n".join(lines)


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has instructions for bfloat16 products (AVX512_BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def arithmetic_dtype(dtype: torch.dtype, short: int, device: str, direct: bool) -> torch.dtype:
    """Return the dtype in which the iteration runs when the caller leaves it open.

    float64 input stays float64. Short sides up to 64 run in float32. Above, a GPU takes
    bfloat16 in the direct form and float16 in the Gram form, a CPU takes bfloat16 if it has
    instructions for it, and float32 otherwise.

    Args:
        dtype: Of the input.
        short: The shorter side.
        device: "cpu" or "cuda".
        direct: Whether the direct form runs.
    """
    if dtype == torch.float64:
        return torch.float64
    if short <= SMALL:
        return torch.float32
    if device == "cuda":
        return torch.bfloat16 if direct else torch.float16
    return torch.bfloat16 if device == "cpu" and cpu_multiplies_bf16() else torch.float32


def _leg(
    schedule: Schedule,
    n: int,
    m: int,
    dtype: torch.dtype,
    device: str,
    form: str | None,
    restarts: tuple[int, ...] | None,
) -> Leg:
    """Choose the form by counted FLOPs and bytes; the Gram form with the restarts it needs."""
    direct = Leg(schedule, "direct")
    if form == "direct":
        return direct
    if restarts is None:
        restarts = schedule.restarts(torch.finfo(dtype).eps / 2)
    carried = Leg(schedule, "gram", restarts)
    if form == "gram":
        return carried
    return min(direct, carried, key=lambda leg: leg.work(n, m, dtype, device))


def _schedules(accuracy: str, short: int, device: str) -> tuple[Schedule, ...]:
    if accuracy == "high":
        return (SCHEDULES["polar_express_8"],)
    if short <= SMALL:
        return (SCHEDULES["deep"],)
    if accuracy == "fast":
        return (SCHEDULES["flat"],)
    # Which leg a matrix takes is read from its norms; a GPU would have to wait for them.
    return (SCHEDULES["flat"], SCHEDULES["deep"]) if device == "cpu" else (SCHEDULES["deep"],)


@lru_cache(maxsize=512)
def _plan(
    n: int,
    m: int,
    batch: int,
    dtype: torch.dtype,
    device: str,
    accuracy: str,
    schedule: Schedule | None,
    form: str | None,
    arithmetic: torch.dtype | None,
    restarts: tuple[int, ...] | None,
) -> Plan:
    chosen = (schedule,) if schedule else _schedules(accuracy, n, device)
    # Wide matrices on a GPU take the Gram form in float16, square ones the direct in bfloat16.
    carried = Leg(chosen[-1], "gram", chosen[-1].restarts(torch.finfo(torch.float16).eps / 2))
    wide = carried.work(n, m, torch.float16, device) < (
        Leg(chosen[-1], "direct").work(n, m, torch.bfloat16, device)
    )
    direct = form == "direct" or (form is None and not wide)
    own = arithmetic or arithmetic_dtype(dtype, n, device, direct)
    legs = [_leg(s, n, m, own, device, form, restarts) for s in chosen]
    if len(legs) > 1:
        first = legs[0]
        legs[0] = Leg(first.schedule, first.form, first.restarts, REACH / first.schedule.slope)
    uniform = {len(step) for step in legs[-1].schedule.steps} in ({5}, {2}, {3}, {2, 3})
    one_launch = device == "cuda" and n <= SMALL and m <= STREAMED and uniform
    one_launch = one_launch and own == torch.float32
    one_launch = one_launch and legs[-1].schedule.normalization != "schatten8"
    return Plan((n, m), batch, own, device, accuracy, tuple(legs), one_launch)


def plan(
    shape: tuple[int, ...],
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    accuracy: str = "default",
    *,
    schedule: Any = None,
    form: str | None = None,
    arithmetic: torch.dtype | None = None,
    restarts: Sequence[int] | None = None,
) -> Plan:
    """Choose schedule, form and precision by counted FLOPs and bytes.

    Args:
        shape: (..., rows, columns); leading dimensions multiply `batch`.
        batch: Number of matrices, default 1.
        dtype: Of the input, default float32.
        device: "cpu", "cuda" or a device.
        accuracy: "default" reaches at least as far as five Polar Express steps with a smaller
            ripple; "fast" serves matrices whose singular values lie above a hundredth of the
            Schatten-8 norm; "high" leaves the rounding of the dtype.
        schedule: Instead of the accuracy's own: anything `resolve_schedule` takes.
        form: "direct" or "gram" instead of the cheaper one.
        arithmetic: Dtype of the iteration instead of the rule's.
        restarts: Of the Gram form, instead of those that it needs (`Schedule.restarts`).

    Returns:
        The plan; `orthogonalize(x, plan=...)` runs it.

    Raises:
        ValueError: For an empty shape, a batch below 1, or unknown names.

    Example:
        >>> plan((768, 3072), batch=12).legs[-1].schedule.name
        'deep'
    """
    if len(shape) < 2 or min(shape) < 1 or batch < 1:
        raise ValueError(f"shape needs two positive sides and batch at least 1: {shape}, {batch}")
    if accuracy not in ACCURACIES:
        raise ValueError(f"unknown accuracy {accuracy!r}; accepted: {ACCURACIES}")
    if form is not None and form not in FORMS:
        raise ValueError(f"unknown form {form!r}; accepted: {FORMS}")
    for size in shape[:-2]:
        batch *= size
    n, m = sorted(shape[-2:])
    own = None if schedule is None else resolve_schedule(schedule)
    kind = torch.device(device).type
    again = None if restarts is None else tuple(restarts)
    return _plan(n, m, batch, dtype, kind, accuracy, own, form, arithmetic, again)
