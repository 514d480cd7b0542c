"""Matrix completion that goes on with more data: warm start against cold start."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..spectrum.measures import stable_rank
from .flow import gradient_flow
from .problem import Problem
from .trajectory import Trajectory


@dataclass(frozen=True)
class PlasticityReport:
    """Warm start against cold start, per seed; every field is (S,) but the trajectories.

    Args:
        warm_rmse: Error on unseen entries after pre-training and training.
        cold_rmse: The same after training from the start.
        pretrained_stable_rank: Of W after pre-training.
        warm_stable_rank: Of W at the end of the warm run.
        cold_stable_rank: Of W at the end of the cold run.
        pretraining: The run on the first observations.
        warm: The run that continues it on all observations.
        cold: The run on all observations from the start.
    """

    warm_rmse: Tensor
    cold_rmse: Tensor
    pretrained_stable_rank: Tensor
    warm_stable_rank: Tensor
    cold_stable_rank: Tensor
    pretraining: Trajectory
    warm: Trajectory
    cold: Trajectory

    @property
    def gap(self) -> Tensor:
        """Loss of plasticity: warm_rmse - cold_rmse, (S,)."""
        return self.warm_rmse - self.cold_rmse


def unseen_rmse(product: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the root mean square error on the entries that were not observed.

    Args:
        product: W, (..., m, n).
        target: Y, (m, n) or the product's shape.
        mask: Observed entries, (m, n) bool, not all of them.

    Returns:
        (...,).

    Raises:
        ValueError: If every entry is observed.

    Example:
        >>> import torch
        >>> float(unseen_rmse(torch.zeros(2, 2), torch.ones(2, 2), torch.eye(2).bool()))
        1.0
    """
    if bool(mask.all()):
        raise ValueError("every entry is observed, so none is left to test on")
    return (product - target)[..., ~mask].square().mean(-1).sqrt()


def plasticity(
    factors: Sequence[Tensor],
    target: Tensor,
    first_mask: Tensor,
    second_mask: Tensor,
    *,
    duration: float = 1e9,
    pretrain_duration: float | None = None,
    stop_loss: float = 1e-10,
    rtol: float = 1e-6,
    max_steps: int = 100_000,
) -> PlasticityReport:
    """Pre-train on few observations, go on with more, and compare with starting cold.

    Both runs see the same second data and stop at the same loss; the entries that neither has
    seen are the test set.

    Args:
        factors: Start [W_1, ..., W_L], each (S, d_l, d_{l-1}).
        target: Y, (m, n).
        first_mask: Observed in pre-training, (m, n) bool.
        second_mask: Observed afterwards; contains first_mask.
        duration: Flow time at which a run ends if its loss has not (default: practically never).
        pretrain_duration: The same for pre-training (default ``duration``).
        stop_loss: Sum of squares / 2 at which a run ends (default 1e-10).
        rtol: Tolerance of the integrator.
        max_steps: Bound on the steps of each run.

    Returns:
        Errors, stable ranks and the three runs.

    Raises:
        ValueError: If second_mask does not contain first_mask, or observes everything.
        RuntimeError: If max_steps does not suffice.

    Source:
        Shin and Yun, arXiv 2603.04703; Kleinman et al., CriticalPeriodDeepLinearNets.

    Example:
        >>> import torch
        >>> from torch_specgd.factorization import chain_mask, diagonal_mask, family_init
        >>> start = family_init(3, 3, alpha=0.01, m=10.0)
        >>> run = plasticity(start, torch.ones(3, 3), diagonal_mask(3), chain_mask(3))
        >>> bool(run.gap.abs() < 1e-2)
        True
    """
    if bool((first_mask & ~second_mask).any()):
        raise ValueError("second_mask must contain every entry of first_mask")

    def train(start: Sequence[Tensor], mask: Tensor, time: float) -> Trajectory:
        return gradient_flow(
            start, Problem(target, mask), [0.0, time], stop_loss=stop_loss, rtol=rtol,
            max_steps=max_steps,
        )  # fmt: skip

    pretraining = train(
        factors, first_mask, duration if pretrain_duration is None else pretrain_duration
    )
    warm = train(pretraining.final, second_mask, duration)
    cold = train(factors, second_mask, duration)
    ends = [run.products[-1] for run in (pretraining, warm, cold)]
    before, rank_warm, rank_cold = (stable_rank(w) for w in ends)
    return PlasticityReport(
        unseen_rmse(ends[1], target, second_mask),
        unseen_rmse(ends[2], target, second_mask),
        before,
        rank_warm,
        rank_cold,
        pretraining,
        warm,
        cold,
    )
