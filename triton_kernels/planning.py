"""Which schedule, form and precision an orthogonalization takes, and what that costs.

A plan is a pure function of the shape, the batch, the dtype, the device and the accuracy, so
it is cached, can be printed before anything runs, and any part of it can be overridden.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from .kernels.configuration import (
    ENVIRONMENT,
    Config,
    architecture,
    small_config,
    tiles_of_plan,
)
from .plans import Leg, Plan, Tiles
from .products import cpu_has_amx
from .schedules import LONG, SCHEDULES, Schedule, resolve_schedule

__all__ = ["ACCURACIES", "Leg", "Plan", "plan"]

ACCURACIES = ("default", "training", "fast", "high")
FORMS = ("direct", "gram")

# Short sides up to here run in float32 (LoRA factors keep their accuracy, 16 bits gain nothing)
# and, on a GPU, in the one-launch kernel.
SMALL = 64
# Columns up to which one program takes a matrix from end to end; a longer one it would stream
# alone, beside idle processors.
STREAMED = 8192
# Rows from which on "flat" is worth a look: below, hardly a spectrum is flat enough (a Gaussian one
# of 330 x 1320 is, or of 560 x 560), and its bound costs four passes over n x n matrices.
FLAT_ROWS = 320
# The reach to be had at least: the slope at zero of five Polar Express steps with safety factor
# 1.02, 947.9, over the middle of their outputs, 0.976.
REACH = 971.2


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
    if form == "direct" or schedule.long:
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
    if device == "cpu" and short >= FLAT_ROWS:
        # AMX multiplies so fast that the passes and the look at the result cost what is saved.
        between = LONG if accuracy == "training" and not cpu_has_amx() else ()
        return SCHEDULES["flat"], *between, SCHEDULES["deep"]
    return (SCHEDULES["deep"],)


@lru_cache(maxsize=32)
def _needed_flatness(schedule: Schedule) -> float:
    """Return the ratio of the Frobenius norm to the bound from which a schedule reaches as far."""
    low, high = schedule.range()
    return REACH / schedule.slope * (low + high) / 2


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
    arch: str | None,
    wanted: Tiles,
    table: str | None,
) -> Plan:
    chosen = (schedule,) if schedule else _schedules(accuracy, n, device)
    # Wide matrices on a GPU take the Gram form in float16, square ones the direct in bfloat16.
    carried = Leg(chosen[-1], "gram", chosen[-1].restarts(torch.finfo(torch.float16).eps / 2))
    wide = carried.work(n, m, torch.float16, device) < (
        Leg(chosen[-1], "direct").work(n, m, torch.bfloat16, device)
    )
    direct = form == "direct" or (form is None and not wide)
    own = arithmetic or arithmetic_dtype(dtype, n, device, direct)
    if schedule is None and (own != torch.bfloat16 or form == "gram"):
        # In float32 the Gram form of the other legs is cheaper, or as good.
        chosen = tuple(s for s in chosen if not s.long)
    legs = [_leg(s, n, m, own, device, form, restarts) for s in chosen]
    for k, leg in enumerate(legs[:-1]):
        legs[k] = replace(leg, flatness=_needed_flatness(leg.schedule))
    last = legs[-1].schedule
    one_launch = device == "cuda" and n <= SMALL and m <= STREAMED and own == torch.float32
    one_launch = one_launch and all(len(step) != 4 for step in last.coefficients)
    one_launch = one_launch and last.normalization != "schatten8"
    found: dict[str, Config] = {}
    if arch is not None:
        found = (
            {"small": small_config(arch, n)}
            if one_launch
            else (tiles_of_plan(arch, batch, n, m, own.itemsize))
        )
    tiles = _overridden(found, wanted)
    return Plan((n, m), batch, own, device, accuracy, tuple(legs), one_launch, arch, tiles)


def _overridden(found: dict[str, Config], wanted: Tiles) -> Tiles:
    for kind, changes in wanted:
        known = found.get(kind, {})
        if kind not in found or {key for key, _ in changes} - known.keys():
            accepted = {k: sorted(config) for k, config in found.items()}
            raise ValueError(f"tiles has {kind!r}: {dict(changes)}; this plan takes {accepted}")
        found[kind] = known | dict(changes)
    return _frozen(found)


def _frozen(tiles: Mapping[str, Mapping[str, Any]]) -> Tiles:
    return tuple((kind, tuple(config.items())) for kind, config in tiles.items())


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
    arch: str | None = None,
    tiles: Mapping[str, Mapping[str, Any]] | None = None,
) -> Plan:
    """Choose schedule, form, precision and tiles by counted FLOPs and bytes.

    Args:
        shape: (..., rows, columns); leading dimensions multiply `batch`.
        batch: Number of matrices, default 1.
        dtype: Of the input, default float32.
        device: "cpu", "cuda" or a device.
        accuracy: "default" reaches at least as far as five Polar Express steps with a smaller
            ripple; "training", which `Muon` takes, reaches as far with as much, in two steps
            instead of three for large matrices on a CPU with AVX512_BF16 and no AMX; "fast" serves
            matrices whose singular values lie above a hundredth of the Schatten-8 norm; "high"
            leaves the rounding of the dtype.
        schedule: Instead of the accuracy's own: anything `resolve_schedule` takes.
        form: "direct" or "gram" instead of the cheaper one.
        arithmetic: Dtype of the iteration instead of the rule's.
        restarts: Of the Gram form, instead of those that it needs (`Schedule.restarts`).
        arch: Whose tiles, one of `kernels.configuration.ARCHITECTURES`; default that of the
            GPU, if the plan is for one and there is one.
        tiles: What to change in them, ``{"apply": {"BLOCK_M": 64}}``; print the plan to see them.

    Returns:
        The plan; `orthogonalize(x, plan=...)` runs it.

    Raises:
        ValueError: For an empty shape, a batch below 1, unknown names, or tiles of a kernel that
            the plan does not run.

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
    if own is not None and own.long:
        # By themselves, without a look at what comes out: bfloat16 sends some matrices to 1e20.
        arithmetic = arithmetic or torch.promote_types(dtype, torch.float32)
        if kind != "cpu" or form == "gram" or restarts or arithmetic.itemsize < 4:
            raise ValueError(
                "steps of degree 33 and 65 run on a CPU, in the direct form, without restarts, in "
                f"float32 or float64; got {own.name!r} for {kind}, form {form!r}, {arithmetic}"
            )
    again = None if restarts is None else tuple(restarts)
    if kind == "cuda" and arch is None and torch.cuda.is_available():
        arch = architecture(torch.device(device))
    if kind != "cuda" and (arch or tiles):
        raise ValueError(f"arch and tiles are for plans of a GPU, got them for {kind}")
    # The table that the environment names is part of the key, so that another one is read.
    wanted, table = _frozen(tiles or {}), os.environ.get(ENVIRONMENT)
    return _plan(
        n, m, batch, dtype, kind, accuracy, own, form, arithmetic, again, arch, wanted, table
    )  # fmt: skip
