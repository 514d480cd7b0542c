"""The settings of a recording -> checked, and the arrays that it keeps for each example."""

from __future__ import annotations

import os
from typing import NamedTuple, Protocol

import numpy as np

from .observe import PEERS, SCALED, TASKS
from .sums import NOT_SEEN


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


def check_settings(
    num_examples: int,
    epochs: int,
    window: int,
    task: str,
    peers: tuple[str, ...],
    storage: str | os.PathLike | None,
    shift: bool = False,
    loss_scale: float | None = None,
) -> None:
    """Refuse numbers outside their ranges, unknown names and impossible combinations."""
    for name, value in (("num_examples", num_examples), ("epochs", epochs), ("window", window)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
    if num_examples < 1:
        raise ValueError(f"num_examples must be at least 1, got {num_examples}")
    if not 2 <= window <= epochs:
        raise ValueError(f"window must be between 2 and epochs = {epochs}, got {window}")
    if task not in TASKS:
        raise ValueError(f"task must be one of {TASKS}, got {task!r}")
    unknown = set(peers) - set(PEERS)
    if unknown:
        raise ValueError(f"peers must be of {PEERS}, got {sorted(unknown)}")
    if peers and task != "classification":
        raise ValueError(f"peers are defined for classification only, task is {task!r}")
    if "tdds" in peers and window < 3:
        raise ValueError(f"tdds needs a window of at least 3 epochs, got {window}")
    if "tdds" in peers and storage is not None:
        raise ValueError("tdds cannot be kept in storage: a killed epoch could not be undone")
    if shift and task != "tokens":
        raise ValueError(f"shift is for task 'tokens', got shift={shift!r} and task {task!r}")
    if loss_scale is None:
        return
    if task not in SCALED:
        raise ValueError(f"loss_scale is for tasks {SCALED}, got {loss_scale!r} and task {task!r}")
    if isinstance(loss_scale, bool) or not 0.0 < loss_scale < float("inf"):
        raise ValueError(f"loss_scale must be positive and finite, got {loss_scale!r}")


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
        label = "i4"
        if not files and num_classes is not None and 0 <= num_classes <= 32767:
            # The smallest signed type that holds every class and -1, which means unknown.
            label = np.min_scalar_type(-1 - num_classes).str
        fields["label"] = Field((), label, -1)
    if "tdds" in peers and num_classes is not None:
        fields["previous"] = Field((num_classes,), "f4", np.nan)
    return fields
