"""A shrink by a direction that no data produced, held to its units one by one."""

import numpy as np
import torch
from torch import nn

from reference.dash import clamp, cosine
from warmstart import GradientDirection, dash_shrink


def shrink_by_random_direction(model: nn.Module, **keywords) -> tuple[dict, dict, dict]:
    """(weights before, directions, weights after) under a direction that no data produced."""
    direction = GradientDirection(model, alpha=1.0, include=keywords.get("include"))
    g = torch.Generator().manual_seed(5)
    gradients = {n: torch.randn(p.shape, generator=g) for n, p in direction.parameters.items()}
    direction.update(gradients)
    before = {n: p.detach().double().numpy().copy() for n, p in model.named_parameters()}
    d = {n: -x.double().numpy() for n, x in gradients.items()}
    dash_shrink(model, direction, floor=0.3, **keywords)
    return before, d, {n: p.detach().double().numpy() for n, p in model.named_parameters()}


def check_units(w: np.ndarray, g: np.ndarray, new: np.ndarray, units: list[tuple]) -> None:
    """Every index expression is one unit with one factor."""
    covered = np.zeros_like(w, dtype=int)
    for u in units:
        s = clamp(cosine(w[u].ravel(), g[u].ravel()), 0.3)
        np.testing.assert_allclose(new[u], s * w[u], rtol=0, atol=1e-6)
        covered[u] += 1
    assert (covered == 1).all()
