"""Inverse roots of positive matrices by the coupled iteration, written over `Products`.

A step multiplies Z by h(M) and M by h(M)^r, M = Z^r A all along. Where ``s h(s^r)`` brings every
s in an interval to one, as the steps of a schedule do, M goes to I and Z to A^(-1/r).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..schedule.schedule import Schedule
from .iteration import step_polynomial
from .normalize import largest_entry
from .products import Products, scale_members


def inverse_root_of(a: Tensor, schedule: Schedule, ops: Products) -> Tensor:
    """Return ``A^(-1/r)`` of (b, n, n), r the schedule's root; zero where A is zero.

    Args:
        a: Symmetric, positive semidefinite, in the dtype of the arithmetic; any scale.
        schedule: From `design_schedule` with `root`.
        ops: The products.
    """
    root = schedule.root
    scale = largest_entry(a)
    m = a / scale
    # The Schatten-4 norm of A lies closer above its largest eigenvalue than the Frobenius norm.
    u = ops.symmetric(m, m)
    bound = _norm(u).sqrt()
    bound = bound + (bound == 0)
    scale_members(m, bound.reciprocal())
    z: Tensor | None = None
    for k, step in enumerate(schedule.coefficients):
        h = step_polynomial(m, step, ops)
        # H and Z commute only up to rounding: their product is computed whole.
        z = h if z is None else ops.apply(h, z)
        if k < len(schedule) - 1:
            for _ in range(root.bit_length() - 2):
                h = ops.symmetric(h, h)
            m = ops.symmetric(h, ops.symmetric(m, h))
    assert z is not None  # a schedule has steps
    z = (z + z.mT) / 2
    factor = (bound * scale.to(bound.dtype)) ** (-1 / root)
    zero = (a == 0).all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    return torch.where(zero, 0.0, scale_members(z, factor))


def _norm(u: Tensor) -> Tensor:
    wide = torch.promote_types(u.dtype, torch.float32)
    return torch.linalg.vector_norm(u, dim=(-2, -1), keepdim=True, dtype=wide)
