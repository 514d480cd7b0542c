"""Does a selection beat random on the user's own data? Paired runs and an interval."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..score.keys import rows_of, unique_keys
from ..score.table import ScoreTable
from ..score.wished import values_of
from ..select.noise import uniform
from ..select.planner import keep_count
from ..select.wishes import group_ids

# Far from the seeds of any selection, so that the held-out part is independent of it.
_HOLDOUT_SEED = 0x401D0


@dataclass(frozen=True)
class Comparison:
    """Hold the scores of two selections in paired runs.

    Attributes:
        selected: Metric of each run on the selection.
        random: Metric of the run with the same seed on a random subset.
        difference: Mean of selected - random.
        low: Lower end of the confidence interval of the difference.
        high: Upper end.
        confidence: Of the interval.
        verdict: "yes" if the interval lies above 0, "no" if below, else "undecided".
    """

    selected: tuple[float, ...]
    random: tuple[float, ...]
    difference: float
    low: float
    high: float
    confidence: float

    @property
    def verdict(self) -> str:
        """Say whether the selection beats random: "yes", "no" or "undecided"."""
        return "yes" if self.low > 0 else "no" if self.high < 0 else "undecided"

    def __str__(self) -> str:
        return (
            f"beats random: {self.verdict} (difference {self.difference:+.4f}, "
            f"{self.confidence:.0%} interval {self.low:+.4f} to {self.high:+.4f}, "
            f"{len(self.selected)} paired runs)"
        )


@functools.cache
def student_quantile(probability: float, freedom: int) -> float:
    """Return the two-sided quantile t of Student's distribution: P(|T| <= t) = probability.

    Example:
        >>> round(student_quantile(0.95, 4), 3)
        2.776
    """
    # With T = sqrt(n) tan(a) the density of a is proportional to cos(a)^(n-1) on (-pi/2, pi/2).
    a = np.linspace(0.0, math.pi / 2, 200_001)
    density = np.cos(a) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = np.interp(probability, below / below[-1], a)
    return math.sqrt(freedom) * math.tan(angle)


def compare(
    selected: Sequence[float], random: Sequence[float], confidence: float = 0.95
) -> Comparison:
    """Return the interval of the mean paired difference (Student).

    Args:
        selected: Metric of each run, larger is better.
        random: Metric of the paired run.
        confidence: In (0, 1).

    Raises:
        ValueError: For fewer than two pairs, unequal lengths or values that are not finite.

    Example:
        >>> print(compare([0.90, 0.92, 0.91], [0.88, 0.89, 0.89]))
        beats random: yes (difference +0.0233, 95% interval +0.0090 to +0.0377, 3 paired runs)
    """
    if len(selected) != len(random) or len(selected) < 2:
        raise ValueError(f"need two or more pairs, got {len(selected)} and {len(random)} runs")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    d = np.asarray(selected, dtype=np.float64) - np.asarray(random, dtype=np.float64)
    if not np.isfinite(d).all():
        raise ValueError(f"metrics must be finite, the differences are {d.tolist()}")
    half = student_quantile(confidence, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d))
    mean = float(d.mean())
    return Comparison(
        tuple(map(float, selected)),
        tuple(map(float, random)),
        mean,
        mean - float(half),
        mean + float(half),
        confidence,
    )


def split_holdout(
    table: ScoreTable, holdout: float, groups: NDArray[np.uint64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return positions to choose from, and held-out positions; by key, so always the same ones.

    Args:
        table: The scores.
        holdout: Share of the examples held out, in (0, 1).
        groups: (N,) identity of each example's group, which is held out as a whole; as many
            groups as come nearest to the share.

    Example:
        >>> table = ScoreTable(np.arange(10), np.zeros(10, int), np.ones(10), np.full(10, 0.5),
        ...     np.full(10, 3))
        >>> pool, held_out = split_holdout(table, 0.2)
        >>> len(pool), len(held_out), np.intersect1d(pool, held_out).size
        (8, 2, 0)
    """
    if not 0.0 < holdout < 1.0:
        raise ValueError(f"holdout must be in (0, 1), got {holdout}")
    count = round(len(table) * holdout)
    if not 0 < count < len(table):
        raise ValueError(f"holdout {holdout} of {len(table)} examples leaves one side empty")
    if groups is None:
        order = np.argsort(uniform(_HOLDOUT_SEED, table.ids), kind="stable")
        return np.sort(order[count:]), np.sort(order[:count])
    ids, group = np.unique(groups, return_inverse=True)
    if len(ids) < 2:
        raise ValueError(f"groups must be at least 2 for a held-out part, got {len(ids)}")
    out = np.zeros(len(ids), dtype=bool)
    size, left = np.bincount(group), count
    for i in np.argsort(uniform(_HOLDOUT_SEED, ids), kind="stable")[:-1]:
        if left > 0 and (size[i] <= 2 * left or not out.any()):
            out[i] = True
            left -= int(size[i])
    return np.flatnonzero(~out[group]), np.flatnonzero(out[group])


def options_of(
    table: ScoreTable, pool: NDArray[np.int64], options: dict[str, Any]
) -> dict[str, Any]:
    """Return the options of a selection for some of the rows: arrays and lists that are theirs."""
    mine = dict(options)
    for name in ("groups", "classes", "weights"):
        given = mine.get(name)
        if given is not None and not isinstance(given, str):
            mine[name] = np.asarray(given)[pool]
    for name in ("keep", "drop"):
        if mine.get(name) is not None:
            rows = rows_of(table.key, unique_keys(mine[name]), name)
            mine[name] = table.key[np.intersect1d(rows, pool)]
    if mine.get("within") is not None:
        mine["within"] = np.searchsorted(pool, np.intersect1d(mine["within"], pool))
    return mine


def beats_random(
    train_and_score: Callable[[NDArray[np.int64], NDArray[np.int64], int], float],
    table: ScoreTable,
    prune_ratio: float,
    *,
    repeats: int = 5,
    holdout: float = 0.2,
    confidence: float = 0.95,
    seed: int = 0,
    **options: Any,
) -> Comparison:
    """Train on a selection and on a random subset of the same size, and compare on held-out data.

    A part of the data is held out by key, whole ``groups`` where there are some; both subsets are
    chosen from the rest and have the same size (with groups nearly), so that equal epochs are
    equal optimizer steps. Run i uses the same seed on both sides.

    Args:
        train_and_score: Called as ``f(kept, held_out, seed)`` with positions; trains from scratch
            on ``kept`` with all randomness from ``seed``, returns a metric on ``held_out``,
            larger is better.
        table: Scores of all examples.
        prune_ratio: Fraction of the rest that is removed, in [0, 1).
        repeats: Number of pairs, at least 2.
        holdout: Share of the examples held out.
        confidence: Of the interval.
        seed: First seed.
        **options: Further arguments of ``ScoreTable.select``.

            Random subsets obey ``keep``, ``drop``, ``within`` and ``groups`` as well.

    Returns:
        The comparison; its ``verdict`` is "yes", "no" or "undecided".

    Example:
        >>> rng = np.random.default_rng(0)
        >>> table = ScoreTable(np.arange(200), np.zeros(200, int), rng.uniform(size=200),
        ...     rng.uniform(size=200), np.full(200, 9))
        >>> metric = lambda kept, held_out, seed: table.score[kept].mean() + 0.01 * (seed % 2)
        >>> beats_random(metric, table, 0.5, repeats=3, method="top").verdict
        'yes'
    """
    if repeats < 2:
        raise ValueError(f"repeats must be at least 2, got {repeats}")
    together = None
    if options.get("groups") is not None:
        together = group_ids(values_of(table, "groups", options["groups"]))
    pool, held_out = split_holdout(table, holdout, together)
    part, options = table.take(pool), options_of(table, pool, options)
    keep_count(len(part), prune_ratio)
    shared = {name: options.get(name) for name in ("keep", "drop", "within", "groups")}
    selected: list[float] = []
    random: list[float] = []
    for run in range(seed, seed + repeats):
        for results, choice in ((selected, options), (random, {"method": "random", **shared})):
            kept = part.select(prune_ratio, seed=run, **choice)
            results.append(float(train_and_score(pool[kept], held_out, run)))
    return compare(selected, random, confidence)
