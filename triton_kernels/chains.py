"""The best chain of three squares on an interval: a step of degree 17 for three small products.

The chain has seven parameters, two fewer than a polynomial of its degree, and is not linear in
them, so Remez's exchange does not find it. From the unconstrained minimax polynomial, whose two
missing terms are left out, Gauss-Newton minimizes p-norms of the error for rising p, and Newton on
its eight largest extremes settles the last digits. There are several optima: the best of many
starts is taken.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .squares import Step

__all__ = ["chained_step"]

_POINTS = 400
_ROUNDS = 300
_STARTS = 15
_POWERS = (2, 4, 8, 16, 32, 64, 128, 256)
Array = np.ndarray


def _h(parameters: Array, r: Array) -> Array:
    """Evaluate ``k v^2 + g1 y + g0``, ``v = t^2 + f1 y + f0``, ``t = y^2 + b``, ``y = r - c``."""
    c, b, f1, f0, k, g1, g0 = parameters
    y = r - c
    v = (y * y + b) ** 2 + f1 * y + f0
    return k * v * v + g1 * y + g0


def _slopes(parameters: Array, r: Array) -> Array:
    """Return the derivatives of `_h` by its parameters, (points, 7)."""
    c, b, f1, f0, k, g1, _ = parameters
    y = r - c
    t = y * y + b
    v = t * t + f1 * y + f0
    by_v = 2 * k * v
    by_y = by_v * (4 * t * y + f1) + g1
    one = np.ones_like(r)
    return np.stack([-by_y, by_v * 2 * t, by_v * y, by_v, v * v, y, one], axis=-1)


def _projected(h: Array) -> Array:
    """Return the chain that shares the leading terms of a polynomial of degree 8."""
    k = h[8]
    c = -h[7] / (8 * k)
    g = np.polynomial.Polynomial(h)(np.polynomial.Polynomial([c, 1.0])).coef / k
    v2, v1 = g[6] / 2, g[5] / 2
    v0 = (g[4] - v2 * v2) / 2
    b = v2 / 2
    return np.array([c, b, v1, v0 - b * b, k, k * (g[1] - 2 * v0 * v1), k * (g[0] - v0 * v0)])


def _grid(lower: float, upper: float, points: int) -> Array:
    """Return points that are dense where an error alternates fast: near zero and at both ends."""
    t = np.linspace(0.0, 1.0, points)
    cosine = lower + (upper - lower) * (1 - np.cos(np.pi * t)) / 2
    return np.unique(np.concatenate([np.geomspace(lower, upper, points), cosine]))


def _errors(parameters: Array, s: Array) -> Array:
    return 1 - s * _h(parameters, s * s)


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
    for power in _POWERS:
        damping = 1e-3
        for _ in range(_ROUNDS):
            error = _errors(parameters, s)
            weights = (np.abs(error) / np.abs(error).max()) ** (power / 2 - 1)
            jacobian = (weights * s)[:, None] * _slopes(parameters, s * s)
            scale = np.linalg.norm(jacobian, axis=0)
            matrix = np.concatenate([jacobian / scale, np.sqrt(damping) * np.eye(7)])
            right = np.concatenate([weights * error / (power - 1), np.zeros(7)])
            move = np.linalg.lstsq(matrix, right, rcond=None)[0] / scale
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


def _settled(parameters: Array, s: Array) -> Array:
    """Solve for equal errors at the eight largest extremes; Newton's method, exchanging them."""
    level = float(np.abs(_errors(parameters, s)).max())
    for _ in range(_ROUNDS):
        points = _extremes(parameters, s)
        error = _errors(parameters, points)
        if len(points) < 8:
            break
        largest = np.argsort(-np.abs(error))[:8]
        points, error = points[largest], error[largest]
        signs = np.sign(error)
        slopes = points[:, None] * _slopes(parameters, points * points)
        matrix = np.concatenate([slopes, signs[:, None]], axis=1)
        scale = np.linalg.norm(matrix, axis=0)
        move = np.linalg.lstsq(matrix / scale, error - level * signs, rcond=None)[0] / scale
        parameters, level = parameters + move[:7], level + float(move[7])
        if np.abs(move * scale).max() < 1e-12:
            break
    return parameters


def _starts(first: Array) -> Iterator[Array]:
    """Yield the projection and variations of it: the best optimum may have other signs."""
    generator = np.random.default_rng(0)
    yield first
    for _ in range(_STARTS):
        other = first * (1 + 0.4 * generator.normal(size=7))
        other[2:4] *= generator.normal(scale=4.0, size=2)
        yield other


def chained_step(start: Step, lower: float, upper: float) -> tuple[Step, float]:
    """Return the chain of three squares closest to one on an interval, and its error.

    Args:
        start: The minimax polynomial of degree 17 on the interval, nine coefficients.
        lower: Left end, positive.
        upper: Right end.

    Returns:
        The chain's nine coefficients, and ``max |1 - p(s)|`` on the interval.
    """
    grid, fine = _grid(lower, upper, _POINTS), _grid(lower, upper, 50 * _POINTS)
    found: dict[float, Array] = {}
    # A start that leaves for infinity is no candidate, and no reason for a warning.
    with np.errstate(all="ignore"):
        for first in _starts(_projected(np.asarray(start))):
            near = _approached(first, grid)
            for parameters in (near, _settled(near, fine)):
                error = float(np.abs(_errors(parameters, fine)).max())
                if np.isfinite(error):
                    found[error] = parameters
    error = min(found)
    c, b, f1, f0, k, g1, g0 = found[error]
    y = np.polynomial.Polynomial([-c, 1.0])
    v = (y * y + b) ** 2 + f1 * y + f0
    return tuple(float(x) for x in (k * v * v + g1 * y + g0).coef), error
