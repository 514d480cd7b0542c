"""What is done to a learner between two chunks: cold and warm starts, peers, DASH, its controls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from warm_bed import Learner

from warmstart import (
    GradientDirection,
    dash_shrink,
    fire_reinit,
    shrink_and_perturb,
    uniform_shrink,
)

Data = tuple[Tensor, Tensor]
Method = Callable[[Learner, list[Data], Any, int], None]


def dash(learner: Learner, seen: list[Data], floor: float | str, seed: int) -> None:
    dash_shrink(learner.model, seen, floor=floor, alpha=0.3)


def dash_shuffled(learner: Learner, seen: list[Data], floor: float | str, seed: int) -> None:
    """DASH's factors, dealt to other units of the same layer."""
    report = dash_shrink(learner.model, seen, floor=floor, alpha=0.3, dry_run=True)
    assert report.factors is not None
    generator = torch.Generator().manual_seed(1000 * seed + len(seen))
    with torch.no_grad():
        for name, s in report.factors.items():
            order = torch.randperm(s.numel(), generator=generator)
            learner.model.get_parameter(name).mul_(s.flatten()[order].reshape(s.shape))


def dash_wrong_sign(learner: Learner, seen: list[Data], floor: float | str, seed: int) -> None:
    """DASH with the sign of the gradient exchanged, as some imitations have it."""
    direction = GradientDirection(learner.model, alpha=0.3)
    learner.model.eval()
    names = list(direction.parameters)
    for x, y in seen:
        loss = torch.nn.functional.cross_entropy(learner.model(x), y)
        grads = torch.autograd.grad(loss, list(direction.parameters.values()))
        direction.update({n: -g for n, g in zip(names, grads, strict=True)})
    dash_shrink(learner.model, direction, floor=floor)


def nothing(learner: Learner, seen: list[Data], floor: float | str, seed: int) -> None:
    """Cold starts get a new learner from ``run``; warm starts just train on."""


def fresh_momentum(learner: Learner, seen: list[Data], floor: float | str, seed: int) -> None:
    learner.fresh_optimizer()


def uniform(learner: Learner, seen: list[Data], floor: Any, seed: int) -> None:
    uniform_shrink(learner.model, floor)


def perturb(learner: Learner, seen: list[Data], floor: Any, seed: int) -> None:
    shrink_and_perturb(learner.model, "dash", shrink=floor, seed=seed)


def fire(learner: Learner, seen: list[Data], floor: float | str, seed: int) -> None:
    fire_reinit(learner.model)


def chain_biases(learner: Learner, before: dict[str, Tensor]) -> None:
    """Each bias of a plain chain shrinks as the signal that it is added to does.

    With every weight scaled by s, biases scaled by s, s^2, s^3, ... leave a ReLU net's function as
    it was, up to its scale; one factor per bias vector does not.
    """
    signal = 1.0
    with torch.no_grad():
        for name, p in learner.model.named_parameters():
            if name.endswith("weight"):
                signal *= float(p.norm() / before[name].norm())
            else:
                p.copy_(before[name] * signal)


def snapshot(learner: Learner) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in learner.model.named_parameters()}


def dash_chained(learner: Learner, seen: list[Data], floor: float | str, seed: int) -> None:
    before = snapshot(learner)
    dash(learner, seen, floor, seed)
    chain_biases(learner, before)


def uniform_chained(learner: Learner, seen: list[Data], floor: Any, seed: int) -> None:
    before = snapshot(learner)
    uniform(learner, seen, floor, seed)
    chain_biases(learner, before)


def dash_no_bias(learner: Learner, seen: list[Data], floor: float | str, seed: int) -> None:
    dash_shrink(learner.model, seen, floor=floor, alpha=0.3, bias="skip")


def dash_head(learner: Learner, seen: list[Data], floor: float | str, seed: int) -> None:
    head = str(len(learner.model) - 1)  # type: ignore[arg-type]
    dash_shrink(learner.model, seen, floor=floor, alpha=0.3, include=f"{head}.*")


def dash_body(learner: Learner, seen: list[Data], floor: float | str, seed: int) -> None:
    head = str(len(learner.model) - 1)  # type: ignore[arg-type]
    dash_shrink(learner.model, seen, floor=floor, alpha=0.3, exclude=f"{head}.*")


METHODS: dict[str, Method] = {
    "cold": nothing,
    "warm": nothing,
    "warm, fresh momentum": fresh_momentum,
    "uniform": uniform,
    "shrink & perturb": perturb,
    "FIRE": fire,
    "DASH": dash,
    "DASH, shuffled factors": dash_shuffled,
    "DASH, wrong sign": dash_wrong_sign,
}

# Tried for floor="auto" on the plain net, on exploration seeds only.
TRIED: dict[str, Method] = {
    "DASH, chained biases": dash_chained,
    "uniform, chained biases": uniform_chained,
    "DASH, biases kept": dash_no_bias,
    "DASH, head only": dash_head,
    "DASH, head kept": dash_body,
}
