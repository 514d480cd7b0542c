"""Normalization: divide by an upper bound of the largest singular value, without overflow.

The bounds come for nothing once the Gram matrix R = X X^T exists: its trace is the squared
Frobenius norm of X, the root of its own Frobenius norm is the Schatten-4 norm, and the fourth
root of that of R^2 (which every step of degree 5 or more needs anyway) the Schatten-8 norm.
Each lies between the largest singular value and the one before. So X is never divided: R is
scaled, and the first polynomial takes X's factor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .products import Products, scale_members

# Between these, neither the entries of R nor the squares inside its norm leave float32.
_LOW, _HIGH = 1e-14, 1e18


def largest_entry(x: Tensor) -> Tensor:
    """Return max |x_ij| of each matrix, shape (..., 1, 1), with 1 for a zero matrix."""
    amax = torch.linalg.vector_norm(x, ord=torch.inf, dim=(-2, -1), keepdim=True)
    return amax + (amax == 0)


def prescale(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in `dtype`, every matrix at a scale that leaves room for its Gram matrix.

    A GPU spends as long on passes over X as on products, so there are two: the largest entry,
    and the division by it. float16 takes two more, for a Frobenius norm of 64 to 128: at most
    2^14 in R, whose smaller entries stay above the denormals that a norm of one pushes them
    into, and that some GPUs flush to zero.

    Args:
        x: (b, n, m), floating, any scale.
        dtype: The result's dtype.

    Returns:
        A new row-major tensor; zero matrices stay zero, a NaN stays in its own matrix.
    """
    # Row-major, so that tensor descriptors can read it; a tall matrix comes in transposed.
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    # Division by the largest entry comes first, because the square of 1e30 does not fit in float32.
    # The divisor is wide: a quotient of two 16-bit numbers would be rounded to their dtype first.
    wide = torch.promote_types(x.dtype, torch.float32)
    torch.div(x, largest_entry(x).to(wide), out=y)
    if dtype == torch.float16:
        norm = torch.linalg.vector_norm(y, dim=(-2, -1), keepdim=True, dtype=torch.float32)
        # Multiplication by a power of two rounds nothing.
        y.mul_(torch.exp2(7 - torch.frexp(norm).exponent))
    return y


def _trace(r: Tensor) -> Tensor:
    wide = torch.promote_types(r.dtype, torch.float32)
    return r.diagonal(dim1=-2, dim2=-1).to(wide).sum(-1).view(-1, 1, 1)


def _bound(r: Tensor, normalization: str) -> Tensor:
    """Return an upper bound of the largest eigenvalue of R: its trace or its Frobenius norm."""
    if normalization == "frobenius":
        return _trace(r)
    if r.dtype == torch.bfloat16 and r.device.type == "cpu":
        # A CPU copies the whole matrix to sum it in float32, which takes five times as long as
        # norms of rows. Their rounding to bfloat16 puts the bound off by at most 2^-8, and the
        # matrix and its factor are divided by the same bound.
        rows = torch.linalg.vector_norm(r, dim=-1, keepdim=True)
        return torch.linalg.vector_norm(rows, dim=-2, keepdim=True, dtype=torch.float32)
    wide = torch.promote_types(r.dtype, torch.float32)
    return torch.linalg.vector_norm(r, dim=(-2, -1), keepdim=True, dtype=wide)


class Start(NamedTuple):
    """A matrix and the powers of its normalized Gram matrix: where every iteration begins.

    Attributes:
        x: (b, n, m) in the dtype of the arithmetic, not yet normalized.
        r: (b, n, n), ``factor^2 X X^T``.
        u: ``R^2``, or None where the normalization did not need it.
        factor: (b, 1, 1) in float32 or wider: ``factor * x`` is the normalized matrix.
        looked: Whether the host has seen the norms, as it does on a CPU alone.
    """

    x: Tensor
    r: Tensor
    u: Tensor | None
    factor: Tensor
    looked: bool


def in_range(bound: Tensor) -> Tensor:
    """Say of each bound whether float32 holds the powers of its Gram matrix."""
    return ((bound > _LOW) & (bound < _HIGH)).flatten()


def begin(
    x: Tensor,
    dtype: torch.dtype,
    normalization: str,
    ops: Products,
    spare: Tensor | None = None,
    look: bool | None = None,
) -> Start:
    """Form the Gram matrix of the normalized X.

    Args:
        x: (b, n, m), n <= m, any scale.
        dtype: Dtype of the arithmetic.
        normalization: "frobenius", "schatten4" or "schatten8".
        ops: The products.
        spare: Where X in another dtype may go, default a new tensor.
        look: Whether to look if a member is out of float32's range; else all are scaled first.
            Default on a CPU only: a GPU would have to be waited for.
    """
    look = x.device.type == "cpu" if look is None else look
    # float16 has no room for a Gram matrix of any scale.
    if not look or dtype == torch.float16:
        y = prescale(x, dtype)
    elif spare is None or x.dtype == dtype:
        y = x.to(dtype)
    else:
        y = spare.copy_(x)
    r = ops.gram(y)
    bound = first_bound(r, normalization)
    lost = ~in_range(bound) if look else None
    if lost is not None and bool(lost.any()):
        y = rescaled(y, x, r, lost, ops)
        bound[lost] = first_bound(r[lost], normalization)
    u, factor = normalize_gram(r, bound, normalization, ops, look)
    return Start(y, r, u, factor, look)


def rescaled(y: Tensor, x: Tensor, r: Tensor, lost: Tensor, ops: Products) -> Tensor:
    """Return y with some members at a scale of one, whose Gram matrices are formed anew.

    Rare: these are zero, tiny, huge or broken.

    Args:
        y: (b, n, m), x in the dtype of the arithmetic, or x itself, which is not changed.
        x: (b, n, m), the input.
        r: (b, n, n), ``Y Y^T``, changed in place.
        lost: (b,) Which members.
        ops: The products.
    """
    y = y.clone() if y.data_ptr() == x.data_ptr() else y
    y[lost] = prescale(x[lost], y.dtype)
    r[lost] = ops.gram(y[lost])
    return y


def first_bound(r: Tensor, normalization: str) -> Tensor:
    """Return the (b, 1, 1) upper bounds of R's largest eigenvalues that `normalize_gram` takes.

    Args:
        r: (b, n, n) Gram matrices.
        normalization: See `begin`.
    """
    # Where R^2 gives the bound, R is divided by its trace first, which costs no pass. In float16
    # R^2 of a large flat spectrum would vanish then.
    loose = normalization == "schatten8" and r.dtype != torch.float16
    return _bound(r, "frobenius" if loose else normalization)


def normalize_gram(
    r: Tensor, bound: Tensor, normalization: str, ops: Products, look: bool
) -> tuple[Tensor | None, Tensor]:
    """Divide R by an upper bound of its largest eigenvalue, in place.

    Args:
        r: (b, n, n) Gram matrices of any scale in range.
        bound: From `first_bound`.
        normalization: See `begin`.
        ops: The products.
        look: See `begin`.

    Returns:
        R^2 or None, and the factor by which X is normalized.
    """
    tight = normalization == "schatten8"
    # On a CPU the first of two scales is a power of two, which rounds nothing. That takes more
    # launches on a GPU, and the first step has room for both roundings.
    exact = tight and look
    scale = _power_of_two(bound) if exact else _scale(bound, r, look)
    scale_members(r, scale)
    u = None
    if tight:
        # R is divided by its trace or Frobenius norm already; the norm of U = R^2 is tighter.
        u = ops.symmetric(r, r)
        tighter = _scale(_bound(u, "schatten4").sqrt(), r, look)
        scale_members(r, tighter)
        # The square stays in full precision: if all of U is 2^-9 off R^2, a step of degree 9, whose
        # terms nearly cancel, sends a singular value of one beyond 1.02.
        scale_members(u, tighter.square())
        scale = scale * tighter
    factor = scale.sqrt()
    if look and r.dtype == torch.bfloat16:
        # In bfloat16 X is multiplied in one pass. The factor is then off by 2^-9, and the largest
        # singular value with it, for which the first step has room.
        factor = factor.to(r.dtype).to(factor.dtype)
    return u, factor


def _scale(bound: Tensor, r: Tensor, look: bool) -> Tensor:
    """Return what the members of R are multiplied by: one over a bound, or a little less.

    A CPU multiplies all members of a bfloat16 batch in one pass if the factors are bfloat16 numbers
    themselves: the upper halves of float32 numbers, which the lower halves only make larger.
    """
    scale = (bound + (bound == 0)).reciprocal()
    if r.dtype != torch.bfloat16 or not look:
        return scale
    return (scale.view(torch.int32) & -(1 << 16)).view(torch.float32)


def _power_of_two(bound: Tensor) -> Tensor:
    """Return the power of two by which a bound comes to lie in [1/2, 1)."""
    return torch.exp2(-torch.frexp(bound + (bound == 0)).exponent.to(bound.dtype))
