"""`design_schedule`: the best odd polynomials of a degree, by Remez exchange in 50 digits.

Degree 17 is searched in double precision, among the chains of squares that take three small
products: see `chains`.

On [l, u] the best odd p of degree 2k+1 has an error 1 - p(s) that alternates between +E and -E
at k+2 points. Both ends belong to them and the other k are where p' vanishes, so one exchange
is a linear system and the roots of a polynomial of degree k in s^2. Steps are chosen greedily,
each for the interval to which the one before maps; that is optimal among compositions.

The arithmetic is Python's `decimal`: portable (a long double is not), exact to the printed
digits of every published table, and fast enough (a schedule takes milliseconds to a second).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal, localcontext

import numpy as np

from ..schedule.schedule import ROOTS, Schedule
from ..schedule.squares import Step
from .search_chain import chained_step

_DIGITS = 50
_EXCHANGES = 200
_POINTS = 1000
_DEGREES = (3, 5, 7, 9, 17)
Row = list[Decimal]
Function = Callable[[np.ndarray], np.ndarray]


def _solve(matrix: list[Row], right: Row) -> Row:
    """Solve a small linear system by elimination with pivoting."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    size = len(rows)
    for i in range(size):
        pivot = max(range(i, size), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for k in range(i + 1, size):
            factor = rows[k][i] / rows[i][i]
            rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
    solution = [Decimal(0)] * size
    for i in reversed(range(size)):
        known = sum((rows[i][j] * solution[j] for j in range(i + 1, size)), Decimal(0))
        solution[i] = (rows[i][size] - known) / rows[i][i]
    return solution


def _evaluate(step: Row, s: Decimal, root: int = 2) -> Decimal:
    total, power = Decimal(0), s**root
    for c in reversed(step):
        total = total * power + c
    return total * s


def _turning_points(step: Row, root: int) -> Row:
    """Return the points where p' vanishes, rising: roots in s^r, polished in full precision."""
    slope = [(root * j + 1) * c for j, c in enumerate(step)]
    roots = np.roots([float(c) for c in reversed(slope)])
    points = []
    for first in sorted(r.real for r in roots if r.real > 0 and abs(r.imag) < 1e-6 * abs(r)):
        y = Decimal(float(first))
        for _ in range(6):
            value = derivative = Decimal(0)
            for c in reversed(slope):
                derivative = derivative * y + value
                value = value * y + c
            y -= value / derivative
        points.append(y ** (1 / Decimal(root)))
    return points


def minimax_step(k: int, lower: Decimal, upper: Decimal, root: int = 2) -> tuple[Row, Decimal]:
    """Return the ``s h(s^r)`` closest to one on an interval, h of degree k, and its error.

    Args:
        k: At least 1.
        lower: Left end, positive.
        upper: Right end.
        root: r; 2 makes odd polynomials.

    Raises:
        RuntimeError: If the exchange does not settle.
    """
    middle, half = (lower + upper) / 2, (upper - lower) / 2
    nodes = [Decimal(float(-np.cos(np.pi * i / (k + 1)))) for i in range(k + 2)]
    points = [middle + half * t for t in nodes]
    points[0], points[-1] = lower, upper
    for _ in range(_EXCHANGES):
        matrix = [
            [*(s ** (root * j + 1) for j in range(k + 1)), Decimal((-1) ** i)]
            for i, s in enumerate(points)
        ]
        *step, error = _solve(matrix, [Decimal(1)] * (k + 2))
        turning = _turning_points(step, root)
        if len(turning) != k:
            raise RuntimeError(
                f"exchange lost its points on [{lower}, {upper}], degree {2 * k + 1}"
            )
        new = [lower, *turning, upper]
        moved = max(abs(a - b) for a, b in zip(new, points, strict=True))
        points = new
        if moved < upper * Decimal(10) ** -30:
            return step, abs(error)
    raise RuntimeError(f"exchange did not settle on [{lower}, {upper}], degree {2 * k + 1}")


def _cushioned(k: int, lower: Decimal, upper: Decimal, cushion: Decimal, root: int) -> Row:
    """Return the step for [max(lower, cushion upper), upper], centred on the whole interval."""
    start = max(lower, cushion * upper)
    if (upper - start) ** (k + 1) < Decimal(10) ** -17:
        # Converged: minimax and Taylor agree to the last digit, and the system is singular.
        return _taylor(k, root)
    step, _ = minimax_step(k, start, upper, root)
    if start > lower:
        centre = (_evaluate(step, lower, root) + _evaluate(step, upper, root)) / 2
        step = [c / centre for c in step]
    return step


def _taylor(k: int, root: int) -> Row:
    """Return p with p(1) = 1 and k vanishing derivatives there: ``s sum_j a_j (1 - s^r)^j``."""
    total = [Decimal(0)] * (k + 1)
    weight, power = Decimal(1), [Decimal(1)]
    for j in range(k + 1):
        for i, c in enumerate(power):
            total[i] += weight * c
        weight = weight * (root * j + 1) / (root * j + root)
        longer = [*power, Decimal(0)]
        power = [a - b for a, b in zip(longer, [Decimal(0), *power], strict=True)]
    return total


def design_schedule(
    degree: int | tuple[int, ...],
    steps: int | None = None,
    lower: float = 1e-3,
    safety: float = 1.02,
    cushion: float = 0.0,
    normalization: str = "frobenius",
    name: str = "designed",
    headroom: float | tuple[float, ...] = 1.0,
    root: int = 2,
    function: Function | None = None,
) -> Schedule:
    r"""Design the composition of odd polynomials that is closest to one on ``[lower, 1]``.

    .. math:: p_t = \arg\min_p \max_{s \in [l_t, h_t u_t]} |1 - p(s)|, \quad
              l_{t+1} = p_t(l_t / \text{safety}), \quad u_{t+1} = 2 - l_{t+1}

    Args:
        degree: 3, 5, 7, 9 or 17, or one degree a step. Steps of degree 17 are the best chains of
            three squares, not the best polynomials.
        steps: Number of steps, at least 1; may be left out where `degree` lists them.
        lower: Smallest singular value to reach, in (0, 1), after normalization.
        safety: At least 1 (default 1.02): divides the argument of every step but the last.
        cushion: In [0, 1), default 0. Where l/u is below it, a step is built for
            [cushion u, u] and centred, so that no singular value is pushed near zero midway.
        normalization: "frobenius", "schatten4" or "schatten8", kept in the schedule.
        name: The schedule's name.
        headroom: h, at least 1 (default 1), one for all steps or one a step: what rounding may
            lift a step's largest input by. Where the inputs cannot be lifted that far, safety may
            be 1; per step it buys more reach than one safety factor.
        root: r of 2, 4 or 8, default 2. Steps are the ``s h(s^r)`` closest to one, whose h make up
            A^(-1/r) for eigenvalues in [lower^r, 1], see `inverse_root`; above 2 no degree of 17.
        function: f, which takes and returns a float64 array; default None: one. The result is then
            ``w_0 X + w_1 X_1 + ... + w_T X_T``, X and what each step makes of it, whose scalar
            sum is closest to f on ``[lower, 1]``: absolutely where |f| is below one, relatively
            above. A smooth f wants many steps and a cushion of 0.5 to 0.7.

    Returns:
        The schedule.

    Raises:
        ValueError: For values outside the ranges above, or a function that is not finite there.

    Source:
        Polar Express, arXiv 2505.16932, algorithms 1 and 2; the chains are this package's.

    Example:
        >>> print([round(c, 4) for c in design_schedule(5, 2, safety=1.0).steps[0]])
        [8.4703, -25.1081, 18.6293]
        >>> half = design_schedule(5, 9, safety=1.05, cushion=0.6, function=np.sqrt)
        >>> round(float(half(0.25)), 2)
        0.5
    """
    degrees = _degrees(degree, steps)
    rooms = headroom if isinstance(headroom, tuple) else (headroom,) * len(degrees)
    if not 0.0 < lower < 1.0:
        raise ValueError(f"lower must be in (0, 1), got {lower}")
    if not safety >= 1.0:
        raise ValueError(f"safety must be at least 1, got {safety}")
    if not 0.0 <= cushion < 1.0:
        raise ValueError(f"cushion must be in [0, 1), got {cushion}")
    if root not in ROOTS or (root > 2 and (17 in degrees or function is not None)):
        raise ValueError(
            f"root must be one of {ROOTS}, and 2 for a degree of 17 or a function, got {root}"
        )
    if len(rooms) != len(degrees) or not all(room >= 1.0 for room in rooms):
        raise ValueError(f"headroom must be at least 1, one number or one a step, got {headroom}")
    found: list[Row] = []
    with localcontext() as context:
        context.prec = _DIGITS
        low, high = Decimal(repr(lower)), Decimal(1)
        s = Decimal(repr(safety))
        for t, (d, room) in enumerate(zip(degrees, rooms, strict=True)):
            found.append(_step(d, low, high * Decimal(repr(room)), Decimal(repr(cushion)), root))
            low = _evaluate(found[-1], low / s if t < len(degrees) - 1 else low, root)
            high = 2 - low
    steps_found = tuple(tuple(float(c) for c in step) for step in found)
    made = Schedule(
        name, steps_found, safety, lower, normalization, "design_schedule", headroom, root
    )
    return made if function is None else replace(made, weights=fitted_weights(made, function))


def _degrees(degree: int | tuple[int, ...], steps: int | None) -> tuple[int, ...]:
    """Return one degree a step."""
    degrees = (degree,) * (1 if steps is None else steps) if isinstance(degree, int) else degree
    if not degrees or any(d not in _DEGREES for d in degrees):
        raise ValueError(f"degree must be one of {_DEGREES} for at least one step, got {degree}")
    if steps is not None and steps != len(degrees):
        raise ValueError(f"steps must be {len(degrees)}, as many as degree lists, got {steps}")
    return degrees


def _step(degree: int, low: Decimal, high: Decimal, cushion: Decimal, root: int) -> Row:
    step = _cushioned((degree - 1) // 2, low, high, cushion, root)
    if degree < 17:
        return step
    start: Step = tuple(float(c) for c in step)
    chain, _ = chained_step(float(low), float(high), start)
    return [Decimal(c) for c in chain.expanded()]


def fitted_weights(schedule: Schedule, function: Function) -> tuple[float, ...]:
    """Return the weights of the iterates whose sum is closest to a function on [lower, 1].

    Lawson's algorithm: least squares, whose points gain weight by their errors.

    Args:
        schedule: The steps.
        function: f, see `design_schedule`.
    """
    s = np.geomspace(schedule.lower, 1.0, _POINTS)
    f = np.asarray(function(s), dtype=np.float64)
    if f.shape != s.shape or not np.isfinite(f).all():
        raise ValueError(
            f"function must be finite on [{schedule.lower:g}, 1], an array for an array, got {f}"
        )
    unit = np.maximum(1.0, np.abs(f))
    basis = schedule.iterates(s) / unit
    best, least, mass = np.zeros(len(basis)), np.inf, np.full(_POINTS, 1 / _POINTS)
    for _ in range(_EXCHANGES):
        root_mass = np.sqrt(mass)
        weights = np.linalg.lstsq((basis * root_mass).T, f / unit * root_mass, rcond=1e-12)[0]
        error = np.abs(weights @ basis - f / unit)
        if error.max() < least:
            best, least = weights, error.max()
        mass = mass * error
        mass /= mass.sum()
    return tuple(float(w) for w in best)
