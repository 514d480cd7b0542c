"""Step sizes that the theory of spectral descent wants, and the distance that they can cover."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class _ConstantThenDecay(LRScheduler, ABC):
    """lr(k) = lr * factor(k): constant, then a decay to ``final_factor`` at ``total_steps``."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        constant_fraction: float = 0.5,
        final_factor: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if not 0.0 <= final_factor <= 1.0:
            raise ValueError(f"final_factor must be in [0, 1], got {final_factor}")
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        if not 0.0 <= constant_fraction <= 1.0:
            raise ValueError(f"constant_fraction must be in [0, 1], got {constant_fraction}")
        self.total_steps = total_steps
        self.constant_fraction = constant_fraction
        self.final_factor = final_factor
        super().__init__(optimizer, last_epoch)

    @abstractmethod
    def decay(self, progress: float) -> float:
        """Return what is left of the learning rate at a progress of the decay from 0 to 1."""

    def factor(self, step: int) -> float:
        """Return what the initial learning rate is multiplied by at a step, from 0."""
        constant = self.constant_fraction * self.total_steps
        if step <= constant or constant >= self.total_steps:
            return 1.0
        return self.decay(min(1.0, (step - constant) / (self.total_steps - constant)))

    def travel(self, group: int = 0) -> float:
        """Sum of the step sizes of one parameter group over ``total_steps`` steps."""
        base = float(self.base_lrs[group])
        return base * math.fsum(self.factor(k) for k in range(self.total_steps))

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rates of all groups at the current step."""
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        return self.get_lr()


class ConstantThenLinear(_ConstantThenDecay):
    """Keeps the learning rate, then lowers it linearly.

    factor(k) = 1 for k <= f K, then falls linearly to ``final_factor`` at k = K, the total.
    A constant step of spectral descent ends in a floor of the loss proportional to lr^2; the
    decay removes it.

    Args:
        optimizer: Whose groups are scheduled.
        total_steps: K.
        constant_fraction: f, in [0, 1] (default 0.5).
        final_factor: In [0, 1] (default 0).
        last_epoch: Step to resume from; -1 starts.

    Raises:
        ValueError: On a value out of range.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> schedule = ConstantThenLinear(optimizer, total_steps=4)
        >>> [schedule.factor(k) for k in range(5)]
        [1.0, 1.0, 1.0, 0.5, 0.0]
    """

    def decay(self, progress: float) -> float:
        """Return 1 at progress 0, final_factor at progress 1."""
        return 1.0 - progress * (1.0 - self.final_factor)


class ConstantThenGeometric(_ConstantThenDecay):
    """Keeps the learning rate, then divides it by the same number at every step.

    factor(k) = 1 for k <= f K, then final_factor^p with p rising linearly to 1 at k = K.

    Args:
        optimizer: Whose groups are scheduled.
        total_steps: K.
        constant_fraction: f, in [0, 1] (default 0.5).
        final_factor: In (0, 1] (default 1e-6).
        last_epoch: Step to resume from; -1 starts.

    Raises:
        ValueError: On a value out of range.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> schedule = ConstantThenGeometric(optimizer, total_steps=4, final_factor=0.01)
        >>> [round(schedule.factor(k), 6) for k in range(5)]
        [1.0, 1.0, 1.0, 0.1, 0.01]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        constant_fraction: float = 0.5,
        final_factor: float = 1e-6,
        last_epoch: int = -1,
    ) -> None:
        if final_factor == 0.0:
            raise ValueError(f"final_factor must be in (0, 1], got {final_factor}")
        super().__init__(optimizer, total_steps, constant_fraction, final_factor, last_epoch)

    def decay(self, progress: float) -> float:
        """Return 1 at progress 0, final_factor at progress 1."""
        return self.final_factor**progress


class TravelBudgetWarning(UserWarning):
    """The steps of a schedule add up to less than the way to the target."""


@dataclass(frozen=True)
class TravelBudget:
    """How far spectral steps can go, and how far they must.

    Args:
        available: Sum of the step sizes: no factor moves further in spectral norm.
        required: About (sigma_1 / c)^(1/L) + the start's spectral norm.
    """

    available: float
    required: float

    @property
    def sufficient(self) -> bool:
        """Whether the target is within reach."""
        return self.available >= self.required


def check_travel_budget(
    steps: ConstantThenLinear | ConstantThenGeometric | Sequence[float],
    sigma_max: float,
    *,
    scale: float = 1.0,
    depth: int = 2,
    initial_norm: float = 0.0,
) -> TravelBudget:
    """Warn if a schedule's steps cannot reach a target.

    Every step moves a factor by at most lr in spectral norm, so the sum of the step sizes must
    exceed (sigma_1 / c)^(1/L) + ||W_l(0)||_2: a start in the wrong direction is walked back.

    Args:
        steps: One of this module's schedules, or the step sizes themselves. Shape factors on the
            learning rate are the caller's to multiply in.
        sigma_max: sigma_1, the target's largest singular value.
        scale: LoRA scale c (default 1).
        depth: Number L of factors (default 2; 1 for a single weight).
        initial_norm: Largest spectral norm of a factor at the start (default 0).

    Returns:
        What is available and what is required.

    Warns:
        TravelBudgetWarning: If less is available than required.

    Raises:
        ValueError: On a negative target or norm, or a scale or depth that is not positive.

    Example:
        >>> check_travel_budget([0.01] * 500, sigma_max=9.0)
        TravelBudget(available=5.0, required=3.0)
    """
    if sigma_max < 0 or initial_norm < 0 or scale <= 0 or depth < 1:
        raise ValueError(
            "sigma_max and initial_norm must be at least 0, scale positive and depth at least 1, "
            f"got {sigma_max}, {initial_norm}, {scale}, {depth}"
        )
    available = steps.travel() if isinstance(steps, _ConstantThenDecay) else math.fsum(steps)
    budget = TravelBudget(available, (sigma_max / scale) ** (1 / depth) + initial_norm)
    if not budget.sufficient:
        warnings.warn(
            f"the step sizes add up to {available:.4g}, but the way to singular value "
            f"{sigma_max:.4g} is about {budget.required:.4g} long: raise the learning rate "
            "or the number of steps",
            TravelBudgetWarning,
            stacklevel=2,
        )
    return budget
