"""Which hidden units are idle: by activation, by gradient, by what they send on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..direction.undisturbed import undisturbed
from .hidden_units import Units, follow_units

CRITERIA = ("dormant", "gradient", "utility")
# Calls since the birth of a unit that was there before the first call.
OLD = 2**31


def unit_scores(
    module: nn.Module,
    found: list[Units],
    batches: list[Any],
    run: Callable[..., Any],
    criterion: str,
) -> list[Tensor]:
    """Return each unit's mean size over the batches, relative to its layer's mean."""
    sums: dict[str, Tensor] = {}
    for batch in batches:
        with undisturbed(module, "eval"), torch.set_grad_enabled(criterion == "gradient"):
            again, loss = follow_units(module, partial(run, module, batch))
            kept = {u.sources[0]: u for u in again}
            chosen = [kept[u.sources[0]] for u in found if u.sources[0] in kept]
            sizes: Sequence[Tensor | None] = [u.activation for u in chosen]
            if criterion == "gradient":
                read = [u.activation for u in chosen if u.activation is not None]
                sizes = torch.autograd.grad(loss, read, allow_unused=True)
        for u, x in zip(chosen, sizes, strict=True):
            if x is not None:
                over = [d for d in range(x.ndim) if d != u.channel % x.ndim]
                mean = x.detach().abs().float().mean(over)
                sums[u.sources[0]] = sums.get(u.sources[0], torch.zeros_like(mean)) + mean
    parameters = dict(module.named_parameters())
    scores = []
    for u in found:
        # What no loss reaches has no size.
        weight = parameters[u.sources[0]]
        units = len(u.outputs(weight, u.sources[0]))
        size = sums.get(u.sources[0], torch.zeros(units, device=weight.device))
        if criterion == "utility":
            size = size * sum(_outgoing(u, parameters[n], n) for n in u.readers)
        scores.append(size / size.mean() if bool(size.any()) else size)
    return scores


def _outgoing(u: Units, weight: Tensor, name: str) -> Tensor:
    """Return the size of what each unit sends on: the sum of its outgoing weights' sizes."""
    sizes = u.inputs(weight.detach().abs().float(), name).flatten(1).sum(1)
    return sizes.reshape(-1, u.readers[name]).sum(1)


def ages_of(u: Units, score: Tensor, ages: Mapping[str, Tensor]) -> Tensor:
    """Return the calls since each unit's birth.

    Raises:
        ValueError: If they were counted for another model.
    """
    age = ages.get(u.sources[0])
    if age is None:
        return torch.full(score.shape, OLD, dtype=torch.int64, device=score.device)
    if age.shape != score.shape:
        raise ValueError(f"ages of {u.sources[0]!r} must be {len(score)} numbers, got {len(age)}")
    return age.to(score.device, torch.int64)


def idle_units(score: Tensor, tau: float, share: float | None, mature: Tensor) -> Tensor:
    """Return which units are recycled: of the mature ones, those that score lowest."""
    if share is None:
        return (score <= tau) & mature
    mask = torch.zeros_like(mature)
    order = torch.where(mature, score, torch.inf).argsort(stable=True)
    # The share is of the mature units alone: of a few that are old, not all are reborn at once.
    mask[order[: int(share * int(mature.sum()))]] = True
    return mask
