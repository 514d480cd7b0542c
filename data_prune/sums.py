"""The open epoch's rows and the ring -> the running sums, for one range of examples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_prune.ring import decode, encode
from data_prune.scores import tdds_window, window_moments

__all__ = ["fold_rows"]


def fold_rows(
    arrays: dict[str, NDArray],
    rows: dict[str, NDArray],
    part: slice,
    slots: tuple[str, str],
    *,
    epoch: int,
    window: int,
) -> None:
    """Add what the epoch's rows say of the examples ``part`` to their sums.

    Args:
        arrays: of the store, see ``arrays.layout``; the ring takes up the row of probabilities.
        rows: name -> (N,) of the open epoch, NaN where an example was not seen.
        part: the examples.
        slots: suffix of the sums that are read, and of those that are written.
        epoch: number of the open epoch, from 0.
        window: J.
    """
    old, new = slots
    row = {name: r[part] for name, r in rows.items()}
    seen = ~np.isnan(row["prob"])

    def add(name: str, amount: NDArray) -> None:
        before = arrays[name + old][part]
        arrays[name + new][part] = before + amount.astype(before.dtype)

    high, low = arrays["ring.high"], arrays["ring.low"]
    high[epoch % window, part], low[epoch % window, part] = encode(row["prob"])
    add("prob_sum", np.where(seen, row["prob"], 0.0))
    add("observed", seen)
    if epoch + 1 >= window:
        m, u = window_moments(decode(high[:, part], low[:, part]))
    else:
        m = u = np.full(seen.shape, np.nan)
    whole = ~np.isnan(u)
    add("windows", whole)
    add("score_sum", np.where(whole, (1.0 - m) * u, 0.0))
    if "dyn_unc_sum" + old in arrays:
        add("dyn_unc_sum", np.where(whole, u, 0.0))
    for peer in ("el2n", "aum"):
        if peer in row:
            add(f"{peer}_sum", np.where(seen, row[peer], 0.0))
    if "forgetting" in row:
        now = row["forgetting"] >= 0.5
        last = arrays["last" + old][part].astype(bool)
        add("events", seen & last & ~now)
        arrays["last" + new][part] = np.where(seen, now, last)
        arrays["learned" + new][part] = arrays["learned" + old][part].astype(bool) | (seen & now)
    if "tdds" in row:
        arrays["previous"][:, part][:, ~seen] = np.nan  # a step over a gap is no step
        whole_window = epoch + 1 >= window
        score = arrays["tdds_sum" + old][part]
        steps = arrays["row.tdds"][:, part]
        arrays["tdds_sum" + new][part] = _tdds_sum(score, steps) if whole_window else score


def _tdds_sum(score: NDArray, steps: NDArray, eta: float = 0.9) -> NDArray:
    """The exponentially weighted spread with one more window; see ``scores.tdds``."""
    score, spread = score.astype(np.float64), tdds_window(steps)
    moved = np.nan_to_num(score) * (1.0 - eta) + eta * spread
    return np.where(np.isnan(spread), score, moved)
