"""Parameter-free predictions: what theory says a run must end at, and when."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def conserved_quantity(lam1: Tensor | float, lam2: Tensor | float, depth: int) -> Tensor | float:
    """Return what gradient flow keeps from the (alpha, m) start under block-diagonal observations.

    lam1 / lam2 at depth 2; lam2^(2-L) - lam1^(2-L) at depth L >= 3, where lam1 (once) and lam2
    (n - 1 times) are the non-zero eigenvalues that all factors share.

    Args:
        lam1: Largest eigenvalue of a factor.
        lam2: The other one.
        depth: L, at least 2.

    Returns:
        The quantity, constant along the flow.

    Raises:
        ValueError: If depth < 2.

    Example:
        >>> conserved_quantity(2.0, 0.5, depth=2), conserved_quantity(2.0, 0.5, depth=3)
        (4.0, 1.5)
    """
    _check_depth(depth)
    return lam1 / lam2 if depth == 2 else lam2 ** (2 - depth) - lam1 ** (2 - depth)


def family_eigenvalues(
    blocks: int, *, alpha: float, m: float, block_size: int = 1
) -> tuple[float, float]:
    """Return lam1(0) = s alpha (1 + (n-1)/m) and lam2(0) = s alpha (1 - 1/m) of ``family_init``.

    Args:
        blocks: Number n of diagonal blocks.
        alpha: Scale.
        m: Rank control, from 1 to inf.
        block_size: Side s of a block.

    Returns:
        (lam1, lam2).

    Example:
        >>> family_eigenvalues(3, alpha=1.0, m=2.0)
        (2.0, 0.5)
    """
    return block_size * alpha * (1 + (blocks - 1) / m), block_size * alpha * (1 - 1 / m)


def limit_eigenvalues(
    blocks: int, depth: int, *, alpha: float, m: float, block_size: int = 1, value: float = 1.0
) -> tuple[float, float]:
    """Return a factor's eigenvalues once gradient flow has fitted the block-diagonal observations.

    Solves lam1^L + (n-1) lam2^L = n s w together with the conserved quantity.

    Args:
        blocks: Number n of diagonal blocks.
        depth: Number L of factors.
        alpha: Scale of the start.
        m: Rank control of the start, from 1 to inf.
        block_size: Side s of a block.
        value: The observed value w, above what the start already shows.

    Returns:
        (lam1, lam2), lam1 once and lam2 n - 1 times.

    Raises:
        ValueError: If depth < 2, or the start already exceeds the value (nothing would grow).

    Example:
        >>> lam1, lam2 = limit_eigenvalues(4, 3, alpha=0.1, m=float("inf"))
        >>> round(lam1, 6), round(lam2, 6)
        (1.0, 1.0)
    """
    _check_depth(depth)
    total = blocks * block_size * value
    start1, start2 = family_eigenvalues(blocks, alpha=alpha, m=m, block_size=block_size)
    if start1**depth + (blocks - 1) * start2**depth > total:
        raise ValueError(f"the start's diagonal already exceeds the observed value {value}")

    def second(lam1: float) -> float:
        # The growing lam2 that the conserved quantity pairs with lam1; 0 stays 0 (m = 1).
        if start2 == 0.0 or depth == 2:
            return lam1 * start2 / start1
        gap = start2 ** (2 - depth) - start1 ** (2 - depth)
        return (gap + lam1 ** (2 - depth)) ** (1 / (2 - depth))

    low, high = start1, total ** (1 / depth)
    for _ in range(200):
        middle = 0.5 * (low + high)
        below = middle**depth + (blocks - 1) * second(middle) ** depth < total
        low, high = (middle, high) if below else (low, middle)
    return high, second(high)


def limit_stable_rank(
    blocks: int, depth: int, *, alpha: float, m: float, block_size: int = 1, value: float = 1.0
) -> float:
    """Return the fitted product's stable rank 1 + (n-1) (lam2/lam1)^(2L), from an (alpha, m) start.

    At depth 2 it is 1 + (n-1) ((m-1)/(m+n-1))^4 for every alpha; from depth 3 on it falls to 1
    as O(alpha^(2L)); for m = inf it is n at every depth.

    Args:
        blocks: Number n of diagonal blocks.
        depth: Number L of factors.
        alpha: Scale of the start.
        m: Rank control of the start, from 1 to inf.
        block_size: Side s of a block.
        value: The observed value.

    Returns:
        ||W||_F^2 / ||W||_2^2 of the limit.

    Raises:
        ValueError: As :func:`limit_eigenvalues`.

    Source:
        Derived from the dynamics that Shin and Yun, arXiv 2603.04703, study.

    Example:
        >>> round(limit_stable_rank(4, 2, alpha=1e-3, m=10.0), 3)
        1.689
        >>> round(limit_stable_rank(4, 3, alpha=0.3, m=10.0), 4)
        1.0073
    """
    lam1, lam2 = limit_eigenvalues(
        blocks, depth, alpha=alpha, m=m, block_size=block_size, value=value
    )
    return 1 + (blocks - 1) * (lam2 / lam1) ** (2 * depth)


def gram_limit(factors: Sequence[Tensor], value: Tensor | float = 1.0) -> Tensor:
    """Return where depth-2 gradient flow ends from a small random start on an observed diagonal.

    As the start shrinks, W(inf) = D Z Z^T D with D = diag(sqrt(w)) and the rows of Z the
    normalized rows of W_2(0) + W_1(0)^T.

    Args:
        factors: Start [W_1, W_2] of shapes (S, r, d) and (S, d, r).
        value: Observed diagonal, a positive number or (d,) of them.

    Returns:
        (S, d, d).

    Raises:
        ValueError: Unless there are two factors and every observed value is positive.

    Source:
        Derived: at depth 2 every diagonal entry learns alone, and its row and column of the
        factors grow along their sum.

    Example:
        >>> start = [torch.eye(2)[None] * 1e-3] * 2
        >>> gram_limit(start)
        tensor([[[1., 0.],
                 [0., 1.]]])
    """
    if len(factors) != 2:
        raise ValueError(f"the limit is known for 2 factors, but got {len(factors)}")
    w = torch.as_tensor(value, dtype=factors[0].dtype)
    if not bool((w > 0).all()):
        raise ValueError(f"observed values must be positive, but are {value}")
    z = torch.nn.functional.normalize(factors[1] + factors[0].mT, dim=-1)
    scaled = z * w.sqrt().expand(z.shape[-2])[:, None]
    return scaled @ scaled.mT


def hit_time(
    singular_values: Sequence[float] | Tensor, *, depth: int = 2, rate: float = 1.0,
    fraction: float = 1.0,
) -> Tensor:  # fmt: skip
    """Return when spectral descent from a small start reaches each mode: (f sigma)^(1/L) / rate.

    sigma^(1/L) grows at the factors' common rate, so small modes arrive first.

    Args:
        singular_values: sigma of the target; divide by the LoRA scale where there is one.
        depth: Number L of factors (default 2).
        rate: Step size eta (the answer is then in steps) or 1 (flow time). With one step size
            per factor their geometric mean.
        fraction: Which part f of sigma counts as reached (default 1).

    Returns:
        One time per singular value, float64.

    Raises:
        ValueError: If rate is not positive, or depth < 1.

    Source:
        Kang et al., arXiv 2602.06385, theorem 5.7 (depth 2).

    Example:
        >>> hit_time([4.0, 1.0], rate=0.01)
        tensor([200., 100.], dtype=torch.float64)
    """
    if not rate > 0 or depth < 1:
        raise ValueError(f"rate must be positive and depth at least 1, but are {rate}, {depth}")
    sigma = torch.as_tensor(singular_values, dtype=torch.float64)
    return (fraction * sigma) ** (1 / depth) / rate


def soft_threshold(target: Tensor, l2: float) -> Tensor:
    """Return the optimum U max(Sigma - l2, 0) V^T of a two-factor problem with l2 in the gradient.

    Args:
        target: Y = U Sigma V^T, (..., m, n).
        l2: Penalty l2/2 (||A||_F^2 + ||B||_F^2), at least 0.

    Returns:
        (..., m, n): the product A B at the unique optimum.

    Raises:
        ValueError: If l2 is negative.

    Example:
        >>> soft_threshold(torch.diag(torch.tensor([3.0, 1.0])), 2.0)
        tensor([[1., 0.],
                [0., 0.]])
    """
    if not l2 >= 0:
        raise ValueError(f"l2 must be at least 0, got {l2}")
    u, sigma, vh = torch.linalg.svd(target, full_matrices=False)
    return (u * (sigma - l2).clamp(min=0).unsqueeze(-2)) @ vh


def weight_decay_cap(weight_decay: float, *, depth: int = 2) -> float:
    """Return (1 / weight_decay)^L, the singular value that decoupled weight decay caps W at.

    A spectral step lengthens no singular value of a factor by more than lr, and the decay
    shortens it by lr weight_decay sigma: the two balance at 1 / weight_decay.

    Args:
        weight_decay: Decoupled decay per unit of lr, at least 0.
        depth: Number L of factors (default 2; 1 for a single weight).

    Returns:
        The cap; inf without decay.

    Raises:
        ValueError: If weight_decay is negative.

    Example:
        >>> weight_decay_cap(0.5)
        4.0
    """
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be at least 0, got {weight_decay}")
    return math.inf if weight_decay == 0 else weight_decay**-depth


def _check_depth(depth: int) -> None:
    if depth < 2:
        raise ValueError(f"depth must be at least 2, got {depth}")
