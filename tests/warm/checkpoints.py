"""A small model, its direction and its files, for the tests of checkpoints."""

from pathlib import Path

import pytest
import torch
from torch import nn

from warmstart import (
    GradientDirection,
)

safetensors_torch = pytest.importorskip("safetensors.torch")


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).to(dtype)


def fed(model: nn.Module) -> GradientDirection:
    g = torch.Generator().manual_seed(1)
    direction = GradientDirection(model)
    for _ in range(3):
        direction.update(
            {n: torch.randn(p.shape, generator=g) for n, p in direction.parameters.items()}
        )
    return direction


def equal(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def saved(folder: Path, suffix: str) -> Path:
    """A checkpoint file with metadata or with what surrounds the weights in practice."""
    path = folder / f"in{suffix}"
    state = net(torch.bfloat16).state_dict()
    if suffix == ".safetensors":
        safetensors_torch.save_file(dict(state), path, metadata={"format": "pt", "note": "mine"})
    elif suffix == ".ckpt":
        torch.save({"model": state, "epoch": 7, "optimizer": {"lr": 0.1}}, path)
    else:
        torch.save(state, path)
    return path


def load(path: Path) -> dict:
    if path.suffix == ".safetensors":
        return safetensors_torch.load_file(path)
    loaded = torch.load(path, weights_only=True)
    return loaded.get("model", loaded)
