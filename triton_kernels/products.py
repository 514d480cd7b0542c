"""The small set of products over which the iteration is written once.

Plain PyTorch here, Triton in `kernels/`: both offer these three, with all scalars taken in
float32 (a CPU `torch.add(x, y, alpha=...)` in bfloat16 would round alpha to bfloat16 first).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Products", "TorchProducts"]


class Products(Protocol):
    """What the iteration needs: everything n x n is symmetric, and all of it commutes."""

    def gram(self, x: Tensor) -> Tensor:
        """Return ``X X^T`` for X of shape (b, n, m)."""

    def symmetric(
        self, a: Tensor, b: Tensor, c: Tensor | None = None, alpha: float = 1.0, beta: float = 0.0
    ) -> Tensor:
        """Return ``alpha A B + beta C`` for commuting symmetric (b, n, n)."""

    def apply(self, q: Tensor, x: Tensor, beta: float = 0.0) -> Tensor:
        """Return ``Q X + beta X`` for Q (b, n, n) and X (b, n, m)."""


class TorchProducts:
    """The products through batched matrix multiplication, on any device and dtype."""

    def gram(self, x: Tensor) -> Tensor:
        """Return ``X X^T``."""
        return torch.bmm(x, x.mT)

    def symmetric(
        self, a: Tensor, b: Tensor, c: Tensor | None = None, alpha: float = 1.0, beta: float = 0.0
    ) -> Tensor:
        """Return ``alpha A B + beta C``."""
        if c is None:
            return torch.bmm(a, b) if alpha == 1.0 else torch.baddbmm(a, a, b, beta=0, alpha=alpha)
        return torch.baddbmm(c, a, b, beta=beta, alpha=alpha)

    def apply(self, q: Tensor, x: Tensor, beta: float = 0.0) -> Tensor:
        """Return ``Q X + beta X``."""
        return torch.bmm(q, x) if beta == 0.0 else torch.baddbmm(x, q, x, beta=beta)
