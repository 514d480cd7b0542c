"""Matrices whose structure keeps rounding errors from averaging out, or nearly does."""

from collections.abc import Iterator

import torch
from torch import Tensor


def _directions(rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns))[0]


def _decades(count: int, most: float) -> Tensor:
    return 10 ** (-most * torch.rand(count))


def structured(n: int, m: int, k: int) -> Iterator[tuple[str, Tensor]]:
    """Yield named (n, m) matrices of the global generator, n <= m.

    Args:
        n: Rows.
        m: Columns.
        k: Size of the structure: a rank, a block, a number of rows or of groups.
    """
    left, right = _directions(n, n), _directions(m, n).T
    power = torch.arange(1.0, n + 1) ** -(0.3 + 1.5 * torch.rand(()))
    yield "power", (left * power) @ right
    yield "decades", (left * _decades(n, 5)) @ right
    yield "rows of all sizes", ((left * _decades(n, 3)) @ right) * _decades(n, 2)[:, None]
    yield "along the axes", torch.nn.functional.pad(torch.diag(_decades(n, 5)), (0, m - n))
    yield "low rank", (torch.randn(n, k) * _decades(k, 3)) @ torch.randn(k, m)
    signs = torch.randn(n, k).sign() * _decades(k, 4)
    yield "signs", signs @ torch.randn(k, m).sign()
    groups = (torch.randn(k, k) * _decades(k, 3)[:, None])[torch.randint(k, (n,))]
    yield "equal rows", groups[:, torch.randint(k, (m,))]
    few = 1e-4 * torch.randn(n, m)
    few[:k] += (_directions(k, k) * _decades(k, 4)) @ _directions(m, k).T
    yield "few rows", few
    blocks = [_directions(k, k) * _decades(k, 4) @ _directions(k, k) for _ in range(n // k)]
    block = torch.block_diag(*blocks)
    yield "blocks", torch.nn.functional.pad(block, (0, m - len(block), 0, n - len(block)))
    waves = torch.cos(torch.pi / m * torch.arange(n)[:, None] * torch.arange(m))
    yield "waves", waves * _decades(n, 3)[:, None]
    yield "constant", torch.ones(n, m) + 1e-2 * torch.randn(n, m)
