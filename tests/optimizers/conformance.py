"""The rows of the conformance suite, one for each optimizer and mode, and the model they train."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from torch_specgd import Muon, SpecGD

JORDAN = (3.4445, -4.7750, 2.0315)

ROWS: dict[str, Callable[[Any], Optimizer]] = {
    "muon": lambda p: Muon(p, lr=0.02),
    "muon-plain-momentum": lambda p: Muon(p, lr=0.02, nesterov=False),
    "muon-torch-arithmetic": lambda p: Muon(p, lr=0.02, ns_coefficients=JORDAN),
    "muon-rms": lambda p: Muon(p, lr=3e-3, adjust_lr_fn="match_rms_adamw"),
    "muon-maximize": lambda p: Muon(p, lr=0.02, maximize=True),
    "muon-normuon-cautious": lambda p: Muon(
        p, lr=0.02, neuron_beta=0.9, cautious_weight_decay=True
    ),
    "muon-eigenbasis": lambda p: Muon(p, lr=0.02, precondition="eigenbasis"),
    "muon-shampoo-element": lambda p: Muon(
        p, lr=0.02, precondition="shampoo", second_moment="element"
    ),
    "muon-contra-element": lambda p: Muon(
        p, lr=0.02, ns_coefficients="contra", second_moment="element"
    ),
    "muon-bfloat16-state": lambda p: Muon(p, lr=0.02, state_dtype="bfloat16"),
    "muon-one-by-one": lambda p: Muon(p, lr=0.02, foreach=False),
    "specgd": lambda p: SpecGD(p, lr=0.02),
    "specgd-momentum": lambda p: SpecGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "specgd-smoothed": lambda p: SpecGD(p, lr=0.02, method="smoothed"),
    "specgd-precise": lambda p: SpecGD(p, lr=0.02, method="precise", l2=0.01, weight_decay=0.1),
}

every_row = pytest.mark.parametrize("make", ROWS.values(), ids=ROWS.keys())


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Every kind of parameter: convolution, norm, bias, matrix, and one that is frozen."""
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)
    )
    model[0].bias.requires_grad_(False)
    return model.to(dtype)


def loss_of(model: nn.Module, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    x = torch.randn(8, 1, 3, 3, generator=generator).to(dtype)
    return nn.functional.cross_entropy(model(x), torch.arange(8) % 4)


def train(model: nn.Module, optimizer: Optimizer, seeds: range) -> None:
    for seed in seeds:
        optimizer.zero_grad()
        loss_of(model, seed).backward()
        optimizer.step()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)


def through_a_file(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)
