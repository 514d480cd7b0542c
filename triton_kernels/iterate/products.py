"""The small set of products over which the iteration is written once.

Plain PyTorch here, Triton in `kernels/`: both offer these three, with all scalars taken in
float32. A CPU's `torch.add(x, y, alpha=...)` rounds alpha to x's 16 bits first, so sums of 16-bit
matrices are written otherwise there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Protocol

import torch
from torch import Tensor

_Triangle = Callable[..., Tensor]
_BLOCK_ROWS = 4  # block rows of a triangle: 10 of 16 blocks are computed
_TRIANGLE_ROWS = 512
# Elements of the left operand, in bfloat16 without AMX, from which a call for each block pays.
_TRIANGLE_ELEMENTS = 400_000
# With AMX, which multiplies faster, a call for each block pays from more rows on. Halves pay
# earlier if there are fewer matrices than threads: oneDNN runs so small a product on one thread.
_TRIANGLE_ROWS_AMX, _HALVED_GRAM_ROWS, _HALVED_ROWS = 1536, 512, 768


@lru_cache(maxsize=1)
def cpu_has_amx() -> bool:
    """Say whether the CPU multiplies bfloat16 in AMX tiles."""
    return torch.cpu._is_amx_tile_supported()


class Products(Protocol):
    """What the iteration needs: everything n x n is symmetric, and all of it commutes.

    Attributes:
        casts: Whether `apply` writes to an `out` of any dtype.
    """

    casts: bool

    def gram(self, x: Tensor, gamma: float = 0.0) -> Tensor:
        """Return ``X X^T + gamma I`` for X of shape (b, n, m)."""

    def symmetric(
        self, a: Tensor, b: Tensor, c: Tensor | None = None,
        alpha: float = 1.0, beta: float = 0.0, gamma: float = 0.0, spare: bool = False,
    ) -> Tensor:  # fmt: skip
        """Return ``alpha A B + beta C + gamma I`` for commuting symmetric (b, n, n).

        The result may take the place of C where that is `spare`.
        """

    def apply(self, q: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return ``Q X`` for Q (b, n, n) and X (b, n, m): `out` itself if that is given."""


@lru_cache(maxsize=8)
def _one(dtype: torch.dtype) -> Tensor:
    return torch.ones((), dtype=dtype, device="cpu")  # whatever the caller's default device is


def plus_identity(x: Tensor, value: float) -> Tensor:
    """Add ``value I`` in place, in float32: `x` is always a fresh product."""
    diagonal = x.diagonal(dim1=-2, dim2=-1)
    if x.device.type != "cpu" or x.dtype.itemsize > 2:
        diagonal.add_(value)
    else:
        one = _one(x.dtype)
        diagonal.addcmul_(one, one, value=value)  # keeps its scalar in float32
    return x


def scaled_sum(
    a: Tensor, alpha: float, b: Tensor, beta: float, out: Tensor | None = None
) -> Tensor:
    """Return ``alpha A + beta B`` with both scalars and the sum in float32 or wider.

    The result may go to `out`, which may be A or B, where alpha is one.
    """
    if alpha == 1.0 and (a.device.type != "cpu" or a.dtype.itemsize > 2):
        return torch.add(a, b, alpha=beta, out=out)
    if alpha == 1.0:
        # addcmul keeps its scalar in float32, where add would round beta to bfloat16; one pass
        # instead of a cast of both, a sum and a cast back takes a quarter of their time.
        return torch.addcmul(a, b, _one(a.dtype), value=beta, out=out)
    wide = torch.promote_types(a.dtype, torch.float32)
    # Cast first: an addition of two dtypes takes twice as long as both passes.
    return a.to(wide, copy=True).mul_(alpha).add_(b.to(wide), alpha=beta).to(a.dtype)


def scale_members(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply every matrix of a fresh (b, n, m) by its own float32 factor, in place.

    Args:
        x: The batch.
        factor: (b, 1, 1), float32 or wider.
    """
    if x.dtype == factor.dtype or x.device.type != "cpu":
        return x.mul_(factor)
    narrow = factor.to(x.dtype)
    if torch.equal(narrow.to(factor.dtype), factor):
        return x.mul_(narrow)
    # A CPU multiplies a 16-bit matrix by a float32 tensor in four times the time that it takes for
    # a Python number, which it applies in float32 as well.
    for one, value in zip(x, factor.flatten().tolist(), strict=True):
        one.mul_(value)
    return x


def _triangle(x: Tensor, halved_rows: int) -> _Triangle | None:
    """Return how a symmetric product of x's rows is cut; None: whole, as a GPU's library does it.

    Args:
        x: The left operand.
        halved_rows: From how many rows on halves pay where there are few matrices.
    """
    if x.device.type != "cpu":
        return None
    batch, n, k = x.shape
    if x.dtype == torch.bfloat16 and cpu_has_amx():
        if 2 * batch <= torch.get_num_threads() and halved_rows <= n < _TRIANGLE_ROWS_AMX:
            return partial(triangle_product, halves=True) if n % 2 == 0 else None
        return triangle_product if n >= _TRIANGLE_ROWS_AMX else None
    narrow = x.dtype == torch.bfloat16 and n * k < _TRIANGLE_ELEMENTS
    return triangle_product if n >= _TRIANGLE_ROWS and not narrow else None


def triangle_product(
    out: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
    halves: bool = False,
) -> Tensor:
    """Write ``alpha A B^T + beta C``, symmetric: blocks up to the diagonal, then mirrored.

    Args:
        out: (batch, n, n), and what is returned.
        a: (batch, n, k).
        b: (batch, n, k), such that A B^T is symmetric.
        c: (batch, n, n), symmetric, or None.
        alpha: Factor of the product.
        beta: Factor of C.
        halves: Whether to compute two blocks on the diagonal, which two threads share, and one
            below, n even; else rows of blocks.
    """
    old, beta = (out, 0.0) if c is None else (c, beta)
    blocks = _halves if halves else _block_rows
    # One member after the other, so that what it needs stays in the cache.
    for one, left, right, addend in zip(out, a, b, old, strict=True):
        blocks(one, left, right, addend, beta=beta, alpha=alpha)
    return out


def _block_rows(one: Tensor, left: Tensor, right: Tensor, addend: Tensor, **factors: float) -> None:
    n = len(one)
    size = -(-n // _BLOCK_ROWS)
    for start in range(0, n, size):
        rows, stop = slice(start, start + size), min(start + size, n)
        torch.addmm(
            addend[rows, :stop], left[rows], right[:stop].T, **factors, out=one[rows, :stop]
        )
        if start:
            one[:start, rows] = one[rows, :start].T


def _halves(one: Tensor, left: Tensor, right: Tensor, addend: Tensor, **factors: float) -> None:
    half = len(one) // 2
    a, b = left.unflatten(0, (2, half)), right.unflatten(0, (2, half))
    torch.baddbmm(_diagonal(addend), a, b.mT, **factors, out=_diagonal(one))
    torch.addmm(addend[half:, :half], a[1], b[0].T, **factors, out=one[half:, :half])
    one[:half, half:] = one[half:, :half].T


def _diagonal(x: Tensor) -> Tensor:
    """Return both halves' blocks on the diagonal of (n, n) as a (2, n / 2, n / 2) view."""
    half, (row, column) = len(x) // 2, x.stride()
    return x.as_strided((2, half, half), (half * (row + column), row, column))


class TorchProducts:
    """The products through batched matrix multiplication, on any device and dtype.

    Args:
        ring: (k, b, n, n), k at least 4: where the n x n results go in turn, default new tensors.
            The direct form needs none longer than until three others are written.
    """

    casts = False

    def __init__(self, ring: Tensor | None = None) -> None:
        self._ring = ring
        self._turn = 0

    def _room(self, a: Tensor) -> Tensor:
        """Return a place for the n x n results of (b, n, k) operands."""
        batch, n, _ = a.shape
        if self._ring is None:
            return a.new_empty(batch, n, n)
        self._turn = (self._turn + 1) % len(self._ring)
        return self._ring[self._turn, :batch]

    def gram(self, x: Tensor, gamma: float = 0.0) -> Tensor:
        """Return ``X X^T + gamma I``."""
        cut, r = _triangle(x, _HALVED_GRAM_ROWS), self._room(x)
        if cut is None:
            torch.bmm(x, x.mT, out=r)
        else:
            cut(r, x, x)
        return plus_identity(r, gamma) if gamma else r

    def symmetric(
        self, a: Tensor, b: Tensor, c: Tensor | None = None,
        alpha: float = 1.0, beta: float = 0.0, gamma: float = 0.0, spare: bool = False,
    ) -> Tensor:  # fmt: skip
        """Return ``alpha A B + beta C + gamma I``."""
        cut = _triangle(a, _HALVED_ROWS)
        if cut is not None:
            d = cut(c if c is not None and spare else self._room(a), a, b, c, alpha, beta)
        elif c is not None and spare:
            d = c.baddbmm_(a, b, beta=beta, alpha=alpha)
        elif c is None and alpha == 1.0:
            d = torch.bmm(a, b, out=self._room(a))
        else:
            old, beta = (a, 0.0) if c is None else (c, beta)
            d = torch.baddbmm(old, a, b, beta=beta, alpha=alpha, out=self._room(a))
        return plus_identity(d, gamma) if gamma else d

    def apply(self, q: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return ``Q X``, laid out like X."""
        # In memory X and its result may lie column by column, as those of tall matrices do.
        tall = all(t is None or t.stride(-1) != 1 == t.stride(-2) for t in (x, out))
        if x.device.type == "cpu" and tall:
            # There this is X^T Q: the faster product, and its result needs no transposition.
            if out is None:
                return torch.bmm(x.mT, q).mT
            torch.bmm(x.mT, q, out=out.mT)
            return out
        return torch.bmm(q, x) if out is None else torch.bmm(q, x, out=out)
