"""In which order a plan ranks rows, against the rule written out one row at a time."""

import math

import numpy as np
import pytest

from data_prune.select.noise import gumbel
from data_prune.select.plan import METHODS, Plan
from data_prune.select.survey import FORCED, WEIGHT

ALPHA, BETA, FLOOR = 3.0, 2.0, 100
NAN = math.nan


def rows(n: int = 200) -> dict[str, np.ndarray]:
    """Scores and probabilities with zeros, and with rows that were not seen or not scored."""
    rng = np.random.default_rng(0)
    score, p = rng.uniform(0, 0.3, n), rng.uniform(0.01, 0.99, n)
    score[:10], p[5:15], score[12:20] = 0.0, NAN, NAN
    return {
        "id": np.arange(n, dtype=np.uint64),
        "label": np.zeros(n, dtype=np.int64),
        "score": score.astype(np.float32),
        "mean_prob": p.astype(np.float32),
    }


def rank(method: str, columns: dict[str, np.ndarray], i: int, noise: float) -> tuple:
    """Return what row i is sorted by, higher first: its tier, then its priority."""
    score, p = float(columns["score"][i]), float(columns["mean_prob"][i])
    forced = columns.get(FORCED, np.zeros(len(columns["id"])))[i]
    weight = float(columns.get(WEIGHT, np.ones(len(columns["id"])))[i])
    noise = noise + math.log(weight) if weight > 0 else -math.inf
    if forced:
        return (math.inf,) if forced > 0 else (-math.inf,)
    scored = not math.isnan(score)
    if method == "random":
        tier, priority = scored, noise
    elif method in ("top", "easy"):
        sign = 1 if method == "top" else -1
        tier, priority = scored, sign * score if scored else noise
    else:
        tier = scored and score > 0
        priority = noise + (math.log(score) if tier else 0.0)
        if method != "weighted" and not math.isnan(p):
            priority += (ALPHA - 1) * math.log(p) + (BETA - 1) * math.log(1 - p)
    tier = tier and weight > 0
    if method == "plausible":
        if math.isnan(p) or int(256 * math.sqrt(p)) < FLOOR:
            return (-1, -1e3 + noise if math.isnan(p) else p)
        return (2 + tier, priority)
    return (tier, priority)


@pytest.mark.parametrize("wished", [(), (WEIGHT,), (FORCED,), (WEIGHT, FORCED)])
@pytest.mark.parametrize("method", [m for m in METHODS if m != "ccs"])
def test_rows_are_ranked_by_the_rule(method: str, wished: tuple[str, ...]) -> None:
    """Which examples a user trains on: tiers, weights, densities and noise in their order."""
    columns, rng = rows(), np.random.default_rng(1)
    n = len(columns["id"])
    if WEIGHT in wished:
        columns[WEIGHT] = np.where(rng.random(n) < 0.1, 0.0, rng.uniform(0.1, 5, n))
    if FORCED in wished:
        columns[FORCED] = rng.choice([-1, 0, 0, 0, 1], n).astype(np.int8)
    floors = np.array([FLOOR], dtype=np.int16) if method == "plausible" else None
    quotas = np.array([n // 2])
    plan = Plan(method, "score", 7, n, quotas, ALPHA, BETA, floors=floors)
    order, _, group = plan.chunk(columns)
    assert group is None
    noise = gumbel(7, columns["id"]).tolist()
    ranks = [rank(method, columns, i, noise[i]) for i in range(n)]
    # Equal ranks (all rows that are forced, or of weight 0) may come in any order.
    ours = [ranks[i] for i in np.argsort(order, kind="stable")]
    assert ours == sorted(ranks)
    kept = plan.draw(columns)
    assert len(kept) == n // 2
    assert sorted(ranks[i] for i in kept) == sorted(ranks)[n - n // 2 :]


def test_a_row_at_the_floor_is_believed() -> None:
    """The floor is the lowest bin that a class believes, and a row without one is not believed."""
    p = np.array([(FLOOR / 256) ** 2, ((FLOOR - 0.5) / 256) ** 2, NAN])
    columns = {"id": np.arange(3, dtype=np.uint64), "mean_prob": p}
    floors = np.array([FLOOR], dtype=np.int16)
    plan = Plan("plausible", "score", 0, 3, np.array([1]), floors=floors)
    assert plan.place(columns)[1].tolist() == [True, False, False]
    plain = Plan("beta", "score", 0, 3, np.array([1]))
    assert plain.place(columns)[1].tolist() == [True, True, False]
