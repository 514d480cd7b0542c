"""The open epoch's rows and the ring -> the running sums, for one range of examples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..score.scores import tdds_window, window_moments
from .ring import decode, encode


def fold_rows(
    arrays: dict[str, NDArray],
    row: dict[str, NDArray],
    part: slice,
    slots: tuple[str, str],
    *,
    epoch: int,
    window: int,
) -> None:
    """Add what the epoch's row says of the examples ``part`` to their sums.

    Args:
        arrays: See ``layout.layout``; the ring takes up the row of probabilities.
        row: name -> values of these examples in the open epoch, NaN where one was not seen.
        part: The examples.
        slots: Suffix of the sums that are read, and of those that are written.
        epoch: Number of the open epoch, from 0.
        window: J.
    """
    old, new = slots
    seen = ~np.isnan(row["prob"])
    high, low = arrays["ring.high"], arrays["ring.low"]
    high[epoch % window, part], low[epoch % window, part] = encode(row["prob"])
    terms: dict[str, NDArray] = {"prob_sum": np.where(seen, row["prob"], 0.0), "observed": seen}
    if epoch + 1 >= window:
        m, u = window_moments(decode(high[:, part], low[:, part]))
    else:
        m = u = np.full(seen.shape, np.nan)
    whole = ~np.isnan(u)
    terms |= {"windows": whole, "score_sum": np.where(whole, (1.0 - m) * u, 0.0)}
    if "dyn_unc_sum" + old in arrays:
        terms["dyn_unc_sum"] = np.where(whole, u, 0.0)
    for peer in ("el2n", "aum"):
        if peer in row:
            terms[f"{peer}_sum"] = np.where(seen, row[peer], 0.0)
    if "forgetting" in row:
        now = row["forgetting"] >= 0.5
        last = arrays["last" + old][part].astype(bool)
        terms["events"] = seen & last & ~now
        arrays["last" + new][part] = np.where(seen, now, last)
        arrays["learned" + new][part] = arrays["learned" + old][part].astype(bool) | (seen & now)
    if "tdds" in row:
        arrays["previous"][:, part][:, ~seen] = np.nan  # a step over a gap is no step
        whole_window = epoch + 1 >= window
        score = arrays["tdds_sum" + old][part]
        steps = arrays["row.tdds"][:, part]
        arrays["tdds_sum" + new][part] = _tdds_sum(score, steps) if whole_window else score
    for name, amount in terms.items():
        before = arrays[name + old][part]
        arrays[name + new][part] = before + amount.astype(before.dtype)


def _tdds_sum(score: NDArray, steps: NDArray, eta: float = 0.9) -> NDArray:
    """Return the exponentially weighted spread with one more window; see ``scores.tdds``."""
    score, spread = score.astype(np.float64), tdds_window(steps)
    moved = np.nan_to_num(score) * (1.0 - eta) + eta * spread
    return np.where(np.isnan(spread), score, moved)
