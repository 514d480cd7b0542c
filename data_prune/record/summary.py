"""The running sums of the closed epochs -> a score table, and what was seen."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..score.table import ScoreTable
from .store import Store


def coverage(store: Store) -> dict[str, Any]:
    """Count what was seen; see ``DualTracker.coverage``."""
    observed = store.sums("observed")
    return {
        "epochs": store.epoch,
        "examples": store.num_examples,
        "missing_per_epoch": list(store.missing),
        "seen_in_every_epoch": int((observed == store.epoch).sum()),
        "never_seen": int((observed == 0).sum()),
        "unscored": int((store.sums("windows") == 0).sum()),
        "duplicates": store.duplicates,
        "nonfinite": store.nonfinite,
        "unlabelled": store.unlabelled,
        "nonfinite_examples": sorted(store.nonfinite_examples),
    }


def score_table(store: Store, part: slice, task: str) -> ScoreTable:
    """Return the columns of a range of examples: sums divided by their counts.

    Args:
        store: What was recorded.
        part: Positions of the examples.
        task: Of the tracker, for the table's ``meta``.
    """
    observed, windows = (store.sums(name)[part] for name in ("observed", "windows"))

    def mean(name: str, count: NDArray) -> NDArray:
        return store.sums(name)[part] / np.where(count > 0, count.astype(np.float32), np.nan)

    def peer(name: str) -> NDArray:
        if name == "dyn_unc":
            return mean("dyn_unc_sum", windows)
        if name == "forgetting":
            learned = store.sums("learned")[part].astype(bool)
            events = store.sums("events")[part].astype(np.float32)
            return np.where(learned, events, np.float32(store.epoch))
        if name == "tdds":
            return store.sums("tdds_sum")[part].copy()
        return mean(f"{name}_sum", observed)

    label = store.arrays.get("label")
    return ScoreTable(
        key=np.arange(part.start, part.stop, dtype=np.int64),
        label=(
            np.full(part.stop - part.start, -1, dtype=np.int32)
            if label is None
            else label[part].astype(np.int32)
        ),
        score=mean("score_sum", windows),
        mean_prob=mean("prob_sum", observed),
        observed=observed.astype(np.int32),
        peers={name: peer(name) for name in store.peers},
        meta={
            "epochs": store.epoch,
            "window": store.window,
            "task": task,
            **({} if store.loss_scale is None else {"loss_scale": store.loss_scale}),
            "examples": store.num_examples,
            "nonfinite": store.nonfinite,
            "nonfinite_examples": sorted(store.nonfinite_examples),
            "duplicates": store.duplicates,
        },
    )
