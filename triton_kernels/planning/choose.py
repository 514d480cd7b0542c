"""Which schedule, form and precision an orthogonalization takes, and what that costs.

A plan is a pure function of the shape, the batch, the dtype, the device and the accuracy, so
it is cached, can be printed before anything runs, and any part of it can be overridden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from ..kernels.configuration import (
    ARCHITECTURES,
    OLD,
    SERVED,
    Config,
    has_bfloat16,
    has_table,
    small_config,
    tables_of,
    tiles_of_plan,
)
from ..schedule.named import SCHEDULES, Schedule, ScheduleLike, resolve_schedule
from .plan import Plan, Tiles, frozen

ACCURACIES = ("default", "fast", "high")
FORMS = ("direct", "gram")

# Short sides up to here run in float32 (LoRA factors keep their accuracy, 16 bits gain nothing)
# and, on a GPU, in the one-launch kernel.
SMALL = 64
# Steps up to which their coefficients are arguments of one kernel.
UNROLLED = 16


def cpu_multiplies_bf16() -> bool:
    """Say whether the CPU has instructions for bfloat16 products (AVX512_BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def arithmetic_dtype(
    dtype: torch.dtype, short: int, device: str, direct: bool, arch: str | None = None
) -> torch.dtype:
    """Return the dtype in which the iteration runs when the caller leaves it open.

    float64 input stays float64. Short sides up to 64 run in float32. Above, a GPU takes
    bfloat16 in the direct form, if it has it, and float16 in the Gram form; a CPU takes bfloat16
    if it has instructions for it, and float32 otherwise; other devices take bfloat16.

    Args:
        dtype: Of the input.
        short: The shorter side.
        device: "cpu", "cuda", "xpu" or "mps".
        direct: Whether the direct form runs.
        arch: The GPU's, if it is known.
    """
    if dtype == torch.float64:
        return torch.float64
    if short <= SMALL:
        return torch.float32
    if device == "cuda":
        wide = direct and (arch is None or has_bfloat16(arch))
        return torch.bfloat16 if wide else torch.float16
    taken = device in ("xpu", "mps") or (device == "cpu" and cpu_multiplies_bf16())
    return torch.bfloat16 if taken else torch.float32


def schedule_of(accuracy: str, short: int) -> Schedule:
    """Return the steps of an accuracy, the same on every device, for every dtype and long side.

    "default" is "deep": it lifts small singular values at least as far as five Polar Express steps,
    with less ripple and fewer products. "fast" is "flat", which needs fewer still and leaves
    singular values below a hundredth of the Schatten-8 norm behind; up to `SMALL` rows one launch
    does all and forms no such norm, so they stay with "deep". "high" is "polar_express_8", which
    leaves nothing but rounding.

    Args:
        accuracy: One of `ACCURACIES`.
        short: The shorter side.

    Example:
        >>> schedule_of("default", 768).name
        'deep'
    """
    if accuracy == "high":
        return SCHEDULES["polar_express_8"]
    return SCHEDULES["flat" if accuracy == "fast" and short > SMALL else "deep"]


@lru_cache(maxsize=512)
def planned(
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
    """Return the plan for checked and resolved arguments of `plan`; it is made once."""
    steps = schedule or schedule_of(accuracy, n)
    if steps.weights and form == "gram":
        raise ValueError(f"schedule must have no weights for the Gram form, got {steps.weights}")

    def in_form(form: str) -> Plan:
        own = arithmetic or arithmetic_dtype(dtype, n, device, form == "direct", arch)
        needed = steps.restarts(torch.finfo(own).eps / 2) if restarts is None else restarts
        again = () if form == "direct" else needed
        return Plan((n, m), batch, own, device, accuracy, steps, form, again)

    # A weighted sum needs what X becomes after each step, which the Gram form never has.
    forms = ("direct",) if steps.weights else FORMS
    chosen = min(map(in_form, forms if form is None else (form,)), key=Plan.work)
    one_launch = (
        device == "cuda" and n <= SMALL and chosen.dtype == torch.float32
        and steps.normalization != "schatten8" and len(steps) <= UNROLLED
        and all(len(step) != 4 for step in steps.steps) and not steps.weights
    )  # fmt: skip
    found: dict[str, Config] = {}
    if arch is not None and has_table(arch) and one_launch:
        found = {"small": small_config(arch, n)}
    elif arch is not None:
        found = tiles_of_plan(arch, batch, n, m, chosen.dtype.itemsize)
    return replace(chosen, one_launch=one_launch, arch=arch, tiles=_overridden(found, wanted))


def forget_plans() -> None:
    """Make plans anew from now on, as a table of tiles has changed."""
    planned.cache_clear()


def _overridden(found: dict[str, Config], wanted: Tiles) -> Tiles:
    for kind, changes in wanted:
        known = found.get(kind, {})
        if kind not in found or {key for key, _ in changes} - known.keys():
            accepted = {k: sorted(config) for k, config in found.items()}
            raise ValueError(f"tiles has {kind!r}: {dict(changes)}; this plan takes {accepted}")
        found[kind] = known | dict(changes)
    return frozen(found)


def plan(
    shape: tuple[int, ...],
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    accuracy: str = "default",
    *,
    schedule: ScheduleLike = None,
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
            ripple; "fast" serves matrices whose singular values lie above a hundredth of the
            Schatten-8 norm; "high" leaves the rounding of the dtype.
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
        >>> plan((768, 3072), batch=12).schedule.name
        'deep'
    """
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"shape must have two positive sides or more, got {tuple(shape)}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    if accuracy not in ACCURACIES:
        raise ValueError(f"accuracy must be one of {ACCURACIES}, got {accuracy!r}")
    if form is not None and form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, got {form!r}")
    n, m = sorted(shape[-2:])
    kind = torch.device(device).type
    if kind != "cuda" and (arch or tiles):
        raise ValueError(f"arch and tiles must be left out but for a GPU, got them for {kind!r}")
    arch = arch if arch is None else SERVED.get(arch, arch)
    if arch is not None and arch not in (*ARCHITECTURES, *OLD):
        raise ValueError(f"arch must be one of {(*ARCHITECTURES, *SERVED, *OLD)}, got {arch!r}")
    own, table = tables_of(torch.device(device))
    return planned(
        n, m, batch * math.prod(shape[:-2]), dtype, kind, accuracy,
        None if schedule is None else resolve_schedule(schedule), form, arithmetic,
        None if restarts is None else tuple(restarts), arch or own, frozen(tiles) if tiles else (),
        table,
    )  # fmt: skip
