"""Probabilities of closed epochs <-> 24-bit fixed point: three bytes each instead of four.

The step, 1 / (2**24 - 2), is that of float32 just below 1, here over the whole interval: what
float32 can tell apart at the learned end stays apart, and a score moves by less than 1e-7.
Floating 16-bit formats would merge tens of thousands of learned examples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
