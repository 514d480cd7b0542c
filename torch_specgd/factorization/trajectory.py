"""What a run leaves behind: snapshots of the factors over time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .model import product


@dataclass(frozen=True)
class Trajectory:
    """Snapshots of a flow or of an optimizer's run.

    Args:
        times: (K,): flow time, or step numbers.
        factors: [W_1, ..., W_L], each (K, S, d_l, d_{l-1}).
        loss: (K, S).
        steps: (S,), how many steps were taken.
        converged: (S,) bool, whether the loss fell to ``stop_loss`` (all False without one).
    """

    times: Tensor
    factors: list[Tensor]
    loss: Tensor
    steps: Tensor
    converged: Tensor

    @property
    def products(self) -> Tensor:
        """W at every snapshot, (K, S, m, n)."""
        return product(self.factors)

    @property
    def final(self) -> list[Tensor]:
        """The last snapshot's factors, each (S, d_l, d_{l-1}): a start for the next run."""
        return [w[-1] for w in self.factors]


def pack(factors: Sequence[Tensor]) -> Tensor:
    """Lay all factors of a seed into one row; (S, P)."""
    return torch.cat([w.flatten(1) for w in factors], dim=1)


def unpack(rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Undo :func:`pack`, for factors of these (d_l, d_{l-1}) shapes."""
    parts = rows.split([shape.numel() for shape in shapes], dim=-1)
    return [p.unflatten(-1, shape) for p, shape in zip(parts, shapes, strict=True)]
