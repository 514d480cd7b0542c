"""Float64 Muon, SpecGD and AdamW, one parameter at a time, written to be read."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def polar_by_polynomials(u: Tensor, coefficients: Sequence[tuple[float, float, float]]) -> Tensor:
    """What a Newton-Schulz iteration computes: odd polynomials of the singular values."""
    q, s, vh = torch.linalg.svd(u.double(), full_matrices=False)
    s = s / torch.linalg.vector_norm(s)
    for a, b, c in coefficients:
        s = a * s + b * s**3 + c * s**5
    return (q * s) @ vh


def polar_exact(u: Tensor, tolerance: float = 1e-12) -> Tensor:
    """Q V^T of the compact singular value decomposition; zero directions stay zero."""
    q, s, vh = torch.linalg.svd(u.double(), full_matrices=False)
    keep = (s > tolerance * s[0]).double() if s.numel() and s[0] > 0 else torch.zeros_like(s)
    return (q * keep) @ vh


class ReferenceMuon:
    """Muon on one 2-D weight."""

    def __init__(self, w: Tensor, polar, *, lr, weight_decay, momentum, nesterov, match_rms):
        self.w, self.polar = w.double().clone(), polar
        self.b = torch.zeros_like(self.w)
        self.lr, self.decay, self.mu, self.nesterov = lr, weight_decay, momentum, nesterov
        m, n = w.shape
        self.scale = 0.2 * math.sqrt(max(m, n)) if match_rms else math.sqrt(max(1, m / n))

    def step(self, g: Tensor) -> None:
        g = g.double()
        self.b = self.mu * self.b + (1 - self.mu) * g
        u = self.mu * self.b + (1 - self.mu) * g if self.nesterov else self.b
        self.w = (1 - self.lr * self.decay) * self.w - self.lr * self.scale * self.polar(u)


class ReferenceSpecGD:
    """SpecGD on one 2-D weight."""

    def __init__(self, w: Tensor, polar, *, lr, momentum=0.0, nesterov=False, l2=0.0, decay=0.0):
        self.w, self.polar = w.double().clone(), polar
        self.b = torch.zeros_like(self.w)
        self.lr, self.mu, self.nesterov, self.l2, self.decay = lr, momentum, nesterov, l2, decay

    def step(self, g: Tensor) -> None:
        d = g.double() + self.l2 * self.w
        if self.mu:
            self.b = self.mu * self.b + (1 - self.mu) * d
            d = self.mu * self.b + (1 - self.mu) * d if self.nesterov else self.b
        self.w = (1 - self.lr * self.decay) * self.w - self.lr * self.polar(d)
