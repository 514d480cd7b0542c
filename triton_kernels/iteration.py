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

import torch
from torch import Tensor

from .normalize import normalized_gram
from .products import Products, plus_identity
from .schedules import Schedule, Step

__all__ = ["direct", "gram", "step_polynomial"]


def step_polynomial(r: Tensor, step: Step, ops: Products) -> Tensor:
    """Return ``h(R) = c0 I + c1 R + c2 R^2 + ...`` as a fresh symmetric matrix.

    Args:
        r: (b, n, n), symmetric.
        step: 2 to 5 coefficients.
        ops: The products.
    """
    if len(step) == 2:
        return plus_identity(r * step[1], step[0])
    if len(step) == 3:
        return ops.symmetric(r, r, r, alpha=step[2], beta=step[1], gamma=step[0])
    if len(step) == 4 or step[4] == 0.0:
        v = ops.symmetric(r, r, r, alpha=step[3], beta=step[2], gamma=step[1])
        return ops.symmetric(r, v, gamma=step[0])
    return ops.symmetric(*ops.quadratics(r, step))


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
