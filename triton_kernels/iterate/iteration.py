"""The Newton-Schulz iteration, written once over `Products`.

X is (b, n, m) with n <= m. A step of odd degree 2k+1 multiplies X by a
polynomial of degree k in R = X X^T, and both forms build that polynomial in the same way:

- direct: R is formed anew from X in every step, so rounding errors do not add up and 16-bit
  storage is safe;
- Gram: R is carried along instead (R <- W R W, symmetric) with the product Q of all W, X is
  touched once a segment; cheaper for wide matrices, and safe where R is kept in float32 (or fp16
  with restarts).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from ..schedule.named import Schedule
from ..schedule.squares import Step, chain_of_squares
from .normalize import Start
from .products import Products, plus_identity, scale_members, scaled_sum


def step_polynomial(
    r: Tensor,
    step: Step,
    ops: Products,
    u: Tensor | None = None,
    centre: float = 0.0,
    spare: bool = False,
) -> Tensor:
    """Return ``h(R) = c0 I + c1 R + c2 R^2 + ...`` as a fresh symmetric matrix.

    Args:
        r: (b, n, n), symmetric; ``R - centre I``.
        step: 2 to 5 coefficients, or 9.
        ops: The products.
        u: ``R^2``, if it is known already.
        centre: Zero, or that of the step's chain.
        spare: Whether r and u may be overwritten.
    """
    if len(step) == 4:
        v = ops.symmetric(r, r, r, alpha=step[3], beta=step[2], gamma=step[1])
        return ops.symmetric(r, v, gamma=step[0])
    chain = chain_of_squares(step)
    (alpha, beta, gamma), *links = chain.links if centre else chain.around_zero
    if links and (centre or u is not None):
        # The next link takes over alpha, so that this one is a product or sum without a factor.
        links[0] = (links[0][0] * alpha * alpha, *links[0][1:])
        alpha, beta, gamma = 1.0, beta / alpha, gamma / alpha
    if alpha == 0.0:
        s = plus_identity(scaled_sum(r, beta, r, 0.0), gamma)
    elif u is not None:
        s = plus_identity(scaled_sum(u, alpha, r, beta, u if spare else None), gamma)
    else:
        s = ops.symmetric(r, r, r if beta else None, alpha, beta, gamma)
    for k, (alpha, beta, gamma) in enumerate(links):
        last = k == len(links) - 1
        s = ops.symmetric(s, s, r, alpha, beta, gamma, spare=spare and last)
    return s


def _centre(step: Step) -> float:
    return 0.0 if len(step) == 4 else chain_of_squares(step).centre


def direct(
    start: Start,
    schedule: Schedule,
    ops: Products,
    out: Tensor | None = None,
    spare: Sequence[Tensor] = (),
) -> Tensor:
    """Run the direct form: every step forms ``R = X X^T`` and sets ``X <- h(R) X``.

    Args:
        start: From `begin`, with the schedule's normalization.
        schedule: The steps.
        ops: The products.
        out: Where the last product goes, default a new tensor.
        spare: Two tensors like X to work in, of which `start.x` may be one; default new ones.

    Returns:
        (b, n, m), `out`, one of `spare`, or fresh; in float32 or wider if the schedule has weights.
    """
    steps, x = schedule.coefficients, start.x
    total = None
    if schedule.weights:
        total = x.to(start.factor.dtype) * (schedule.weights[0] * start.factor)
    # The start's R^2 has been rounded once more than the square that a step computes by itself.
    # Only schedules with the Schatten-8 normalization have room for that.
    u = start.u if schedule.normalization == "schatten8" else None
    for k, step in enumerate(steps):
        centre = _centre(step)
        if k == 0:
            # A CPU shifts R's diagonal, which is one short pass; a GPU's kernel adds R at no cost.
            centre = centre if u is None and start.looked else 0.0
            r = plus_identity(start.r, -centre) if centre else start.r
            w = step_polynomial(r, step, ops, u, centre, spare=True)
            w = scale_members(w, start.factor)
        else:
            w = step_polynomial(ops.gram(x, -centre), step, ops, None, centre, spare=True)
        place = next((s for s in spare if s is not x), None)
        last = k == len(steps) - 1 and out is not None and total is None
        x = ops.apply(w, x, out if last else place)
        if total is not None:
            total.add_(x, alpha=schedule.weights[k + 1])
    return x if total is None else total


def gram(
    start: Start,
    schedule: Schedule,
    ops: Products,
    restarts: Sequence[int] = (),
    out: Tensor | None = None,
) -> Tensor:
    """Run the Gram form: carry R and the product Q of all step polynomials, apply Q once.

    Args:
        start: From `begin`, with the schedule's normalization.
        schedule: The steps.
        ops: The products.
        restarts: Steps (0-based) before which Q is applied and R formed anew, which resets
            the drift between R and the true Gram matrix.
        out: Where the last product goes, default a new tensor.

    Returns:
        (b, n, m), `out` or fresh.
    """
    steps = schedule.coefficients
    ends = [0, *sorted(k for k in set(restarts) if 0 < k < len(steps)), len(steps)]
    x, r, u, factor, _ = start
    for first, end in pairwise(ends):
        q = carried_polynomial(r, steps[first:end], ops, u)
        if first == 0:
            # The first Q takes the factor by which X is normalized; R has it already.
            q = scale_members(q, factor)
        if end == len(steps):
            break
        x = ops.apply(q, x)
        r, u = ops.gram(x), None
    return ops.apply(q, x, out)


def carried_polynomial(
    r: Tensor, steps: Sequence[Step], ops: Products, u: Tensor | None = None
) -> Tensor:
    """Return the product Q of the polynomials of some steps, which R is carried through.

    Args:
        r: (b, n, n), normalized.
        steps: Coefficients of one step or more.
        ops: The products.
        u: ``R^2``, if it is known already.
    """
    q: Tensor | None = None
    for k, step in enumerate(steps):
        w = step_polynomial(r, step, ops, u)
        # W and Q commute only up to rounding, so their product is computed whole: with one half
        # mirrored, matrices of a few dimensions would diverge.
        q = w if q is None else ops.apply(w, q)
        if k < len(steps) - 1:
            r, u = ops.symmetric(w, ops.symmetric(r, w)), None
    assert q is not None  # a schedule has steps
    return q
