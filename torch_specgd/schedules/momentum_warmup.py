"""Momentum warm-up: a scheduler over the key ``momentum``, as others are over ``lr``."""

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class MomentumWarmup(LRScheduler):
    """Raises the momentum linearly from ``start`` to each group's own over the first steps.

        momentum(k) = start + (momentum - start) min(k / total_steps, 1)

    Early gradients are large and soon out of date; a short memory forgets them. Learning rates are
    left to other schedulers, beside which this one is stepped. It works with every optimizer whose
    groups have a ``momentum``. The target is kept in the group as ``initial_momentum``, so that the
    optimizer's own checkpoint is enough to resume; so is this scheduler's ``state_dict()``.

    Args:
        optimizer: Whose groups are scheduled. A momentum given as a one-element tensor is filled
            in place: a compiled step is then not compiled again.
        total_steps: Steps from ``start`` to the group's momentum (default 300).
        start: Momentum of the first step, at most every group's own (default 0.85).
        last_epoch: Step to resume from; -1 starts.

    Raises:
        ValueError: On a value out of range, or a group without a momentum.

    Source:
        KellerJordan/modded-nanogpt, "momentum warmup for muon": 0.85 to 0.95 over 300 steps.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.zeros(2, 2))
        >>> optimizer = torch.optim.Muon([w], momentum=0.95)
        >>> warmup = MomentumWarmup(optimizer, total_steps=2)
        >>> seen = []
        >>> for _ in range(4):
        ...     seen.append(round(optimizer.param_groups[0]["momentum"], 6))
        ...     optimizer.step()
        ...     warmup.step()
        >>> seen
        [0.85, 0.9, 0.95, 0.95]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int = 300,
        start: float = 0.85,
        last_epoch: int = -1,
    ) -> None:
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, but is {total_steps}")
        for i, group in enumerate(optimizer.param_groups):
            if "momentum" not in group:
                raise ValueError(f"group {i} of {type(optimizer).__name__} has no momentum")
            target = float(group.get("initial_momentum", group["momentum"]))
            if not 0.0 <= start <= target:
                raise ValueError(
                    f"start must be from 0 to the momentum of group {i}, {target}, but is {start}"
                )
        self.total_steps = total_steps
        self.start = start
        super().__init__(optimizer, last_epoch)

    def momentum(self, step: int, target: float) -> float:
        """The momentum at a step, from 0, on the way to ``target``."""
        return self.start + (target - self.start) * min(step / self.total_steps, 1.0)

    def get_lr(self) -> list[float | Tensor]:
        """Sets the momenta of this step, as torch's OneCycleLR does here; the rates as they are."""
        for group in self.optimizer.param_groups:
            target = float(group.setdefault("initial_momentum", float(group["momentum"])))
            value = self.momentum(self.last_epoch, target)
            if isinstance(group["momentum"], Tensor):
                group["momentum"].fill_(value)
            else:
                group["momentum"] = value
        return [group["lr"] for group in self.optimizer.param_groups]
