"""What a spectrum says: ranks, LoRA products that are never formed, balance, learned modes."""

import torch
from torch import Tensor

from ..triton_kernels.iterate.run import as_written


def stable_rank(x: Tensor, *, is_spectrum: bool = False) -> Tensor:
    """Return ||X||_F^2 / ||X||_2^2: between 1 and the rank, and 0 for the zero matrix.

    Args:
        x: (..., m, n), or (..., r) singular values if ``is_spectrum``.
        is_spectrum: Whether x holds singular values.

    Returns:
        (...,), at least float32.

    Example:
        >>> stable_rank(torch.diag(torch.tensor([2.0, 1.0])))
        tensor(1.2500)
    """
    sigma = x if is_spectrum else torch.linalg.svdvals(wide(x))
    # Relative to the largest, so that no square overflows or vanishes.
    return _relative(sigma).square().sum(-1)


def effective_rank(x: Tensor, *, is_spectrum: bool = False) -> Tensor:
    """Return exp(H(sigma / sum sigma)), H the entropy: from 1 to the rank, 0 for the zero matrix.

    Args:
        x: (..., m, n), or (..., r) singular values if ``is_spectrum``.
        is_spectrum: Whether x holds singular values.

    Returns:
        (...,), at least float32.

    Source:
        Roy and Vetterli 2007, The effective rank.

    Example:
        >>> round(float(effective_rank(torch.eye(3))), 4)
        3.0
    """
    relative = _relative(x if is_spectrum else torch.linalg.svdvals(wide(x)))
    total = relative.sum(-1)
    share = relative / total.clamp(min=1.0).unsqueeze(-1)
    return torch.exp(torch.special.entr(share).sum(-1)) * (total > 0)


def lora_singular_values(lora_b: Tensor, lora_a: Tensor, scale: float = 1.0) -> Tensor:
    """Return the singular values of scale * lora_b @ lora_a from two thin QRs, without the product.

    B = Q_B R_B and A^T = Q_A R_A give sigma(B A) = sigma(R_B R_A^T), an r x r problem. The Gram
    matrices A A^T and B^T B would square the condition number and lose the small values.

    Args:
        lora_b: (..., m, r).
        lora_a: (..., r, n).
        scale: c (default 1).

    Returns:
        (..., min(m, r, n)), descending, at least float32.

    Raises:
        ValueError: If the inner dimensions differ.

    Example:
        >>> lora_singular_values(torch.eye(3)[:, :1], torch.tensor([[3.0, 4.0]]), scale=2.0)
        tensor([10.])
    """
    if lora_b.shape[-1] != lora_a.shape[-2]:
        raise ValueError(
            "lora_b must be (..., m, r) and lora_a (..., r, n), got "
            f"{tuple(lora_b.shape)} and {tuple(lora_a.shape)}"
        )
    with as_written(lora_b.device):
        return abs(scale) * torch.linalg.svdvals(triangle(lora_b) @ triangle(lora_a.mT).mT)


def lora_balance(lora_b: Tensor, lora_a: Tensor) -> Tensor:
    """Return ||sqrt(B^T B) - sqrt(A A^T)||_F: constant along an aligned Muon flow, 0 if balanced.

    Args:
        lora_b: B, (..., m, r).
        lora_a: A, (..., r, n).

    Returns:
        (...,), at least float32.

    Source:
        Rhee, Simon and Karkada, arXiv 2606.30509 (the conserved difference).

    Example:
        >>> round(float(lora_balance(2 * torch.eye(2), torch.eye(2))), 4)
        1.4142
    """
    return torch.linalg.matrix_norm(_gram_root(lora_b) - _gram_root(lora_a.mT))


def mode_projections(left: Tensor, right: Tensor, u: Tensor, vh: Tensor) -> Tensor:
    """Return d_i = u_i^T (left right) v_i: how much a product has learned of a target's modes.

    Args:
        left: (..., m, r).
        right: (..., r, n).
        u: Left singular vectors of the target Y = U Sigma V^T, (m, k).
        vh: V^T, (k, n).

    Returns:
        (..., k).

    Example:
        >>> y = torch.diag(torch.tensor([3.0, 1.0]))
        >>> u, sigma, vh = torch.linalg.svd(y)
        >>> mode_projections(y, torch.eye(2), u, vh)
        tensor([3., 1.])
    """
    with as_written(left.device):
        return ((u.mT @ left) * (vh @ right.mT)).sum(-1)


def triangle(x: Tensor) -> Tensor:
    """Return R of the thin X = Q R: it has X's singular values and X^T X, in r x r numbers."""
    return torch.linalg.qr(wide(x), mode="r").R


def wide(x: Tensor) -> Tensor:
    """Convert half precision to float32, which decompositions need; leaves the rest."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _relative(sigma: Tensor) -> Tensor:
    largest = sigma.amax(-1, keepdim=True)
    return torch.where(largest > 0, sigma / largest, 0.0)


def _gram_root(x: Tensor) -> Tensor:
    # sqrt(X^T X) = V S V^T, from the r x r factor R of X = Q R.
    _, s, vh = torch.linalg.svd(triangle(x), full_matrices=False)
    with as_written(x.device):
        return (vh.mT * s.unsqueeze(-2)) @ vh
