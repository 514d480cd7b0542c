"""The small set of products over which the iteration is written once.

Plain PyTorch here, Triton in `kernels/`: both offer these three, with all scalars taken in
float32 (a CPU `torch.add(x, y, alpha=...)` in bfloat16 would round alpha to bfloat16 first).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Products", "TorchProducts"]


_BLOCK_ROWS = 4  # block rows of a triangle: 10 of 16 blocks are computed
_TRIANGLE_ROWS = 512
# AMX multiplies so fast that blocks, each a call of its own, pay later: from 1536 rows on, or
# from 768 where the matrices are too few to give one to each thread (oneDNN runs a single
# product of 768 rows at the rate of one thread).
_TRIANGLE_ROWS_AMX, _TRIANGLE_ROWS_AMX_FEW = 1536, 768


@lru_cache(maxsize=1)
def cpu_has_amx() -> bool:
    """Whether the CPU multiplies bfloat16 in AMX tiles."""
    return torch.cpu._is_amx_tile_supported()


class Products(Protocol):
    """What the iteration needs: everything n x n is symmetric, and all of it commutes.

    Attributes:
        casts: Whether `apply` writes to an `out` of any dtype.
    """

    casts: bool

    def gram(self, x: Tensor) -> Tensor:
        """Return ``X X^T`` for X of shape (b, n, m)."""

    def symmetric(
        self, a: Tensor, b: Tensor, c: Tensor | None = None,
        alpha: float = 1.0, beta: float = 0.0, gamma: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """Return ``alpha A B + beta C + gamma I`` for commuting symmetric (b, n, n)."""

    def apply(self, q: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return ``Q X`` for Q (b, n, n) and X (b, n, m): `out` itself if that is given."""


def _wide_scalars(x: Tensor) -> bool:
    """Whether an addition takes its scalar in float32: a CPU rounds it to 16 bits first."""
    return x.device.type != "cpu" or x.dtype in (torch.float32, torch.float64)


def plus_identity(x: Tensor, value: float) -> Tensor:
    """Add ``value I`` in place, in float32: `x` is always a fresh product."""
    diagonal = x.diagonal(dim1=-2, dim2=-1)
    if _wide_scalars(x):
        diagonal.add_(value)
    else:
        one = x.new_ones(())
        diagonal.addcmul_(one, one, value=value)  # keeps its scalar in float32
    return x


def scaled_sum(a: Tensor, alpha: float, b: Tensor, beta: float) -> Tensor:
    """Return ``alpha A + beta B`` with both scalars and the sum in float32 or wider."""
    if alpha == 1.0 and _wide_scalars(a):
        return torch.add(a, b, alpha=beta)
    if alpha == 1.0:
        # addcmul keeps its scalar in float32, where add would round beta to bfloat16; one pass
        # instead of a cast of both, a sum and a cast back takes a quarter of their time.
        return torch.addcmul(a, b, b.new_ones(()), value=beta)
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
    # A factor as a number is applied in float32 as well, in a quarter of the time that a CPU
    # takes to multiply two dtypes.
    for one, value in zip(x, factor.flatten().tolist(), strict=True):
        one.mul_(value)
    return x


def _transposed(x: Tensor) -> bool:
    """Whether the matrices of a batch lie in memory column by column."""
    return x.stride(-1) != 1 and x.stride(-2) == 1


def _worth_a_triangle(x: Tensor) -> bool:
    """Blocks pay on the CPU, where a call costs microseconds, for many rows."""
    if x.device.type != "cpu":
        return False
    if x.dtype == torch.bfloat16 and cpu_has_amx():
        few = 2 * x.shape[0] <= torch.get_num_threads()
        return x.shape[-2] >= (_TRIANGLE_ROWS_AMX_FEW if few else _TRIANGLE_ROWS_AMX)
    return x.shape[-2] >= _TRIANGLE_ROWS


def triangle_product(
    a: Tensor, b: Tensor, c: Tensor | None = None, alpha: float = 1.0, beta: float = 0.0
) -> Tensor:
    """Return ``alpha A B^T + beta C``, symmetric: block rows up to the diagonal, then mirrored.

    Args:
        a: (batch, n, k).
        b: (batch, n, k), such that A B^T is symmetric.
        c: (batch, n, n), symmetric, or None.
        alpha: Factor of the product.
        beta: Factor of C.
    """
    batch, n, _ = a.shape
    out = a.new_empty(batch, n, n)
    old, beta = (out, 0.0) if c is None else (c, beta)
    size = -(-n // _BLOCK_ROWS)
    for start in range(0, n, size):
        stop = min(start + size, n)
        for one, left, right, addend in zip(out, a, b, old, strict=True):
            one[start:stop, :stop] = torch.addmm(
                addend[start:stop, :stop], left[start:stop], right[:stop].T, beta=beta, alpha=alpha
            )
        if start:
            out[:, :start, start:stop] = out[:, start:stop, :start].mT
    return out


class TorchProducts:
    """The products through batched matrix multiplication, on any device and dtype."""

    casts = False

    def gram(self, x: Tensor) -> Tensor:
        """Return ``X X^T``."""
        return triangle_product(x, x) if _worth_a_triangle(x) else torch.bmm(x, x.mT)

    def symmetric(
        self, a: Tensor, b: Tensor, c: Tensor | None = None,
        alpha: float = 1.0, beta: float = 0.0, gamma: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """Return ``alpha A B + beta C + gamma I``."""
        if _worth_a_triangle(a):
            d = triangle_product(a, b, c, alpha, beta)
        elif c is None and alpha == 1.0:
            d = torch.bmm(a, b)
        else:
            d = torch.baddbmm(
                a if c is None else c, a, b, beta=0.0 if c is None else beta, alpha=alpha
            )
        return plus_identity(d, gamma) if gamma else d

    def apply(self, q: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return ``Q X``, laid out like X."""
        if x.device.type == "cpu" and _transposed(x) and (out is None or _transposed(out)):
            # X^T Q in memory, the faster product on a CPU, and nothing to transpose at the end.
            if out is None:
                return torch.bmm(x.mT, q).mT
            torch.bmm(x.mT, q, out=out.mT)
            return out
        return torch.bmm(q, x) if out is None else torch.bmm(q, x, out=out)
