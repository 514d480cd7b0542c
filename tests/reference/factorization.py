"""Slow truths of deep matrix factorization: autograd, loops, scipy's integrators."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.sparse.csgraph import connected_components as scipy_components
from torch import Tensor


def loss(factors: Sequence[Tensor], target: Tensor, mask: Tensor, l2: float = 0.0) -> Tensor:
    """One seed's loss, entry by entry."""
    w = factors[0]
    for factor in factors[1:]:
        w = factor @ w
    total = torch.zeros((), dtype=torch.float64)
    for i, j in mask.nonzero().tolist():
        total = total + 0.5 * (w[i, j] - target[i, j]) ** 2
    for factor in factors:
        total = total + 0.5 * l2 * (factor**2).sum()
    return total


def gradients(
    factors: Sequence[Tensor], target: Tensor, mask: Tensor, l2: float = 0.0
) -> list[Tensor]:
    """One seed's gradients by automatic differentiation."""
    leaves = [f.detach().clone().requires_grad_() for f in factors]
    return list(torch.autograd.grad(loss(leaves, target, mask, l2), leaves))


def coupling_matrix(factors: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Inner products of the gradients of all observed entries, one backward pass each."""
    leaves = [f.detach().clone().requires_grad_() for f in factors]
    w = leaves[0]
    for factor in leaves[1:]:
        w = factor @ w
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(w[i, j], leaves, retain_graph=True)])
        for i, j in mask.nonzero().tolist()
    ]
    jacobian = torch.stack(rows)
    return jacobian @ jacobian.T


def components(adjacency: Tensor) -> np.ndarray:
    """Connected components by scipy."""
    return scipy_components(adjacency.numpy(), directed=False)[1]


def polar(g: Tensor, smoothing: float) -> Tensor:
    """T_beta through a dense decomposition; smoothing 0 drops the zero directions."""
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    if smoothing:
        gain = s / torch.sqrt(s**2 + smoothing**2)
    else:
        gain = (s > s.max() * max(g.shape) * torch.finfo(g.dtype).eps).to(g.dtype)
    return (u * gain) @ vh


def flow(
    factors: Sequence[Tensor],
    target: Tensor,
    mask: Tensor,
    times: Sequence[float],
    smoothing: float | None = None,
) -> list[Tensor]:
    """One seed's (spectral) gradient flow by scipy's DOP853; factors (K, d_l, d_{l-1})."""
    shapes = [f.shape for f in factors]
    sizes = [f.numel() for f in factors]

    def unpack(y: np.ndarray) -> list[Tensor]:
        parts = torch.from_numpy(y.copy()).split(sizes)
        return [p.reshape(s) for p, s in zip(parts, shapes, strict=True)]

    def field(_: float, y: np.ndarray) -> np.ndarray:
        grads = gradients(unpack(y), target, mask)
        if smoothing is not None:
            grads = [polar(g, smoothing) for g in grads]
        return -torch.cat([g.flatten() for g in grads]).numpy()

    start = torch.cat([f.flatten() for f in factors]).numpy()
    solution = solve_ivp(
        field, (times[0], times[-1]), start, method="DOP853", t_eval=times, rtol=1e-8, atol=1e-11
    )
    states = [unpack(y) for y in solution.y.T]
    return [torch.stack(layer) for layer in zip(*states, strict=True)]


def lora_singular_values(lora_b: Tensor, lora_a: Tensor, scale: float) -> Tensor:
    """Through the dense product in float64."""
    rank = min(lora_b.shape[-1], lora_b.shape[-2], lora_a.shape[-1])
    return torch.linalg.svdvals(scale * lora_b.double() @ lora_a.double())[..., :rank]
