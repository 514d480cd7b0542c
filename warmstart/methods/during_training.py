"""Peers that act during training: a pull towards the initial weights, learning-rate advice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from specgd_common.tensors import full, norm64

from ..direction.norms import watch_norms
from ..direction.undisturbed import to_device, undisturbed
from ..targets.find import Patterns, find_targets
from ..targets.parameters import unwrap
from .initial_values import Initial, initial_values


def l2_init_penalty(
    model: nn.Module,
    initial: nn.Module | Mapping[str, Tensor],
    coefficient: float = 1e-2,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Tensor:
    """Return a penalty on the distance to the initial weights, for the loss of every step.

        coefficient * sum over parameters of |w - w_0|^2

    Args:
        model: The model in training.
        initial: Its initial weights: a frozen copy, or a state dict.
        coefficient: Strength, >= 0; the published default.
        include: Which parameters (default: all), see ``find_targets``.
        exclude: Which parameters not.

    Returns:
        A scalar with gradients to the model.

    Raises:
        ValueError: If an initial value is missing or has another shape, or the coefficient is not a
            finite number >= 0.

    Source: Kumar, Marklund, Van Roy 2023 (arXiv 2308.11958).

    Example:
        >>> import copy, torch
        >>> from warmstart import l2_init_penalty
        >>> model = torch.nn.Linear(2, 2)
        >>> float(l2_init_penalty(model, copy.deepcopy(model)).detach())
        0.0
    """
    if not 0.0 <= coefficient < math.inf:
        raise ValueError(f"coefficient must be finite and >= 0, got {coefficient}")
    targets, _ = find_targets(model, include="*" if include is None else include, exclude=exclude)
    start = initial_values(model, [t.name for t in targets], initial)
    total = torch.zeros((), device=targets[0].parameter.device)
    for t in targets:
        total = total + (t.parameter - start[t.name].to(t.parameter)).square().sum()
    return coefficient * total


@dataclass
class RewarmAdvice:
    """How far weights have outgrown their initialization, and the learning rate for that.

    Attributes:
        lr: Suggested learning rate.
        multiplier: ``lr`` over the current one.
        growth: Parameter -> norm now / norm of a fresh initialization.
        text: The advice in words.
    """

    lr: float
    multiplier: float
    growth: dict[str, float] = field(default_factory=dict)
    text: str = ""

    def __str__(self) -> str:
        return self.text


def rewarm_advice(
    model: nn.Module,
    lr: float,
    *,
    fresh: Initial = None,
    example: Any = None,
    adaptive: bool = False,
    largest: float = 100.0,
) -> RewarmAdvice:
    """Return the learning rate that restores the effective learning rate of a fresh model.

    Where a normalization follows, only lr / |w|^2 matters for SGD (lr / |w| for Adam and sign-like
    optimizers): weights that have grown train more slowly. A shrink by s and a learning rate that
    is 1 / s^2 times larger are then the same thing; this is the alternative that touches no weight.

        multiplier = median over layers of (|w| / |w_fresh|)^2     (power 1 if adaptive)

    Args:
        model: The converged model.
        lr: The learning rate so far, > 0.
        fresh: Where initial norms come from, see ``initial_values``.
        example: One input batch; only weights that a normalization follows are then counted.
        adaptive: True for Adam, Muon and others whose step does not scale with the gradient.
        largest: Cap on the multiplier.

    Returns:
        A ``RewarmAdvice``; print it.

    Raises:
        ValueError: For a learning rate that is not positive, or if no normalized weight is found.

    Source: Lyle et al. 2025 (arXiv 2507.20057).

    Example:
        >>> import torch
        >>> from warmstart import rewarm_advice
        >>> model = torch.nn.Linear(8, 8)
        >>> with torch.no_grad():
        ...     _ = model.weight.mul_(3.0)
        >>> rewarm_advice(model, lr=0.01).multiplier > 4
        True
    """
    if not 0.0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr}")
    targets = [t for t in find_targets(model, bias="skip")[0] if t.parameter.ndim >= 2]
    if example is not None:
        module = unwrap(model)
        with undisturbed(module, "eval"), torch.no_grad(), watch_norms(module) as seen:
            module(to_device(example, module))
        targets = [t for t in targets if t.module in seen.follows]
    if not targets:
        raise ValueError("no weight with a normalization behind it: the advice does not apply")
    start = initial_values(model, [t.name for t in targets], fresh)
    growth = {
        t.name: norm64(full(t.parameter.detach())) / max(norm64(start[t.name]), 1e-30)
        for t in targets
    }
    power = 1 if adaptive else 2
    multiplier = min(largest, max(1.0, median(growth.values()) ** power))
    text = (
        f"weights have grown {median(growth.values()):.2f}-fold (median of {len(growth)}): "
        f"train on at lr {lr * multiplier:.3g} instead of {lr:.3g} (x{multiplier:.3g})"
        if multiplier > 1.1
        else f"weights have hardly grown: keep lr {lr:.3g}"
    )
    return RewarmAdvice(lr * multiplier, multiplier, growth, text)
