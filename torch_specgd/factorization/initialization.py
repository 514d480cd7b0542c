"""Where training starts: lists [W_1, ..., W_L] of factors, batched over seeds."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def family_init(
    blocks: int, depth: int, *, alpha: float, m: float, block_size: int = 1
) -> list[Tensor]:
    """Start every factor at alpha on the diagonal blocks and alpha / m off them.

    W_l(0) = alpha ((1 - 1/m) I_n + (1/m) 1 1^T) (x) 1 1^T, the rank-control family: m = 1 has
    rank one, m = inf is block-diagonal.

    Args:
        blocks: Number n of diagonal blocks.
        depth: Number L of factors, at least 2.
        alpha: Scale.
        m: Rank control, from 1 to inf.
        block_size: Side s of a block (default 1).

    Returns:
        L tensors (1, n s, n s), float64.

    Raises:
        ValueError: If depth < 2, m < 1 or alpha <= 0.

    Source:
        Shin and Yun, arXiv 2603.04703 (the family); the exact form is a reconstruction.

    Example:
        >>> family_init(2, 3, alpha=1.0, m=10.0)[0]
        tensor([[[1.0000, 0.1000],
                 [0.1000, 1.0000]]], dtype=torch.float64)
    """
    _check_depth(depth)
    if not m >= 1.0:
        raise ValueError(f"m must be from 1 to inf, got {m}")
    if not (alpha > 0.0 and math.isfinite(alpha)):
        raise ValueError(f"alpha must be positive and finite, got {alpha}")
    outer = torch.full((blocks, blocks), 1.0 / m, dtype=torch.float64)
    outer.fill_diagonal_(1.0)
    factor = alpha * torch.kron(outer, torch.ones(block_size, block_size, dtype=torch.float64))
    return [factor.unsqueeze(0).clone() for _ in range(depth)]


def gaussian_init(
    dims: Sequence[int], *, std: float | Sequence[float], seeds: Sequence[int] = (0,)
) -> list[Tensor]:
    """Draw every entry of every factor from a centred normal law.

    Args:
        dims: Widths (d_0, ..., d_L): W_l is d_l x d_{l-1}.
        std: Standard deviation of the entries, or one for each factor; 0 gives a zero factor.
        seeds: One start per seed; a seed's start does not depend on its company.

    Returns:
        L tensors (len(seeds), d_l, d_{l-1}), float64.

    Raises:
        ValueError: If fewer than two factors are asked for, or std has another length.

    Example:
        >>> [tuple(w.shape) for w in gaussian_init([7, 3, 5], std=1e-3, seeds=range(4))]
        [(4, 3, 7), (4, 5, 3)]
    """
    depth = len(dims) - 1
    _check_depth(depth)
    stds = [float(std)] * depth if isinstance(std, (int, float)) else [float(s) for s in std]
    if len(stds) != depth:
        raise ValueError(f"std must be one number or {depth} numbers, but has {len(stds)}")
    starts = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(int(seed))
        starts.append(
            [
                s * torch.randn(dims[i + 1], dims[i], dtype=torch.float64, generator=generator)
                for i, s in enumerate(stds)
            ]
        )
    return [torch.stack(factor) for factor in zip(*starts, strict=True)]


def lora_init(
    m: int, rank: int, n: int, *, gamma: float = 1e-3, seeds: Sequence[int] = (0,)
) -> list[Tensor]:
    """Start W = A B as LoRA does: A = 0 and B = gamma times Gaussian.

    Args:
        m: Rows of the product.
        rank: Inner dimension r.
        n: Columns of the product.
        gamma: Scale of B (default 1e-3).
        seeds: One start per seed.

    Returns:
        [B, A] of shapes (S, r, n) and (S, m, r), float64: first factor first. The paper's A is
        ``lora_B`` in PEFT, its B is ``lora_A``.

    Source:
        Kang et al., arXiv 2602.06385, section 5.

    Example:
        >>> b, a = lora_init(4, 2, 3)
        >>> tuple(b.shape), tuple(a.shape), bool((a == 0).all())
        ((1, 2, 3), (1, 4, 2), True)
    """
    return gaussian_init([n, rank, m], std=[gamma, 0.0], seeds=seeds)


def _check_depth(depth: int) -> None:
    if depth < 2:
        raise ValueError(f"a factorization has at least 2 factors, but depth is {depth}")
