"""One target after the other: its factors or new values, and the row that the report says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from specgd_common.tensors import full, is_dtensor, norm64

from ..direction.gradient_direction import Direction
from ..targets.find import Target
from .factors import (
    accumulation_dtype,
    factors_from_cosine,
    magnitude_cosine,
    product_cosine,
    sum_over,
    unit_cosine,
)
from .floors import auto_floors, chained_biases
from .report import ParameterRow


def shrink_targets(
    targets: Sequence[Target],
    direction: Direction,
    floor: float | str,
    zero_gradient: str,
) -> tuple[dict[str, Tensor], list[ParameterRow]]:
    """Return the factors of every target by name, and the report's rows."""
    auto = isinstance(floor, str)
    floors = auto_floors(targets, direction.norms) if isinstance(floor, str) else {}
    done: dict[str, tuple[Tensor, ParameterRow]] = {}
    with torch.no_grad():
        for t in targets:
            own = floors.get(t.name, floor)
            done[t.name] = shrink_target(t, direction, float(own), zero_gradient)
        if auto:
            rows = {name: row for name, (_, row) in done.items()}
            fixed = chained_biases(targets, rows, direction.norms)
            for t in targets:
                if t.name in fixed:
                    f = fixed[t.name]
                    done[t.name] = shrink_target(t, direction, f, zero_gradient, fixed=f)
    return {name: s for name, (s, _) in done.items()}, [row for _, row in done.values()]


def shrink_target(
    t: Target,
    direction: Direction,
    floor: float,
    zero_gradient: str,
    fixed: float | None = None,
) -> tuple[Tensor, ParameterRow]:
    """Return factors of one target (all ``fixed``, if given), and what the report says of them."""
    cosine = target_cosine(t, direction.average)
    null = target_cosine(t, direction.average, shuffle=True)
    silent = cosine == 0
    if t.direction_of is None:
        silent = full(sum_over(t.view(_combined(t, direction.average)).abs(), t.dims)) == 0
    no_signal = silent if zero_gradient == "keep" else None
    s = factors_from_cosine(cosine, floor, no_signal=no_signal)
    s_null = factors_from_cosine(null, floor, no_signal=no_signal)
    if fixed is not None:
        s, s_null = torch.full_like(s, fixed), torch.full_like(s, fixed)
    square = full(sum_over(t.view(t.parameter.detach()).to(s.dtype) ** 2, t.dims))
    before, after = (float(x.sum(dtype=torch.float64).sqrt()) for x in (square, square * s * s))
    norm = direction.norms.follows.get(t.module) if t.kind.endswith("weight") else None
    halves = direction.halves
    row = _row(
        t,
        s,
        floor,
        before,
        after,
        median_factor=float(s.median()),
        mean_cosine=float(cosine.mean()),
        mean_abs_cosine=float(cosine.abs().mean()),
        null_share_at_floor=float((s_null == floor).float().mean()),
        null_mean_factor=float(s_null.mean()),
        null_mean_cosine=float(null.mean()),
        null_mean_abs_cosine=float(null.abs().mean()),
        norm_follows=norm,
        effective_lr=(before / after) ** 2 if norm is not None and after > 0 else None,
        reliability=None if halves is None or fixed is not None else agreement(t, *halves),
        zero_gradient=int(silent.sum()),
        zero_weight=int((square == 0).sum()),
    )
    return s, row


def _row(
    t: Target, s: Tensor, floor: float, before: float, after: float, **seen: object
) -> ParameterRow:
    """Return a report row: what every method knows of a target, and what this one has seen."""
    return ParameterRow(
        name=t.name,
        aliases=t.aliases,
        kind=t.kind,
        shape=tuple(t.parameter.shape),
        units=s.numel(),
        unit_size=t.parameter.numel() // s.numel(),
        floor=floor,
        share_at_floor=float((s <= floor).float().mean()),
        mean_factor=float(s.mean()),
        norm_before=before,
        norm_after=after,
        **{"unit": t.unit, **seen},  # type: ignore[arg-type]
    )


def agreement(t: Target, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float | None:
    """Return the correlation over units between the cosines of two directions, where defined."""
    a, b = (target_cosine(t, d).flatten().double() for d in (one, other))
    a, b = a - a.mean(), b - b.mean()
    length = float(a.norm() * b.norm())
    return float(a @ b) / length if a.numel() >= 3 and length > 0 else None


def target_cosine(t: Target, average: Mapping[str, Tensor], shuffle: bool = False) -> Tensor:
    """Return the cosine of every unit with its direction (or with a shuffled direction)."""
    g = _combined(t, average)
    if shuffle:
        g = shuffled(g)
    if t.product_with is not None:
        return product_cosine(full(t.parameter.detach()), full(t.product_with[1].detach()), full(g))
    if t.direction_of is not None:
        name, v = t.direction_of
        d_v = average[name]
        return full(magnitude_cosine(t.parameter, v, g, shuffled(d_v) if shuffle else d_v))
    return full(unit_cosine(t.view(t.parameter), t.view(g), t.dims))


def _combined(t: Target, average: Mapping[str, Tensor]) -> Tensor:
    """Return a direction, with gradients that reached the same memory by other names added."""
    g = average[t.name]
    for name, _ in t.tied:
        g = g + average[name]
    return g


def shuffled(g: Tensor, seed: int = 0) -> Tensor:
    """Return ``g`` with its entries in another order: what chance looks like."""
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
    """Return the row of a target that is multiplied by ``s`` (broadcast against its view)."""
    w = t.view(whole(t.parameter))
    return _row(t, s, floor, norm64(w), norm64(w * s))


def add_value(t: Target, new: Tensor, values: dict[str, Tensor]) -> ParameterRow:
    """Note this rank's part of a new value; return the row (the factor is a ratio of norms).

    One parameter at a time is whole; what is kept is only this rank's part.
    """
    before, after = norm64(whole(t.parameter)), norm64(new)
    values[t.name] = local_factor(t.parameter, new).contiguous()
    ratio = torch.tensor(after / before if before else 1.0, dtype=torch.float64)
    return _row(t, ratio, 0.0, before, after, unit="tensor")


def whole(x: Tensor) -> Tensor:
    """Return a copy of all of ``x`` (gathered if distributed) in the accumulation precision."""
    x = full(x.detach())
    return x.to(accumulation_dtype(x), copy=True)


def local_factor(parameter: Tensor, factor: Tensor) -> Tensor:
    """Return the rows of a full factor tensor that belong to this rank's part of a parameter."""
    if not is_dtensor(parameter):
        return factor
    from torch.distributed.tensor import DTensor, Replicate, Shard

    mesh = parameter.device_mesh
    everywhere = DTensor.from_local(factor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    # A dimension that the factor broadcasts over stays whole on every rank.
    placements = [
        p if isinstance(p, Shard) and factor.shape[p.dim] > 1 else Replicate()
        for p in parameter.placements
    ]
    return everywhere.redistribute(mesh, placements).to_local()
