"""Several batches in one call, on a CPU: matrices of one short side share their iteration.

The Gram matrices of LoRA factors of one rank are of one size, however long the factors are. Their
iteration is a few dozen products so small that the calls are what takes the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .engine import check_out, orthogonalize
from .iteration import carried_polynomial
from .normalize import first_bound, in_range, normalize_gram, rescaled
from .planning import SMALL, plan
from .precision import full_float32
from .products import TorchProducts, scale_members
from .schedules import Schedule

__all__ = ["orthogonalize_together"]


def orthogonalize_together(xs: Sequence[Tensor], outs: Sequence[Tensor], **options: Any) -> None:
    """Do ``orthogonalize(x, out=out, **options)`` for several batches.

    Args:
        xs: (b, m, n) each, on a CPU.
        outs: Where the results go, of the same shapes, see `orthogonalize`; each its own x, or
            memory that none of xs has a part in.
        **options: Of `orthogonalize`.

    Example:
        >>> a, b = torch.randn(3, 8, 20), torch.randn(2, 30, 8)
        >>> results = [torch.empty_like(a), torch.empty_like(b)]
        >>> orthogonalize_together([a, b], results)
        >>> torch.allclose(results[1], orthogonalize(b), atol=1e-5)
        True
    """
    alike: dict[tuple[Schedule | None, int], list[tuple[Tensor, Tensor]]] = {}
    for x, out in zip(xs, outs, strict=True):
        schedule = _shared_schedule(x, out, options)
        alike.setdefault((schedule, min(x.shape[-2:])), []).append((x, out))
    for (schedule, _), pairs in alike.items():
        if schedule is not None and len(pairs) > 1:
            _share(pairs, schedule)
            continue
        for x, out in pairs:
            orthogonalize(x, out=out, **options)


def _shared_schedule(x: Tensor, out: Tensor, options: dict[str, Any]) -> Schedule | None:
    """Return the schedule of a batch whose iteration needs nothing but its Gram matrices.

    None for all else: `orthogonalize` knows what to do with it, or what is wrong with it.
    """
    own = options.get("method", "auto"), options.get("dtype") or x.dtype
    if own != ("auto", torch.float32) or options.keys() - {"method", "accuracy", "dtype", "eps"}:
        return None
    if not options.get("eps", 1.0) > 0:
        return None
    # Subclasses, such as tensors without data, know the operator, but not its inside.
    plain = type(x) is type(out) is Tensor and x.device.type == "cpu" and x.ndim == 3
    if not plain or x.dtype != torch.float32 or not 0 < min(x.shape) <= min(x.shape[-2:]) <= SMALL:
        return None
    check_out(out, x)
    if out.data_ptr() == x.data_ptr():
        return None  # X is what the Gram form reads last
    chosen = plan(tuple(x.shape[-2:]), len(x), accuracy=options.get("accuracy", "default"))
    leg = chosen.legs[-1]
    carried = len(chosen.legs) == 1 and leg.form == "gram" and not leg.restarts
    return leg.schedule if carried else None


def _share(pairs: Sequence[tuple[Tensor, Tensor]], schedule: Schedule) -> None:
    """Run the Gram form on all batches, in float32, with one iteration."""
    wide = [tuple(t.mT if t.shape[1] > t.shape[2] else t for t in pair) for pair in pairs]
    xs, outs = ([pair[i] for pair in wide] for i in range(2))
    ops, counts, n = TorchProducts(), [len(x) for x in xs], xs[0].shape[1]
    r = torch.empty(sum(counts), n, n, device="cpu", dtype=torch.float32)
    parts = r.split(counts)
    with full_float32(r.device):
        for x, part in zip(xs, parts, strict=True):
            torch.bmm(x, x.mT, out=part)
        bound = first_bound(r, schedule.normalization)
        lost = ~in_range(bound)
        if bool(lost.any()):
            some = zip(xs, parts, lost.split(counts), strict=True)
            xs = [rescaled(x, x, part, at, ops) if bool(at.any()) else x for x, part, at in some]
            bound = first_bound(r, schedule.normalization)
        u, _, factor = normalize_gram(r, bound, schedule.normalization, ops, look=True)
        q = scale_members(carried_polynomial(r, schedule.coefficients, ops, u), factor)
        for x, part, out in zip(xs, q.split(counts), outs, strict=True):
            ops.apply(part, x, out)
