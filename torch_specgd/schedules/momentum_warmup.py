"""Momentum warm-up: a scheduler over the key ``momentum``, as others are over ``lr``."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..checks import integer, number


class MomentumWarmup(LRScheduler):
    """Raise the momentum linearly from ``start`` to each group's own over the first steps.

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
        integer(1)("total_steps", total_steps)
        number(below=1.0)("start", start)
        for i, group in enumerate(optimizer.param_groups):
            if "momentum" not in group:
                raise ValueError(f"group {i} of {type(optimizer).__name__} has no momentum")
            target = float(group.get("initial_momentum", group["momentum"]))
            if start > target:
                raise ValueError(
                    f"start must be from 0 to the momentum of group {i}, {target}, got {start}"
                )
        self.total_steps = total_steps
        self.start = start
        super().__init__(optimizer, last_epoch)

    def momentum(self, step: int, target: float) -> float:
        """Return the momentum at a step, from 0, on the way to ``target``."""
        return self.start + (target - self.start) * min(step / self.total_steps, 1.0)

    def get_lr(self) -> list[float | Tensor]:
        """Set the momenta of this step, as torch's OneCycleLR does here; the rates as they are."""
        for group in self.optimizer.param_groups:
            target = float(group.setdefault("initial_momentum", float(group["momentum"])))
            value = self.momentum(self.last_epoch, target)
            if isinstance(group["momentum"], Tensor):
                group["momentum"].fill_(value)
            else:
                group["momentum"] = value
        return [group["lr"] for group in self.optimizer.param_groups]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict()`` returned, once all of it is known to be right.

        Raises:
            ValueError: On a missing or unknown key, or a value out of range.
            TypeError: On a value of the wrong kind.
        """
        known = self.state_dict().keys()
        # Keys that begin with an underscore are torch's, and differ between its versions.
        unknown = [k for k in state_dict if k not in known and not str(k).startswith("_")]
        missing = [k for k in known if k not in state_dict and not k.startswith("_")]
        if unknown or missing:
            raise ValueError(
                f"the state of MomentumWarmup must have the keys {sorted(known)}: "
                f"unknown {unknown}, missing {missing}"
            )
        integer(1)("total_steps", state_dict["total_steps"])
        number(below=1.0)("start", state_dict["start"])
        integer(0)("last_epoch", state_dict["last_epoch"])
        for key in {"base_lrs", "_last_lr"} & state_dict.keys():
            rates = state_dict[key]
            if not isinstance(rates, list) or len(rates) != len(self.optimizer.param_groups):
                raise ValueError(f"{key} must be a list of a rate for each group, got {rates!r}")
            for rate in rates:
                number()(key, rate)
        if "_step_count" in state_dict:
            integer(0)("_step_count", state_dict["_step_count"])
        super().load_state_dict(state_dict)
