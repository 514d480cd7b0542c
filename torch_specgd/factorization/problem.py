"""What is factorized: a target matrix, its observed entries, and a penalty on the factors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """The loss 1/2 sum over observed (i, j) of (w_ij - y_ij)^2 + l2/2 sum_l ||W_l||_F^2.

    Args:
        target: Y, (m, n) or (S, m, n) with one target per seed; computed with in float64.
        mask: Observed entries, (m, n) bool; None observes all of them.
        l2: Penalty on the factors, inside the gradient (default 0).

    Raises:
        TypeError: If the mask is not boolean.
        ValueError: If shapes differ, nothing is observed, or l2 is negative.

    Example:
        >>> Problem(torch.ones(3, 3), mask=diagonal_mask(3)).observed
        3
    """

    target: Tensor
    mask: Tensor | None = None
    l2: float = 0.0

    def __post_init__(self) -> None:
        if self.target.ndim not in (2, 3) or not self.target.is_floating_point():
            raise ValueError(
                "target must be a real (m, n) or (S, m, n) tensor, got "
                f"{tuple(self.target.shape)} of {self.target.dtype}"
            )
        object.__setattr__(self, "target", self.target.double())
        if not self.l2 >= 0.0:
            raise ValueError(f"l2 must be at least 0, got {self.l2}")
        if self.mask is None:
            return
        if self.mask.dtype != torch.bool:
            raise TypeError(f"mask must be a bool tensor, got {self.mask.dtype}")
        if self.mask.shape != self.target.shape[-2:]:
            raise ValueError(
                f"mask must have the target's shape {tuple(self.target.shape[-2:])}, "
                f"but has {tuple(self.mask.shape)}"
            )
        if not bool(self.mask.any()):
            raise ValueError("mask must observe at least one entry, but observes none")

    @property
    def observed(self) -> int:
        """Number of observed entries."""
        m, n = self.target.shape[-2:]
        return m * n if self.mask is None else int(self.mask.sum())

    def residual(self, product: Tensor) -> Tensor:
        """Return E = W - Y on the observed entries, zero elsewhere; (..., m, n)."""
        error = product - self.target
        return error if self.mask is None else error * self.mask


def target_from_spectrum(
    m: int, n: int, singular_values: Sequence[float] | Tensor, *, seed: int = 0
) -> Tensor:
    """Draw Y = U diag(sigma) V^T with uniformly random orthonormal U and V.

    Args:
        m: Rows.
        n: Columns.
        singular_values: sigma, at most min(m, n) numbers.
        seed: Decides U and V.

    Returns:
        Y, (m, n), float64.

    Raises:
        ValueError: If there are more singular values than min(m, n).

    Example:
        >>> y = target_from_spectrum(6, 7, [3.0, 1.0])
        >>> torch.linalg.svdvals(y)[:2].round(decimals=6)
        tensor([3., 1.], dtype=torch.float64)
    """
    sigma = torch.as_tensor(singular_values, dtype=torch.float64)
    r = len(sigma)
    if r > min(m, n):
        raise ValueError(f"a {m} x {n} matrix has {min(m, n)} singular values, but got {r}")
    generator = torch.Generator().manual_seed(seed)
    u, v = (
        torch.linalg.qr(torch.randn(d, r, dtype=torch.float64, generator=generator)).Q
        for d in (m, n)
    )
    return (u * sigma) @ v.mT


def diagonal_mask(blocks: int, block_size: int = 1) -> Tensor:
    """Observe the diagonal blocks of a square matrix: the disconnected setting.

    Args:
        blocks: Number n of blocks.
        block_size: Side s of a block (default 1: the diagonal).

    Returns:
        (n s, n s), bool.

    Example:
        >>> diagonal_mask(2, 2).int().tolist()
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    """
    block = torch.ones(block_size, block_size)
    return torch.kron(torch.eye(blocks), block).bool()


def chain_mask(d: int) -> Tensor:
    """Observe the diagonal and the one above it: the smallest connected superset.

    Args:
        d: Side of the matrix.

    Returns:
        (d, d), bool.

    Example:
        >>> int(chain_mask(4).sum())
        7
    """
    return torch.eye(d).bool() | torch.diag(torch.ones(d - 1), 1).bool()


def random_mask(m: int, n: int, count: int, *, seed: int = 0) -> Tensor:
    """Observe `count` entries drawn without replacement; for one seed, more entries contain fewer.

    Args:
        m: Rows.
        n: Columns.
        count: Number of entries, from 1 to m n.
        seed: Decides which.

    Returns:
        (m, n), bool.

    Raises:
        ValueError: If count is out of range.

    Example:
        >>> few, more = random_mask(5, 5, 6), random_mask(5, 5, 12)
        >>> int(more.sum()), bool((more | ~few).all())
        (12, True)
    """
    if not 1 <= count <= m * n:
        raise ValueError(f"count must be from 1 to {m * n}, got {count}")
    order = torch.randperm(m * n, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(m * n, dtype=torch.bool)
    mask[order[:count]] = True
    return mask.reshape(m, n)
