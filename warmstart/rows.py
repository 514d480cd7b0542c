"""One target: its factors or new values, and the row that the report says about it."""

from __future__ import annotations

import torch
from torch import Tensor

from specgd_common.tensors import is_dtensor

from .direction import GradientDirection, Half
from .factors import (
    accumulation_dtype,
    factors_from_cosine,
    magnitude_cosine,
    product_cosine,
    sum_over,
    unit_cosine,
)
from .ranks import full, local_factor
from .report import ParameterRow
from .targets import Target

Directions = GradientDirection | Half


def shrink_target(
    t: Target,
    direction: GradientDirection,
    floor: float,
    zero_gradient: str,
    fixed: float | None = None,
) -> tuple[Tensor, ParameterRow]:
    """Factors of one target (all ``fixed``, if given), and what the report says about them."""
    cosine, null = target_cosine(t, direction), target_cosine(t, direction, shuffle=True)
    g, w = t.view(combined(t, direction)), t.view(t.parameter.detach())
    silent = full(sum_over(g.abs(), t.dims)) == 0
    if t.direction_of is not None:
        silent = cosine == 0
    no_signal = silent if zero_gradient == "keep" else None
    s = factors_from_cosine(cosine, floor, no_signal=no_signal)
    s_null = factors_from_cosine(null, floor, no_signal=no_signal)
    if fixed is not None:
        s, s_null, floor = torch.full_like(s, fixed), torch.full_like(s, fixed), fixed
    halves = direction.halves()
    square = full(sum_over(w.to(s.dtype) ** 2, t.dims))
    before, after = float(square.sum().sqrt()), float((square * s * s).sum().sqrt())
    norm = direction.norms.follows.get(t.module) if t.kind.endswith("weight") else None
    row = ParameterRow(
        name=t.name,
        aliases=t.aliases,
        kind=t.kind,
        shape=tuple(t.parameter.shape),
        unit=t.unit,
        units=s.numel(),
        unit_size=t.parameter.numel() // s.numel(),
        floor=floor,
        share_at_floor=float((s == floor).float().mean()),
        mean_factor=float(s.mean()),
        median_factor=float(s.median()),
        mean_cosine=float(cosine.mean()),
        mean_abs_cosine=float(cosine.abs().mean()),
        null_share_at_floor=float((s_null == floor).float().mean()),
        null_mean_factor=float(s_null.mean()),
        null_mean_cosine=float(null.mean()),
        null_mean_abs_cosine=float(null.abs().mean()),
        norm_before=before,
        norm_after=after,
        norm_follows=norm,
        effective_lr=(before / after) ** 2 if norm is not None and after > 0 else None,
        reliability=None if halves is None or fixed is not None else agreement(t, *halves),
        zero_gradient=int(silent.sum()),
        zero_weight=int((square == 0).sum()),
    )
    return s, row


def agreement(t: Target, one: Directions, other: Directions) -> float | None:
    """Correlation over units between the cosines of two directions; None where it is undefined."""
    a, b = (target_cosine(t, d).flatten().double() for d in (one, other))
    a, b = a - a.mean(), b - b.mean()
    length = float(a.norm() * b.norm())
    return float(a @ b) / length if a.numel() >= 3 and length > 0 else None


def target_cosine(t: Target, direction: Directions, shuffle: bool = False) -> Tensor:
    """Cosine of every unit of one target with its direction (or with a shuffled direction)."""
    g = combined(t, direction)
    if shuffle:
        g = shuffled(g)
    if t.product_with is not None:
        return product_cosine(full(t.parameter.detach()), full(t.product_with[1].detach()), full(g))
    if t.direction_of is not None:
        name, v = t.direction_of
        d_v = direction[name]
        return full(magnitude_cosine(t.parameter, v, g, shuffled(d_v) if shuffle else d_v))
    return full(unit_cosine(t.view(t.parameter), t.view(g), t.dims))


def combined(t: Target, direction: Directions) -> Tensor:
    """A target's direction; gradients that reached the same memory under other names are added."""
    g = direction[t.name]
    for name, _ in t.tied:
        g = g + direction[name]
    return g


def shuffled(g: Tensor, seed: int = 0) -> Tensor:
    """``g`` with its entries in another order, by its own generator: what chance looks like."""
    if is_dtensor(g):
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(
            shuffled(g.to_local(), seed),
            g.device_mesh,
            g.placements,
            run_check=False,
            shape=g.shape,
            stride=g.stride(),
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(g.numel(), generator=generator).to(g.device)
    return g.reshape(-1)[order].reshape(g.shape)


def factor_row(t: Target, s: Tensor, floor: float) -> ParameterRow:
    """Report row of a target that was multiplied by factors ``s`` (broadcast against its view)."""
    w = t.view(whole(t.parameter))
    return ParameterRow(
        name=t.name,
        aliases=t.aliases,
        kind=t.kind,
        shape=tuple(t.parameter.shape),
        unit=t.unit,
        units=s.numel(),
        unit_size=t.parameter.numel() // s.numel(),
        floor=floor,
        share_at_floor=float((s <= floor).float().mean()),
        mean_factor=float(s.mean()),
        norm_before=float(w.norm()),
        norm_after=float((w * s).norm()),
    )


def add_value(t: Target, new: Tensor, values: dict[str, Tensor]) -> ParameterRow:
    """Note this rank's part of a new value; return the report row (the factor is a ratio of norms).

    One parameter at a time is whole; what is kept is only this rank's part.
    """
    before, after = float(whole(t.parameter).norm()), float(new.norm())
    values[t.name] = local_factor(t.parameter, new).contiguous()
    return ParameterRow(
        name=t.name,
        aliases=t.aliases,
        kind=t.kind,
        shape=tuple(t.parameter.shape),
        unit="tensor",
        units=1,
        unit_size=t.parameter.numel(),
        floor=0.0,
        share_at_floor=0.0,
        mean_factor=after / before if before else 1.0,
        norm_before=before,
        norm_after=after,
    )


def whole(x: Tensor) -> Tensor:
    """A copy of all of ``x`` (gathered if it is distributed) in the accumulation precision."""
    x = full(x.detach())
    return x.to(accumulation_dtype(x), copy=True)
