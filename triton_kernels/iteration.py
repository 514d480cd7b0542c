"""The Newton-Schulz iteration, written once over `Products`.

X is (b, n, m) with n <= m. A step of odd degree 2k+1 multiplies X by a
polynomial of degree k in R = X X^T, and both forms build that polynomial in the same way:

- direct: R is formed anew from X in every step, so rounding errors do not add up and 16-bit
  storage is safe;
- Gram: R is carried along instead (R <- W R W, all symmetric), X is touched once a segment;
  cheaper for wide matrices, and safe where R is kept in float32 (or fp16 with restarts).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .normalize import normalized_gram
from .products import Products
from .schedules import Schedule, Step

__all__ = ["direct", "gram", "quadratic_factors", "step_polynomial"]


@lru_cache(maxsize=256)
def quadratic_factors(step: Step) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """Write a degree-4 polynomial as ``c4 (r^2 + a1 r + b1)(r^2 + a2 r + b2)``.

    The factors stay of order one where the coefficients themselves reach 600 and cancel,
    which is why they survive 16-bit storage.

    Args:
        step: (c0, ..., c4), c4 not zero.

    Returns:
        c4, (a1, b1), (a2, b2), ordered by b.
    """
    roots = np.roots(np.asarray(step[::-1]))
    upper = [r for r in roots if r.imag > 1e-12]
    real = sorted(r.real for r in roots if abs(r.imag) <= 1e-12)
    pairs = [(-2 * r.real, abs(r) ** 2) for r in upper]
    # Real roots pair outermost with innermost: the quadratics stay balanced.
    pairs += [(-(real[i] + real[-1 - i]), real[i] * real[-1 - i]) for i in range(len(real) // 2)]
    first, second = sorted(((float(a), float(b)) for a, b in pairs), key=lambda p: abs(p[1]))
    return float(step[4]), first, second


def _plus_identity(x: Tensor, value: float) -> Tensor:
    """Add ``value I`` in place; `x` is always a fresh product."""
    x.diagonal(dim1=-2, dim2=-1).add_(value)
    return x


def _scaled_sum(terms: Sequence[tuple[float, Tensor]], dtype: torch.dtype) -> Tensor:
    """Return the sum of scalar times tensor, accumulated in float32 or wider."""
    wide = torch.promote_types(dtype, torch.float32)
    (scale, first), *rest = terms
    total = first.to(wide) * scale
    for scale, x in rest:
        total.add_(x.to(wide), alpha=scale)
    return total.to(dtype)


def step_polynomial(r: Tensor, step: Step, ops: Products) -> Tensor:
    """Return ``h(R) = c0 I + c1 R + c2 R^2 + ...`` as a fresh symmetric matrix.

    Args:
        r: (b, n, n), symmetric.
        step: 2 to 5 coefficients.
        ops: The products.
    """
    if len(step) == 2:
        h = _scaled_sum([(step[1], r)], r.dtype)
    elif len(step) == 3:
        h = ops.symmetric(r, r, r, alpha=step[2], beta=step[1])
    elif len(step) == 4:
        u = ops.symmetric(r, r)
        v = _plus_identity(_scaled_sum([(step[2], r), (step[3], u)], r.dtype), step[1])
        h = ops.symmetric(r, v)
    elif step[4] == 0.0:
        return step_polynomial(r, step[:4], ops)
    else:
        c4, (a1, b1), (a2, b2) = quadratic_factors(step)
        u = ops.symmetric(r, r)
        v1 = _plus_identity(_scaled_sum([(1.0, u), (a1, r)], r.dtype), b1)
        v2 = _plus_identity(_scaled_sum([(c4, u), (c4 * a2, r)], r.dtype), c4 * b2)
        return ops.symmetric(v1, v2)
    return _plus_identity(h, step[0])


def direct(x: Tensor, schedule: Schedule, ops: Products, dtype: torch.dtype) -> Tensor:
    """Run the direct form: every step forms ``R = X X^T`` and sets ``X <- h(R) X``.

    Args:
        x: (b, n, m), n <= m, any scale.
        schedule: The steps and the normalization.
        ops: The products.
        dtype: Dtype of the arithmetic.

    Returns:
        (b, n, m) in `dtype`, fresh.
    """
    x, r, factor = normalized_gram(x, dtype, schedule.normalization, ops)
    first, *rest = schedule.coefficients
    x = ops.apply(step_polynomial(r, first, ops).mul_(factor), x)
    for step in rest:
        x = ops.apply(step_polynomial(ops.gram(x), step, ops), x)
    return x


def gram(
    x: Tensor, schedule: Schedule, ops: Products, dtype: torch.dtype, restarts: Sequence[int] = ()
) -> Tensor:
    """Run the Gram form: carry R and the product Q of all step polynomials, apply Q once.

    Args:
        x: (b, n, m), n <= m, any scale.
        schedule: The steps and the normalization.
        ops: The products.
        dtype: Dtype of the arithmetic.
        restarts: Steps (0-based) before which Q is applied and R formed anew, which resets
            the drift between R and the true Gram matrix.

    Returns:
        (b, n, m) in `dtype`, fresh.
    """
    steps = schedule.coefficients
    ends = {*(k - 1 for k in restarts if 0 < k < len(steps)), len(steps) - 1}
    x, r, factor = normalized_gram(x, dtype, schedule.normalization, ops)
    q: Tensor | None = None
    for k, step in enumerate(steps):
        w = step_polynomial(r, step, ops)
        q = w if q is None else ops.symmetric(w, q)
        if k < len(steps) - 1 and k not in ends:
            r = ops.symmetric(w, ops.symmetric(r, w))
        if k in ends:
            # The factor of the normalization rides on the first Q, never on R.
            x, q = ops.apply(q * factor.to(dtype) if min(ends) == k else q, x), None
            r = ops.gram(x) if k < len(steps) - 1 else r
    return x
