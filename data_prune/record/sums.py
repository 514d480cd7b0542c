"""The open epoch's rows and the ring -> the running sums, for one range of examples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..score.scores import tdds_window, window_moments

# Probabilities of closed epochs are 24-bit fixed point: three bytes each instead of four. The step,
# 1 / (2**24 - 2), is that of float32 just below 1, here over the whole interval: what float32 can
# tell apart at the learned end stays apart, and a score moves by less than 1e-7. Floating 16-bit
# formats would merge tens of thousands of learned examples.
STEPS = 2**24 - 2
NOT_SEEN = 2**24 - 1


def encode(prob: NDArray) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Return the upper 16 and the lower 8 bits of each probability's number of steps.

    Args:
        prob: Any shape, in [0, 1] up to rounding; NaN where an example was not seen.

    Returns:
        Two arrays of that shape.
    """
    seen = ~np.isnan(prob)
    steps = np.rint(np.clip(np.where(seen, prob, 0.0), 0.0, 1.0) * np.float64(STEPS))
    code = np.where(seen, steps, NOT_SEEN).astype(np.uint32)
    return (code >> 8).astype(np.uint16), code.astype(np.uint8)


def decode(high: NDArray[np.uint16], low: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return what ``encode`` was given, within half a step of 6e-8.

    Example:
        >>> decode(*encode(np.array([0.0, 0.25, 1.0, np.nan]))).round(7).tolist()
        [0.0, 0.25, 1.0, nan]
    """
    code = np.multiply(high, 256.0, dtype=np.float64) + low
    code[code == NOT_SEEN] = np.nan
    return code / STEPS


def median_loss(loss: NDArray) -> float | None:
    """Return the median of an epoch's losses; where most are 0, the median of the others.

    Args:
        loss: (N,) at least 0, NaN where an example was not seen.

    Returns:
        A positive number; None where no example was seen.

    Example:
        >>> median_loss(np.array([0.0, 0.0, 0.0, 2.0, np.nan])), median_loss(np.array([1.0, 3.0]))
        (2.0, 2.0)
    """
    known = loss[~np.isnan(loss)]
    if len(known) == 0:
        return None
    middle = np.median(known)
    if middle == 0 and known.max() > 0:  # hinges, triplets: nothing is lost on what is right
        middle = np.median(known[known > 0])
    return max(float(middle), float(np.finfo(np.float32).tiny))


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
