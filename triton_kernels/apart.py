r"""Steps of degree 33 and 65: the part of a polynomial that is a multiple of I stays a number.

A chain's square S is large at R = 0 and small where R is large, so that for most spectra it is
nearly a multiple of I, and storing it in bfloat16 rounds that: every entry of the diagonal by 2^-8
of the whole, as if every eigenvalue of R were shifted by some thousandths. A step of degree 65
multiplies a shift e below zero by cosh(65 sqrt(e)). Apart from their part in I the squares are

.. math:: S_i = d_i I + \mu_i T_i, \qquad T_1 = a_1 R^2 + R, \qquad
          T_{i+1} = a_{i+1} T_i^2 + T_i + b_{i+1} R

whose entries are as small as those of R, and what rounds is small with them: over hundreds of
dimensions the errors average out to a ten-thousandth. In a few dimensions they do not, and an
estimate of the largest singular value that a result would have says so before there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .normalize import Start
from .products import TorchProducts, scaled_sum
from .schedule import Schedule
from .squares import Chain

__all__ = [
    "Apart",
    "Rounding",
    "apart",
    "averages_out",
    "direct_apart",
    "estimated_output",
    "rounding",
]

# An estimate above this is done again. Results end at 1.04 by design, and one that leaves the last
# step's room is multiplied by thousands within a percent.
LARGEST = 1.06
_VECTORS, _POWER_STEPS = 16, 2
# Share that the diagonal has in R less its multiple of I, above which errors do not average out:
# root (2 / n) with singular vectors in all directions, one with those along rows.
_LOCALIZED = 0.25
# Fitted to measured lifts (benchmarks/engine_long.py). Relative errors of 1.6e-3 in the root mean
# square, as those of bfloat16 are, would give twice that times root n if all were independent.
_ERROR = 1.7e-3
# Of the room above a first step's results, which rounding lifts: measured lifts are up to 1.08
# times the predicted, and 1.12 where entries repeat.
_SHARE = 0.75

Redo = Callable[[Tensor], Tensor]


class Apart(NamedTuple):
    """A chain as ``h(R) = constant I + factor T``.

    Attributes:
        constant: h(0).
        factor: Of the last T.
        squares: ``(a, b)`` of each T; b of the first is zero.
    """

    constant: float
    factor: float
    squares: tuple[tuple[float, float], ...]


@lru_cache(maxsize=64)
def apart(chain: Chain) -> Apart:
    """Split the multiple of I off every square of a chain.

    Args:
        chain: Of two squares at least.

    Raises:
        ValueError: Where a square vanishes at zero, from which nothing can be split.
    """
    (first, factor, constant), *links = chain.around_zero()
    factors = [factor]
    constants = [constant]
    for alpha, _, gamma in links:
        factors.append(2 * alpha * constants[-1] * factors[-1])
        constants.append(alpha * constants[-1] ** 2 + gamma)
    if 0.0 in factors:
        raise ValueError(f"a square of this chain vanishes at zero: {chain}")
    squares = [(first / factor, 0.0)]
    for (alpha, beta, _), before, after in zip(links, factors[:-1], factors[1:], strict=True):
        squares.append((alpha * before * before / after, beta / after))
    return Apart(constants[-1], factors[-1], tuple(squares))


class Rounding(NamedTuple):
    """What bfloat16 does to a Gram matrix, (b,) each.

    Attributes:
        spread: Whether its singular vectors do not lie along rows, so that errors average out.
        error: By how much an eigenvalue of R is off, then: a symmetric matrix of errors of its
            entries has eigenvalues up to about ``1.7e-3 ||R||_F / sqrt(n)``.
    """

    spread: Tensor
    error: Tensor


def rounding(r: Tensor) -> Rounding:
    """Measure a (b, n, n) R in bfloat16, ``X X^T`` of normalized X."""
    n = r.shape[-1]
    rows = torch.linalg.vector_norm(r, dim=-1)
    norm = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32)
    diagonal = r.diagonal(dim1=-2, dim2=-1).to(torch.float32)
    mean = diagonal.mean(dim=-1)
    own = torch.linalg.vector_norm(diagonal - mean[:, None], dim=-1)
    rest = (norm.square() - n * mean.square()).clamp(min=0).sqrt()
    return Rounding(own <= _LOCALIZED * rest, _ERROR * norm / n**0.5)


def averages_out(found: Rounding, schedule: Schedule) -> Tensor:
    """Say of each matrix whether rounding lifts the first step's results less than the room allows.

    A step of degree d makes ``cosh(d sqrt(e))`` of an eigenvalue of zero that is off by e.

    Args:
        found: From `rounding`.
        schedule: With its headroom.

    Returns:
        (b,), booleans.
    """
    degree = 2 * schedule.chains[0].degree + 1
    lift = torch.cosh(degree * found.error.sqrt())
    room = schedule.headroom if isinstance(schedule.headroom, tuple) else (schedule.headroom,) * 2
    return found.spread & (lift - 1.0 <= _SHARE * (room[1] - 1.0))


def _terms(r: Tensor, parts: Apart, ops: TorchProducts, u: Tensor | None) -> Tensor:
    """Return T; U = R^2, if it is known, is written over."""
    (alpha, _), *squares = parts.squares
    t = ops.symmetric(r, r, r, alpha, 1.0) if u is None else scaled_sum(r, 1.0, u, alpha, out=u)
    other = ops.room(r)
    for alpha, beta in squares:
        addend = scaled_sum(t, 1.0, r, beta, out=other)
        # The sum gives its place to the square, and T its own to the next sum.
        other, t = t, ops.symmetric(t, t, addend, alpha, 1.0, spare=True)
    return t


def direct_apart(
    start: Start,
    schedule: Schedule,
    ops: TorchProducts,
    out: Tensor | None = None,
    spare: Sequence[Tensor] = (),
    redo: Redo | None = None,
) -> Tensor:
    """Run the direct form of steps that are chains.

    Args:
        start: From `begin`, with the schedule's normalization.
        schedule: Steps of degree 33 or 65.
        ops: The products.
        out: Where the result goes, default a new tensor; the input may lie there.
        spare: Two tensors like X to work in, of which `start.x` may be one; default new ones.
        redo: What gives better results, (lost, n, m), for members, a mask of (b,), that rounding
            has lifted; called before anything is written to `out`. Default None: nobody looks.

    Returns:
        (b, n, m), `out` or fresh.
    """
    x, r, u, scales = start.x, start.r, start.u, start.factor.flatten().tolist()
    better: tuple[Tensor, Tensor] | None = None
    last = len(schedule) - 1
    for k, step in enumerate(schedule.chains):
        parts = apart(step)
        t = _terms(r, parts, ops, u)
        if k == last and redo is not None:
            largest = estimated_output(r, t, parts)
            lost = ~(largest <= LARGEST)  # a NaN is lost as well
            if bool(lost.any()):
                better = lost, redo(lost)
        place = next((s for s in spare if s is not x), None)
        place = out if k == last and out is not None else place
        place = torch.empty_like(x) if place is None else place
        alphas, betas = ([value * s for s in scales] for value in (parts.factor, parts.constant))
        x = ops.apply_plus(t, x, alphas, betas, place)
        if k < last:
            r, u, scales = ops.gram(x), None, [1.0] * len(scales)
    if better is not None:
        lost, results = better
        x[lost] = results.to(x.dtype)
    return x


@lru_cache(maxsize=16)
def _probes(n: int, dtype: torch.dtype) -> Tensor:
    # A generator of its own: a step must not change what the caller draws next.
    generator = torch.Generator("cpu").manual_seed(n)
    drawn = torch.randn(1, n, _VECTORS, generator=generator, device="cpu", dtype=torch.float32)
    return drawn.to(dtype)


def estimated_output(r: Tensor, t: Tensor, parts: Apart) -> Tensor:
    """Estimate, from below, the largest singular value of ``h(R) X``.

    The quotients ``|X^T h v|^2 / |v|^2`` of a few random v after steps of the power method with
    ``M = h R h``: one value of two and more among hundreds of about one is seen, one of 1.5 often.

    Args:
        r: (b, n, n) ``X X^T``.
        t: (b, n, n) T of h.
        parts: Of h.

    Returns:
        (b,), float32.
    """

    def h(v: Tensor) -> Tensor:
        return torch.baddbmm(v, t, v, beta=parts.constant, alpha=parts.factor)

    v = _probes(r.shape[-1], r.dtype).expand(len(r), -1, -1)
    for _ in range(_POWER_STEPS):
        v = h(torch.bmm(r, h(v)))
    result = h(v)
    squares = (result * torch.bmm(r, result)).sum(dim=1, dtype=torch.float32)
    return (squares / v.square().sum(dim=1, dtype=torch.float32)).amax(dim=1).sqrt()
