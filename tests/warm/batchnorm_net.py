"""A BatchNorm net with moved statistics, and its data."""

import torch
from torch import nn


def net() -> nn.Sequential:
    """A BatchNorm net with moved statistics."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(64, 3),
    )
    with torch.no_grad():
        for x, _ in data():
            model(x)
    return model


def data(size: int = 16) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 1, 6, 6, generator=g) + 1, torch.randint(3, (size,), generator=g))
        for _ in range(3)
    ]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}
