"""The selections that ``prune_grid`` compares: the default, random, peers, and what was tried.

The default was the candidate "plausible, typical", found on the search half and written down as
``ScoreTable.select``'s own rule before the confirmation half ran; the others stay for their rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prune import ScoreTable

DEFAULT = "default"
Select = Callable[[ScoreTable, float, int], NDArray[np.int64]]


def by(**options: Any) -> Select:
    return lambda table, ratio, seed: table.select(ratio, seed=seed, **options)


def plausible(table: ScoreTable, kept: int, share: float = 0.5) -> NDArray[np.int64]:
    """Positions at least ``share`` as probable as their class's median, never fewer than kept."""
    p = np.asarray(table.mean_prob, dtype=np.float64)
    median = np.zeros(len(p))
    for c in np.unique(table.label):
        median[table.label == c] = np.median(p[table.label == c])
    relative = p / np.maximum(median, 1e-12)
    order = np.argsort(-relative, kind="stable")
    return np.sort(order[: max(kept, int((relative >= share).sum()))])


def among_plausible(share: float = 0.5, **options: Any) -> Select:
    def select(table: ScoreTable, ratio: float, seed: int) -> NDArray[np.int64]:
        within = plausible(table, round(len(table) * (1 - ratio)), share)
        return table.select(ratio, seed=seed, within=within, **options)

    return select


def uncertainty(table: ScoreTable) -> NDArray[np.float64]:
    """The score without the paper's factor of difficulty: close to Dyn-Unc, from two columns."""
    p = np.asarray(table.mean_prob, dtype=np.float64)
    return np.asarray(table.score, dtype=np.float64) / np.maximum(1 - p, 1e-6)


def tempered(sharpness: float, share: Callable[[float], float] = lambda ratio: 0.5) -> Select:
    """Among the plausible, weights u ** (sharpness * (1 - ratio))."""

    def select(table: ScoreTable, ratio: float, seed: int) -> NDArray[np.int64]:
        weight = np.maximum(uncertainty(table), 1e-12) ** (sharpness * (1 - ratio))
        table = dataclasses.replace(table, peers={**table.peers, "weight": weight})
        within = plausible(table, round(len(table) * (1 - ratio)), share(ratio))
        return table.select(
            ratio, seed=seed, method="weighted", by="weight", per_class=True, within=within
        )

    return select


def typical(table: ScoreTable, ratio: float, seed: int) -> NDArray[np.int64]:
    """The c_D whose mean probability slides from the score's draw to that of the plausible."""
    within = plausible(table, round(len(table) * (1 - ratio)))
    options: dict[str, Any] = {"per_class": True, "within": within, "seed": seed}
    hard = table.mean_prob[table.select(ratio, method="weighted", **options)].mean()
    target = (1 - ratio) * hard + ratio * table.mean_prob[within].mean()
    low, high = np.log(0.25), np.log(32.0)
    for _ in range(10):
        middle = float(np.exp((low + high) / 2))
        kept = table.select(ratio, method="beta", c_d=middle, **options)
        easy = table.mean_prob[kept].mean() > target
        low, high = ((low + high) / 2, high) if easy else (low, (low + high) / 2)
    return kept


PEERS: dict[str, Select] = {
    "random": by(method="random"),
    "random, again": lambda table, ratio, seed: table.select(
        ratio, seed=seed + 5_000, method="random"
    ),
    "default": by(),
    "DUAL + Beta, c_D = 4": by(preset="paper"),
    "auto + per class": by(c_d="auto", per_class=True),
    "Dyn-Unc": by(method="top", by="dyn_unc"),
    "EL2N": by(method="top", by="el2n"),
    "CCS": by(method="ccs"),
}
CANDIDATES: dict[str, Select] = {
    "Dyn-Unc per class": by(method="top", by="dyn_unc", per_class=True),
    "plausible, random": among_plausible(method="random", per_class=True),
    "plausible, weighted by u": among_plausible(method="weighted", by="dyn_unc", per_class=True),
    "plausible, auto": among_plausible(method="beta", c_d="auto", per_class=True),
    "plausible, u^(1-r)": tempered(1.0),
    "plausible, u^2(1-r)": tempered(2.0),
    "plausible to r, u^2(1-r)": tempered(2.0, lambda ratio: max(0.5, ratio)),
    "plausible, typical": typical,
}
METHODS = PEERS | CANDIDATES
