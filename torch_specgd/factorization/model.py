"""The model W = W_L ... W_1: product, loss, and the gradient of every factor."""

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

from .problem import Problem


def check_factors(factors: Sequence[Tensor]) -> None:
    """Raise ValueError unless the factors can be multiplied, first factor first.

    Args:
        factors: [W_1, ..., W_L], each (S, d_l, d_{l-1}).
    """
    if len(factors) < 2:
        raise ValueError(f"a factorization has at least 2 factors, but got {len(factors)}")
    for i, w in enumerate(factors):
        if w.ndim != 3:
            raise ValueError(f"factor {i + 1} must be (S, rows, columns), got {tuple(w.shape)}")
    for i, (w, following) in enumerate(pairwise(factors)):
        if following.shape[-1] != w.shape[-2] or following.shape[0] != w.shape[0]:
            raise ValueError(
                f"factor {i + 2} of shape {tuple(following.shape)} cannot follow factor {i + 1} "
                f"of shape {tuple(w.shape)}; pass [W_1, ..., W_L], first factor first"
            )


def product(factors: Sequence[Tensor]) -> Tensor:
    """Return W = W_L ... W_1.

    Args:
        factors: [W_1, ..., W_L], each (..., d_l, d_{l-1}).

    Returns:
        (..., d_L, d_0).

    Example:
        >>> product([torch.tensor([[2.0]]), torch.tensor([[3.0]])])
        tensor([[6.]])
    """
    return reduce(lambda right, left: left @ right, factors)


def surroundings(factors: Sequence[Tensor]) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Return the products before and after each factor: W_{l-1} ... W_1 and W_L ... W_{l+1}.

    Args:
        factors: [W_1, ..., W_L].

    Returns:
        (before, after), lists of L tensors; None stands for the empty product, the identity.
    """
    before: list[Tensor | None] = [None]
    for w in factors[:-1]:
        before.append(w if before[-1] is None else w @ before[-1])
    after: list[Tensor | None] = [None]
    for w in reversed(factors[1:]):
        after.append(w if after[-1] is None else after[-1] @ w)
    return before, after[::-1]


def loss(factors: Sequence[Tensor], problem: Problem) -> Tensor:
    """Return 1/2 ||E||_F^2 + l2/2 sum_l ||W_l||_F^2 for each seed; see :class:`Problem`.

    Args:
        factors: [W_1, ..., W_L], each (S, d_l, d_{l-1}).
        problem: Target, mask and penalty.

    Returns:
        (S,).
    """
    value = 0.5 * problem.residual(product(factors)).square().sum((-2, -1))
    if problem.l2:
        value = value + 0.5 * problem.l2 * sum(w.square().sum((-2, -1)) for w in factors)
    return value


def gradients(factors: Sequence[Tensor], problem: Problem) -> list[Tensor]:
    """Return G_l = (W_L ... W_{l+1})^T E (W_{l-1} ... W_1)^T + l2 W_l.

    Args:
        factors: [W_1, ..., W_L], each (S, d_l, d_{l-1}).
        problem: Target, mask and penalty.

    Returns:
        The loss's gradient by each factor, in the factors' shapes.

    Example:
        >>> w = [torch.eye(2).double()[None]] * 2
        >>> gradients(w, Problem(torch.zeros(2, 2)))[0]
        tensor([[[1., 0.],
                 [0., 1.]]], dtype=torch.float64)
    """
    before, after = surroundings(factors)
    whole = factors[-1] if before[-1] is None else factors[-1] @ before[-1]
    error = problem.residual(whole)
    grads = []
    for w, right, left in zip(factors, before, after, strict=True):
        g = error if left is None else left.mT @ error
        g = g if right is None else g @ right.mT
        grads.append(torch.add(g, w, alpha=problem.l2) if problem.l2 else g)
    return grads
