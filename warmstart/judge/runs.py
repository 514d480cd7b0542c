"""One trial of a comparison: the methods by name, and training until a target is reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..direction.undisturbed import Loss, to_device
from ..methods.dash import dash_shrink
from ..methods.during_training import rewarm_advice
from ..methods.fire import fire_reinit
from ..methods.perturb import shrink_and_perturb
from ..methods.recycle import recycle_units
from ..methods.uniform import uniform_shrink

Batches = Sequence[tuple[Any, Tensor]]
Method = Callable[[nn.Module, Batches, "Setting"], nn.Module | None]


@dataclass
class Setting:
    """What a method may need besides the model: a fresh model, the loss, the learning rate."""

    model_fn: Callable[[], nn.Module]
    loss_fn: Loss
    seed: int
    lr_multiplier: float = 1.0


def _cold(model: nn.Module, data: Batches, setting: Setting) -> nn.Module:
    return setting.model_fn()


def _rewarm(model: nn.Module, data: Batches, setting: Setting) -> None:
    setting.lr_multiplier = rewarm_advice(model, 1.0, fresh=setting.model_fn, largest=10.0).lr


def _fire(model: nn.Module, data: Batches, setting: Setting) -> None:
    fire_reinit(model)


def _uniform(model: nn.Module, data: Batches, setting: Setting) -> None:
    uniform_shrink(model)


def _perturb(model: nn.Module, data: Batches, setting: Setting) -> None:
    shrink_and_perturb(model, "ash", fresh=setting.model_fn, seed=setting.seed)


def _dash(model: nn.Module, data: Batches, setting: Setting) -> None:
    dash_shrink(model, data, setting.loss_fn)


def _dash_auto(model: nn.Module, data: Batches, setting: Setting) -> None:
    dash_shrink(model, data, setting.loss_fn, floor="auto")


def _recycle(model: nn.Module, data: Batches, setting: Setting) -> None:
    recycle_units(model, data, setting.loss_fn, fresh=setting.model_fn, seed=setting.seed)


METHODS: Mapping[str, Method] = {
    "none": lambda model, data, setting: None,
    "cold": _cold,
    "rewarm": _rewarm,
    "uniform": _uniform,
    "shrink_and_perturb": _perturb,
    "fire": _fire,
    "dash": _dash,
    "dash_auto": _dash_auto,
    "recycle": _recycle,
}

# What each of them does, in a line.
ABOUT: Mapping[str, str] = {
    "none": "train on",
    "cold": "a freshly initialized model",
    "rewarm": "train on at a learning rate that is higher as weights have grown",
    "uniform": "every weight times 0.3",
    "shrink_and_perturb": "0.4 w + 0.1 of a fresh model",
    "fire": "every matrix becomes its nearest isometry",
    "dash": "direction-aware shrinking, floor 0.3",
    "dash_auto": "the same with a floor by normalization and depth",
    "recycle": "idle hidden units are born again",
}


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[Any],
    loss_fn: Loss,
    target: float,
    max_epochs: int,
    seed: int,
) -> tuple[int, float]:
    """Return the steps until the target, and the last epoch's train accuracy."""
    generator = torch.Generator().manual_seed(seed)
    steps, share = 0, 0.0
    model.train()
    for _ in range(max_epochs):
        right = count = 0
        for i in torch.randperm(len(batches), generator=generator).tolist():
            x, y = to_device(batches[i], model)
            logits = model(x)
            loss = loss_fn(logits, y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            right += int((logits.detach().argmax(-1) == y).sum())
            count += y.numel()
            steps += 1
        share = right / count
        if share >= target or not math.isfinite(float(loss.detach())):
            break
    return steps, share


@torch.no_grad()
def accuracy(model: nn.Module, batches: list[Any]) -> float:
    """Return the accuracy in percent, in eval mode."""
    model.eval()
    right = count = 0
    for batch in batches:
        x, y = to_device(batch, model)
        right += int((model(x).argmax(-1) == y).sum())
        count += y.numel()
    return 100.0 * right / count
