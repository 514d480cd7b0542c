"""How a step's polynomial is multiplied out: as a chain of squares.

Every step of degree 3, 5, 9 or 17 is an odd polynomial ``s h(s^2)`` whose h, of degree 1, 2, 4 or
8, is evaluated on R = X X^T as

.. math:: S_0 = R, \\qquad S_i = \\alpha S_{i-1}^2 + \\beta_i R + \\gamma_i I, \\qquad h(R) = S_j

with one product a link. Any h of degree 4 can be written so: shift R until the cubic term is gone,
and what is left is a square plus a line. An h of degree 8 has two parameters more than the
chain, which `design_schedule` therefore searches directly.

Squares round well, which is why they are used: the polynomials of a good schedule are large at
zero and small elsewhere, and a square that is small is the square of something small, while a
product of two factors may be a large number times a small one, off by the large one's rounding.
Over 160,000 matrices of two to twelve dimensions in bfloat16 (``tests/test_engine_safety.py``
draws such), four steps of degree 9 whose exact range ends at 1.036 gave at most 1.045 as squares and
1.112 as products of two quadratics.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

__all__ = ["Link", "Step", "chain_of_squares", "expanded"]

Step = tuple[float, ...]
Link = tuple[float, float, float]

# How far the two coefficients that a chain cannot choose may be off, relative to the largest of h
# around its centre.
_TOLERANCE = 1e-7


def _around(h: np.ndarray, centre: float) -> np.ndarray:
    """Return the coefficients of ``h(y + centre)`` in y."""
    shifted = np.polynomial.Polynomial(h)(np.polynomial.Polynomial([centre, 1.0]))
    return np.asarray(shifted.coef)


@lru_cache(maxsize=256)
def chain_of_squares(step: Step) -> tuple[Link, ...]:
    """Return ``(alpha, beta, gamma)`` of each link; alpha is the same in all, so none is extreme.

    Args:
        step: 2, 3, 5 or 9 coefficients of h, rising; the last one not zero if there are 5 or 9.

    Raises:
        ValueError: For another number, or for nine that three squares do not make.

    Example:
        >>> chain_of_squares((1.875, -1.25, 0.375))
        ((0.375, -1.25, 1.875),)
    """
    if len(step) in (2, 3):
        return ((step[2] if len(step) == 3 else 0.0, step[1], step[0]),)
    if len(step) not in (5, 9) or step[-1] == 0.0:
        raise ValueError(
            f"a chain of squares has 2, 3, 5 or 9 coefficients, the last not zero: {step}"
        )
    degree = len(step) - 1
    leading = step[-1]
    centre = -step[-2] / (degree * leading)
    # Monic in y = r - centre, without its second term.
    g = _around(np.asarray(step), centre) / leading
    # Inner polynomials t = y^2 + b and v = t^2 + f1 y + f0, of which the last one is squared.
    if degree == 4:
        b, lines = g[2] / 2, []
        rest = g[:2] - [b * b, 0.0]
    else:
        v2, v1 = g[6] / 2, g[5] / 2
        v0 = (g[4] - v2 * v2) / 2
        b = v2 / 2
        lines = [(v1, v0 - b * b)]
        rest = g[:4] - [v0 * v0, 2 * v0 * v1, v1 * v1 + 2 * v0 * v2, 2 * v1 * v2]
        if abs(rest[2:]).max() > _TOLERANCE * abs(g).max():
            raise ValueError(
                "a step of degree 17 has to be a chain of three squares, as design_schedule makes "
                f"them; this one is off by {abs(rest[2:]).max():.3g}: {step}"
            )
    # alpha^(degree - 1) is the leading coefficient; an odd root has its sign.
    alpha = float(np.sign(leading) * abs(leading) ** (1 / (degree - 1)))
    links = [(alpha, -2 * centre * alpha, (centre * centre + b) * alpha)]
    scale = alpha
    for slope, constant in [*lines, rest[:2][::-1]]:
        scale = alpha * scale * scale
        links.append((alpha, float(scale * slope), float(scale * (constant - slope * centre))))
    return tuple((a, float(b), float(c)) for a, b, c in links)


def expanded(chain: tuple[Link, ...]) -> Step:
    """Return the coefficients of the polynomial that a chain evaluates.

    Args:
        chain: As from `chain_of_squares`.
    """
    r = np.polynomial.Polynomial([0.0, 1.0])
    s = r
    for alpha, beta, gamma in chain:
        s = alpha * s * s + beta * r + gamma
    return tuple(float(c) for c in s.coef)
