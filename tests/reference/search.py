"""A search for the matrix that rounding treats worst."""

from collections.abc import Callable

import torch
from torch import Tensor

# A population of matrices (count, n, m) to what is to be maximized, (count,).
Measure = Callable[[Tensor], Tensor]


def _drawn(count: int, n: int, m: int) -> Tensor:
    """Random directions on both sides of Gaussian entries whose rows span three decades."""
    size = 10 ** (-3 * torch.rand(count, n, 1))
    return torch.randn(count, n, n) @ (size * torch.randn(count, n, 1) * torch.randn(count, n, m))


def _varied(parents: Tensor) -> Tensor:
    """Every entry by a random factor, a random size each; of half of them also by an addend."""
    count = len(parents)

    def size(low: float, high: float) -> Tensor:
        return 10 ** (low + (high - low) * torch.rand(count, 1, 1))

    moved = parents * (1 + size(-4, 0) * torch.randn_like(parents))
    largest = parents.abs().amax(dim=(1, 2), keepdim=True)
    some = (torch.rand(count, 1, 1) < 0.5).float()
    return moved + some * largest * size(-5, -1) * torch.randn_like(parents)


def searched(measure: Measure, n: int, m: int, count: int = 2000, generations: int = 15) -> float:
    """Climb to the largest value of a measure that is found: the best twentieth has children.

    Args:
        measure: What is maximized.
        n: Rows.
        m: Columns.
        count: Population of the first generation.
        generations: How many follow.
    """
    x = _drawn(count, n, m)
    found = measure(x)
    for _ in range(generations):
        best = x[found.topk(count // 20).indices]
        # Fresh ones too: the first hill is not the highest.
        x = torch.cat([best, _varied(best.repeat(10, 1, 1)), _drawn(count // 4, n, m)])
        found = measure(x)
    return float(found.max())


def rotations(count: int) -> Tensor:
    """2 x 2 matrices of one singular value one, and a second of 1 to 1e-4 or zero.

    In so few dimensions every rounding counts: an angle decides how the entries are rounded.
    """
    angles = 2 * torch.pi * torch.rand(2, count)
    turns = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], dim=-1)
    left, right = turns.view(2, count, 2, 2)
    second = torch.where(torch.rand(count) < 0.2, 0.0, 10 ** (-4 * torch.rand(count)))
    return left @ torch.stack([torch.ones(count), second], dim=-1)[:, :, None] * right.mT
