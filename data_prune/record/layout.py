"""The settings of a recording -> the arrays that it keeps for each example."""

from __future__ import annotations

import os
from typing import NamedTuple, Protocol

import numpy as np

from .ring import NOT_SEEN


class Recording(Protocol):
    """What decides which arrays there are."""

    epochs: int
    window: int
    peers: tuple[str, ...]
    path: str | os.PathLike | None


class Field(NamedTuple):
    """One array: what stands before the axis of examples, its type, and what it begins with."""

    lead: tuple[int, ...]
    dtype: str
    fill: float


def layout(store: Recording, num_classes: int | None) -> dict[str, Field]:
    """Return the arrays of a recording by name.

    In files every sum is there twice (a run killed while it closes an epoch still has the old
    ones), and the labels are there from the beginning.

    Args:
        store: Its epochs, window and peers, and whether it lies in files.
        num_classes: C; -1 where targets are no classes, None while it is not known.
    """
    epochs, window, peers, files = store.epochs, store.window, store.peers, store.path is not None
    count = np.min_scalar_type(epochs).str
    sums = {
        "score_sum": ("f4", 0.0),
        "prob_sum": ("f4", 0.0),
        "observed": (count, 0.0),
        "windows": (count, 0.0),
    }
    sums_of: dict[str, dict[str, tuple[str, float]]] = {
        "dyn_unc": {"dyn_unc_sum": ("f4", 0.0)},
        "el2n": {"el2n_sum": ("f4", 0.0)},
        "aum": {"aum_sum": ("f4", 0.0)},
        "forgetting": {"events": (count, 0.0), "last": ("u1", 0.0), "learned": ("u1", 0.0)},
        "tdds": {"tdds_sum": ("f4", np.nan)},
    }
    for peer in peers:
        sums.update(sums_of[peer])
    fields = {
        f"{name}.{slot}": Field((), dtype, fill)
        for slot in range(2 if files else 1)
        for name, (dtype, fill) in sums.items()
    }
    fields["row.prob"] = Field((), "f4", np.nan)
    fields["ring.high"] = Field((window,), "u2", NOT_SEEN >> 8)
    fields["ring.low"] = Field((window,), "u1", NOT_SEEN & 0xFF)
    for peer in peers:
        if peer in ("el2n", "aum", "forgetting"):
            fields[f"row.{peer}"] = Field((), "f4", np.nan)
    if "tdds" in peers:
        fields["row.tdds"] = Field((window - 1,), "f4", np.nan)
    if files or num_classes is not None:
        fields["label"] = Field((), "i4" if files else _label_dtype(num_classes), -1)
    if "tdds" in peers and num_classes is not None:
        fields["previous"] = Field((num_classes,), "f4", np.nan)
    return fields


def _label_dtype(num_classes: int | None) -> str:
    """Return the smallest signed type that holds every class and -1, which means unknown."""
    if num_classes is None or not 0 <= num_classes <= 32767:
        return "i4"
    return "i1" if num_classes <= 127 else "i2"
