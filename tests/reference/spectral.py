"""Float64 truths for functions of singular values and eigenvalues, through decompositions."""

from collections.abc import Callable

import torch
from torch import Tensor


def of_singular_values(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """U f(S) V^T of one matrix or a batch; directions of rounding's size are zero."""
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    kept = s > 1e-13 * s[..., :1]
    mapped = torch.where(kept, function(torch.where(kept, s, 1.0)), 0.0)
    return (u * mapped[..., None, :]) @ vh


def power(x: Tensor, p: float) -> Tensor:
    return of_singular_values(x, lambda s: s**p)


def clip(x: Tensor, limit: float) -> Tensor:
    return of_singular_values(x, lambda s: s.clamp(max=limit))


def smooth(x: Tensor, smoothing: float) -> Tensor:
    return of_singular_values(x, lambda s: s / torch.hypot(s, torch.full_like(s, smoothing)))


def root(a: Tensor, r: float) -> Tensor:
    """A^(1/r) of a positive semidefinite matrix or a batch."""
    values, vectors = torch.linalg.eigh(a.double())
    return (vectors * values.clamp(min=0.0)[..., None, :] ** (1 / r)) @ vectors.mT


def inverse_root(a: Tensor, r: float) -> Tensor:
    values, vectors = torch.linalg.eigh(a.double())
    return (vectors * values[..., None, :] ** (-1 / r)) @ vectors.mT


def off_diagonal(a: Tensor, basis: Tensor) -> Tensor:
    """What a basis leaves of a symmetric matrix beside the diagonal, over all of it, a matrix."""
    s = basis.double().mT @ a.double() @ basis.double()
    aside = s - torch.diag_embed(s.diagonal(dim1=-2, dim2=-1))
    return torch.linalg.matrix_norm(aside) / torch.linalg.matrix_norm(s)
