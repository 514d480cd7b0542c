"""The best chain of three squares on an interval: a step of degree 17 for three small products.

The chain has seven parameters, two fewer than a polynomial of its degree, and is not linear in
them, so Remez's exchange does not find it. From many starts Gauss-Newton minimizes p-norms of the
error for rising p, and Newton on its eight largest extremes settles the last digits. There are
several optima: the best is taken. The first start is the minimax polynomial without the two terms
that no chain has.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..schedule.squares import Chain, Step

_POINTS = 400
_ROUNDS = 300
_STARTS = 15
_POWERS = (2, 4, 8, 16, 32, 64, 128, 256)
Array = np.ndarray


def _h(parameters: Array, r: Array) -> tuple[Array, Array]:
    """Evaluate a chain and its derivatives by its parameters.

    ``s_1 = y^2 + b``, ``s_2 = s_1^2 + f_2 y + g_2``, ``h = k s_2^2 + f_3 y + g_3``, y = r - c.

    Args:
        parameters: (c, b, f_2, g_2, f_3, g_3, k).
        r: (points,).

    Returns:
        h, (points,), and its derivatives, (points, 7).
    """
    c, b, f2, g2, f3, g3, k = parameters
    y, one = r - c, np.ones_like(r)
    s1 = y * y + b
    s2 = s1 * s1 + f2 * y + g2
    inner = np.stack([-4 * s1 * y - f2, 2 * s1, y, one])
    slopes = np.stack([*(2 * k * s2 * inner), y, one, s2 * s2])
    slopes[0] -= f3
    return k * s2 * s2 + f3 * y + g3, slopes.T


def _projected(h: Array) -> Array:
    """Return the chain of three squares that shares a polynomial's leading terms."""
    k = h[8]
    c = -h[7] / (8 * k)
    g = np.polynomial.Polynomial(h)(np.polynomial.Polynomial([c, 1.0])).coef / k
    v2, v1 = g[6] / 2, g[5] / 2
    v0 = (g[4] - v2 * v2) / 2
    b = v2 / 2
    return np.array([c, b, v1, v0 - b * b, k * (g[1] - 2 * v0 * v1), k * (g[0] - v0 * v0), k])


def _grid(lower: float, upper: float, points: int) -> Array:
    """Return points that are dense where an error alternates fast: near zero and at both ends."""
    t = np.linspace(0.0, 1.0, points)
    cosine = lower + (upper - lower) * (1 - np.cos(np.pi * t)) / 2
    return np.unique(np.concatenate([np.geomspace(lower, upper, points), cosine]))


def _errors(parameters: Array, s: Array) -> Array:
    return 1 - s * _h(parameters, s * s)[0]


def _extremes(parameters: Array, s: Array) -> Array:
    """Return one point of largest error for every run of errors of one sign."""
    error = _errors(parameters, s)
    runs = np.split(np.arange(len(s)), np.flatnonzero(np.diff(np.sign(error))) + 1)
    return np.array([s[run[np.argmax(np.abs(error[run]))]] for run in runs])


def _norm(error: Array, power: int) -> float:
    largest = np.abs(error).max()
    return float(largest * np.mean((np.abs(error) / largest) ** power) ** (1 / power))


def _approached(parameters: Array, s: Array) -> Array:
    """Minimize the error's p-norm by damped Gauss-Newton, for rising p."""
    unit = np.eye(len(parameters))
    for power in _POWERS:
        damping = 1e-3
        for _ in range(_ROUNDS):
            h, slopes = _h(parameters, s * s)
            error = 1 - s * h
            weights = (np.abs(error) / np.abs(error).max()) ** (power / 2 - 1)
            jacobian = (weights * s)[:, None] * slopes
            scale = np.linalg.norm(jacobian, axis=0)
            matrix = np.concatenate([jacobian / scale, np.sqrt(damping) * unit])
            right = np.concatenate([weights * error / (power - 1), np.zeros(len(parameters))])
            move = _solved(matrix, right) / scale
            before, after = _norm(error, power), _norm(_errors(parameters + move, s), power)
            if after < before:
                parameters, damping = parameters + move, max(damping / 4, 1e-14)
                if before - after < 1e-7 * before:
                    break
            elif damping > 1e6:
                break
            else:
                damping *= 8
    return parameters


def _solved(matrix: Array, right: Array) -> Array:
    """Solve by least squares; NaN where a start has left for infinity."""
    if not np.isfinite(matrix).all():
        return np.full(matrix.shape[1], np.nan)
    return np.asarray(np.linalg.lstsq(matrix, right, rcond=None)[0])


def _settled(parameters: Array, s: Array) -> Array:
    """Solve for equal errors at the largest extremes; Newton's method, exchanging them."""
    level, count = float(np.abs(_errors(parameters, s)).max()), len(parameters) + 1
    for _ in range(_ROUNDS):
        points = _extremes(parameters, s)
        h, slopes = _h(parameters, points * points)
        error = 1 - points * h
        if len(points) < count:
            break
        largest = np.argsort(-np.abs(error))[:count]
        points, error, slopes = points[largest], error[largest], slopes[largest]
        signs = np.sign(error)
        matrix = np.concatenate([points[:, None] * slopes, signs[:, None]], axis=1)
        scale = np.linalg.norm(matrix, axis=0)
        move = _solved(matrix / scale, error - level * signs) / scale
        parameters, level = parameters + move[:-1], level + float(move[-1])
        if not np.abs(move * scale).max() >= 1e-12:  # a NaN ends it as well
            break
    return parameters


def _starts(polynomial: Step) -> Iterator[Array]:
    """Yield starts and variations of them: the best optimum may have other signs."""
    generator = np.random.default_rng(0)
    first = _projected(np.asarray(polynomial))
    yield first
    for _ in range(_STARTS):
        other = first * (1 + 0.4 * generator.normal(size=len(first)))
        other[2:4] *= generator.normal(scale=4.0, size=2)
        yield other


def _chain(parameters: Array) -> Chain:
    """Return the chain with one factor in every square, so that no link is extreme."""
    c, b, f2, g2, f3, g3, k = (float(x) for x in parameters)
    alpha = float(np.sign(k) * abs(k) ** (1 / 7))
    scale = alpha**3
    return Chain(c, ((alpha, 0.0, alpha * b), (alpha, scale * f2, scale * g2), (alpha, f3, g3)))


def chained_step(lower: float, upper: float, polynomial: Step) -> tuple[Chain, float]:
    """Return the chain of three squares whose step is closest to one on an interval, and its error.

    Args:
        lower: Left end, positive.
        upper: Right end.
        polynomial: To start from: the minimax one on the interval, nine coefficients.

    Returns:
        The chain h, and ``max |1 - s h(s^2)|`` on the interval.
    """
    grid, fine = _grid(lower, upper, _POINTS), _grid(lower, upper, 50 * _POINTS)
    found: dict[float, Array] = {}
    # A start that leaves for infinity is no candidate, and no reason for a warning.
    with np.errstate(all="ignore"):
        for first in _starts(polynomial):
            near = _approached(first, grid)
            for parameters in (near, _settled(near, fine)):
                error = float(np.abs(_errors(parameters, fine)).max())
                if np.isfinite(error):
                    found[error] = parameters
    error = min(found)
    return _chain(found[error]), error
