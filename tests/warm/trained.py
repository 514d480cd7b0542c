"""A small BatchNorm net with its optimizer and its data."""

import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy


def trained(optimizer_class=torch.optim.SGD, **keywords) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small BatchNorm net after three steps."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    optimizer = optimizer_class(model.parameters(), lr=0.01, **keywords)
    for x, y in data():
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, optimizer


def data() -> list:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 1, 6, 6, generator=g) + 1, torch.randint(3, (16,), generator=g))
        for _ in range(3)
    ]


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple:
    return (
        {n: t.clone() for n, t in model.state_dict().items()},
        copy.deepcopy(optimizer.state_dict()),
    )


def assert_same(a, b) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)
