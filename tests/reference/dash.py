"""Direction-aware shrinking, written as slowly and plainly as possible in float64."""

import copy

import numpy as np
from torch import nn


def cosine(w: np.ndarray, g: np.ndarray) -> float:
    """Cosine of two vectors by explicit sums; 0 where either is zero."""
    dot = sum(float(a) * float(b) for a, b in zip(w, g, strict=True))
    length = sum(float(a) ** 2 for a in w) ** 0.5 * sum(float(b) ** 2 for b in g) ** 0.5
    return dot / length if length > 0 else 0.0


def clamp(x: float, low: float) -> float:
    return min(1.0, max(low, x))


def moving_average(gradients: list[np.ndarray], alpha: float) -> np.ndarray:
    """EMA of the negative gradients from zero, oldest first."""
    average = np.zeros_like(gradients[0], dtype=np.float64)
    for g in gradients:
        average = (1 - alpha) * average + alpha * (-g.astype(np.float64))
    return average


def official_factors(w: np.ndarray, g: np.ndarray, floor: float) -> np.ndarray:
    """Factors broadcast to w's shape: per (o, i) kernel, per linear row, one for a bias vector."""
    s = np.empty_like(w, dtype=np.float64)
    if w.ndim >= 3:
        for o in range(w.shape[0]):
            for i in range(w.shape[1]):
                s[o, i] = clamp(cosine(w[o, i].ravel(), g[o, i].ravel()), floor)
    elif w.ndim == 2:
        for o in range(w.shape[0]):
            s[o] = clamp(cosine(w[o], g[o]), floor)
    else:
        s[:] = clamp(cosine(w, g), floor)
    return s


def official_shrink(
    model: nn.Module, batches: list, loss_fn, alpha: float, floor: float, mode: str = "eval"
) -> dict[str, np.ndarray]:
    """New values of every Linear and Conv parameter, from a float64 copy of the model."""
    twin = copy.deepcopy(model).double()
    twin.train(mode == "train")
    chosen = {
        f"{name}.{p_name}".lstrip("."): p
        for name, m in twin.named_modules()
        if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
        for p_name, p in m.named_parameters(recurse=False)
    }
    gradients: dict[str, list[np.ndarray]] = {n: [] for n in chosen}
    for x, y in batches:
        twin.zero_grad()
        loss_fn(twin(x.double()), y).backward()
        for n, p in chosen.items():
            gradients[n].append(p.grad.numpy().copy())
    new = {}
    for n, p in chosen.items():
        w = p.detach().numpy()
        new[n] = w * official_factors(w, moving_average(gradients[n], alpha), floor)
    return new
