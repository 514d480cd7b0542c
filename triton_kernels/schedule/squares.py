r"""How a step's polynomial is multiplied out: as a chain of squares.

Every step of degree 3, 5, 9 or 17 is an odd polynomial ``s h(s^2)`` whose h, of degree 1, 2, 4 or
8, is evaluated on R = X X^T as

.. math:: Y = R - c I, \qquad S_1 = \alpha Y^2 + \gamma_1 I, \qquad
          S_i = \alpha S_{i-1}^2 + \beta_i Y + \gamma_i I, \qquad h(R) = S_j

with one product a link. Any h of degree 4 can be written so: shift R until the cubic term is gone,
and what is left is a square plus a line. An h of degree 8 has more parameters than the chain, which
`design_schedule` therefore searches directly.

Squares round well, which is why they are used: the polynomials of a good schedule are large at
zero and small elsewhere, and a square that is small is the square of something small, while a
product of two factors may be a large number times a small one, off by the large one's rounding.
In bfloat16, on the worst matrices that a search finds, four steps of degree 9 with a safety
factor of 1.05 stay below 1.05 as squares, and are lost as products of two quadratics
(``benchmarks/engine_rounding.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

Step = tuple[float, ...]
Link = tuple[float, float, float]

# How far the two coefficients that a chain cannot choose may be off, relative to the largest of h
# around its centre.
_TOLERANCE = 1e-7
# R's eigenvalues lie below about four. Around a centre far off, R would be lost in the rounding of
# R - c I: such a step of degree 5 is nearly a line, and is multiplied out as it stands.
_FARTHEST = 4.0
# How much larger than h the terms of its last link may be: each factor of two is a bit lost. All
# steps in use stay near one.
_CANCELLATION = 32.0


@dataclass(frozen=True)
class Chain:
    """A polynomial of degree 1, 2, 4 or 8 as squares.

    Args:
        centre: c.
        links: ``(alpha, beta, gamma)`` of each; beta of the first one is zero, unless c is zero
            and it is the only one. Degree 1 is one link whose alpha is zero.
    """

    centre: float
    links: tuple[Link, ...]

    def __call__(self, r: np.ndarray | float) -> np.ndarray:
        """Evaluate the polynomial in float64."""
        y = s = np.asarray(r, dtype=np.float64) - self.centre
        for alpha, beta, gamma in self.links:
            s = alpha * s * s + beta * y + gamma
        return s

    @cached_property
    def around_zero(self) -> tuple[Link, ...]:
        """The links for R itself in the place of Y."""
        c = self.centre
        (alpha, beta, gamma), *others = self.links
        first = (alpha, beta - 2 * c * alpha, gamma + c * (c * alpha - beta))
        return (first, *((a, b, g - b * c) for a, b, g in others))

    def expanded(self) -> Step:
        """Return the coefficients of the polynomial, rising."""
        r = np.polynomial.Polynomial([0.0, 1.0])
        s = r
        for alpha, beta, gamma in self.around_zero:
            s = alpha * s * s + beta * r + gamma
        return tuple(float(c) for c in s.coef)


def _around(h: np.ndarray, centre: float) -> np.ndarray:
    """Return the coefficients of ``h(y + centre)`` in y."""
    shifted = np.polynomial.Polynomial(h)(np.polynomial.Polynomial([centre, 1.0]))
    return np.asarray(shifted.coef)


@lru_cache(maxsize=256)
def chain_of_squares(step: Step) -> Chain:
    """Return the chain of a step; its alphas are all the same, so that no link is extreme.

    Args:
        step: 2, 3, 5 or 9 coefficients of h, rising; the last one not zero if there are 5 or 9.

    Raises:
        ValueError: For another number, for nine that three squares do not make, or for five or
            nine whose squares cancel, as they do where the last one is nearly zero.

    Example:
        >>> chain_of_squares((3.0, -4.0, 2.0))
        Chain(centre=1.0, links=((2.0, 0.0, 1.0),))
    """
    degree, leading = len(step) - 1, step[-1]
    if degree == 1 or (degree == 2 and leading == 0.0):
        return Chain(0.0, ((0.0, step[1], step[0]),))
    if degree not in (2, 4, 8) or leading == 0.0:
        raise ValueError(
            f"a chain of squares has 2, 3, 5 or 9 coefficients, the last not zero, got {step}"
        )
    centre = -step[-2] / (degree * leading)
    if degree == 2 and abs(centre) > _FARTHEST:
        return Chain(0.0, ((leading, step[1], step[0]),))
    # Divided by its leading coefficient, in y = r - centre: y^2 + b at degree 2, the square of
    # that plus a line at degree 4, and the square of that plus a line at degree 8.
    g = _around(np.asarray(step), centre) / leading
    lines: list[tuple[float, float]] = []
    if degree == 2:
        b = g[0]
    elif degree == 4:
        b = g[2] / 2
        lines = [(g[1], g[0] - b * b)]
    else:
        v2, v1 = g[6] / 2, g[5] / 2
        v0, b = (g[4] - v2 * v2) / 2, v2 / 2
        lines = [(v1, v0 - b * b), (g[1] - 2 * v0 * v1, g[0] - v0 * v0)]
        missed = max(abs(g[2] - v1 * v1 - 2 * v0 * v2), abs(g[3] - 2 * v1 * v2))
        if missed > _TOLERANCE * abs(g).max():
            raise ValueError(
                "a step of degree 17 has to be a chain of three squares, as design_schedule makes "
                f"them; this one is off by {missed:.3g}: {step}"
            )
    # alpha^(degree - 1) is the leading coefficient; an odd root has its sign.
    alpha = float(np.sign(leading) * abs(leading) ** (1 / (degree - 1)))
    scale, links = alpha, [(alpha, 0.0, float(alpha * b))]
    for slope, constant in lines:
        scale = alpha * scale * scale
        links.append((alpha, float(scale * slope), float(scale * constant)))
    chain = Chain(float(centre), tuple(links))
    lost = _cancellation(chain, step)
    if lost > _CANCELLATION:
        raise ValueError(
            f"as a chain of squares this step would lose a factor of {lost:.3g} of its precision; "
            f"leave out a last coefficient that is nearly zero: {step}"
        )
    return chain


def _cancellation(chain: Chain, step: Step) -> float:
    """Return the largest term that the last link adds up, over the largest h, for R in [0, 1]."""
    r = np.linspace(0.0, 1.0, 33)
    y = s = r - chain.centre
    for alpha, beta, gamma in chain.links:
        terms = np.stack(np.broadcast_arrays(alpha * s * s, beta * y, gamma))
        s = terms.sum(axis=0)
    return float(np.abs(terms).max() / np.abs(np.polynomial.polynomial.polyval(r, step)).max())
