"""A state that a tracker, sampler or loader goes on from -> the same, checked, or a clear error."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .batch import check_index
from .layout import layout
from .observe import SCALED
from .store import Store

# Counters that ranks add up when an epoch is closed.
MERGED = ("duplicates", "nonfinite", "unlabelled")


def check_keys(state: Any, names: tuple[str, ...], owner: str) -> None:
    """Refuse a state with unknown or missing entries, by name."""
    if not isinstance(state, dict):
        raise TypeError(f"state of {owner} must be a dict, got {type(state).__name__}")
    missing = [name for name in names if name not in state]
    unknown = [name for name in state if name not in names]
    if missing or unknown:
        raise ValueError(
            f"state of {owner} must have the entries {list(names)}, got "
            + " and ".join(
                [f"no {missing}"] * bool(missing) + [f"the unknown {unknown}"] * bool(unknown)
            )
        )


def check_version(version: Any, known: int) -> None:
    """Refuse a state of another format."""
    if type(version) is not int or version != known:
        raise ValueError(f"state has version {version!r}, known is {known}")


def check_same(name: str, value: Any, mine: Any, owner: str) -> None:
    """Refuse a state whose setting is another than that of the object that it is for."""
    if type(value) is not type(mine) or value != mine:
        raise ValueError(f"state has {name} = {value!r}, this {owner} has {mine!r}")


def check_whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return a whole number of a state, refused if it is none or outside [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} of the state must be an int, got {value!r}")
    high = 2**62 if high is None else high
    if not low <= value <= high:
        limits = f"at least {low}" if high == 2**62 else f"in [{low}, {high}]"
        raise ValueError(f"{name} of the state must be {limits}, got {value}")
    return value


def check_wholes(name: str, value: Any, low: int, high: int | None = None) -> list[int]:
    """Return a list of whole numbers of a state; see ``check_whole``."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} of the state must be a list, got {type(value).__name__}")
    return [check_whole(f"{name}[{i}]", item, low, high) for i, item in enumerate(value)]


def check_counters(counters: Any, mine: dict[str, Any]) -> None:
    """Refuse counters that are incomplete, impossible, or of another recording than mine."""
    check_keys(counters, tuple(mine), "the tracker's counters")
    for name in ("num_examples", "epochs", "window", "peers"):
        check_same(name, counters[name], mine[name], "tracker")
    n = mine["num_examples"]
    epoch = check_whole("epoch", counters["epoch"], 0, mine["epochs"])
    if counters["num_classes"] is not None:
        check_whole("num_classes", counters["num_classes"], -1, 2**31 - 1)
    missing = check_wholes("missing", counters["missing"], 0, n)
    if len(missing) != epoch:
        raise ValueError(f"missing of the state must have {epoch} entries, got {len(missing)}")
    check_whole("duplicates", counters["duplicates"], 0)
    check_whole("nonfinite", counters["nonfinite"], 0)
    check_whole("unlabelled", counters["unlabelled"], 0)
    check_wholes("nonfinite_examples", counters["nonfinite_examples"], 0, n - 1)


def check_array(name: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor of a state on the host, refused if its shape or type is another."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} of the state must be a tensor, got {type(value).__name__}")
    if value.layout != torch.strided or value.is_meta:
        raise TypeError(f"{name} of the state must be a dense tensor with values")
    if tuple(value.shape) != shape or value.dtype != dtype:
        raise ValueError(
            f"{name} of the state must be {dtype} of shape {shape}, got {value.dtype} of shape "
            f"{tuple(value.shape)}"
        )
    return value.detach().cpu()


def limits_of(name: str, counters: dict[str, Any], task: str) -> tuple[float, float]:
    """Return between which values an array of a recording with these counters lies."""
    epoch, window, classes = counters["epoch"], counters["window"], counters["num_classes"]
    windows = max(0, epoch + 1 - window)
    # The largest sample standard deviation of probabilities, and the largest error norm.
    more = 1 + 1e-6  # rounding
    spread, norm = 2**-0.5 * more, 2**0.5 * more
    base = name if name.startswith(("row.", "ring.")) else name.partition(".")[0]
    prob = (0.0, np.inf if task in SCALED else more)
    return {
        "label": (-1, np.inf if classes in (None, -1) else classes - 1),
        "observed": (0, epoch),
        "events": (0, epoch),
        "windows": (0, windows),
        "last": (0, 1),
        "learned": (0, 1),
        "prob_sum": (0.0, epoch * more),
        "score_sum": (0.0, windows * spread),
        "dyn_unc_sum": (0.0, windows * spread),
        "el2n_sum": (0.0, epoch * norm),
        "tdds_sum": (0.0, np.inf),
        "row.prob": prob,
        "row.el2n": (0.0, norm),
        "row.forgetting": (0.0, 1.0),
        "row.tdds": (0.0, np.inf),
        "previous": (-np.inf, 1e-6),
    }.get(base, (-np.inf, np.inf))


def check_values(name: str, array: NDArray, counters: dict[str, Any], store: Store) -> None:
    """Refuse an array whose values no recording with these counters can have."""
    slot = name.rpartition(".")[2]
    if slot in ("0", "1") and f".{slot}" != store.slot(counters["epoch"]):
        return  # the sums of another epoch, which are written over
    low, high = limits_of(name, counters, store.task)
    fill = layout(store, counters["num_classes"])[name].fill
    known = array[~np.isnan(array)] if np.isnan(fill) else array
    masked = name == "previous"  # a class that cannot occur has the log-probability -inf
    if not (masked or np.isfinite(known).all()) or not ((known >= low) & (known <= high)).all():
        raise ValueError(
            f"{name} of the state must be in [{low:g}, {high:g}], got {known.min()} to "
            f"{known.max()}"
        )


def check_whole_recording(
    state: dict[str, Any], arrays: dict[str, NDArray], store: Store, used: int
) -> None:
    """Refuse entries that are right each by itself and cannot be of one recording.

    Args:
        state: With checked entries.
        arrays: Of the state, checked.
        store: That takes them.
        used: Examples that there are; what lies beyond is spare room.
    """
    counters, row = state["counters"], arrays["row.prob"]
    slot = store.slot(counters["epoch"])
    observed, windows = arrays[f"observed{slot}"], arrays[f"windows{slot}"]
    seen = int(observed.sum(dtype=np.int64)) + sum(counters["missing"])
    wrong = None
    if used == store.num_examples and seen != counters["epoch"] * used:
        wrong = f"missing and observed must add up to {counters['epoch'] * used}, got {seen}"
    elif (windows > observed).any():
        wrong = "an example has more windows than epochs in which it was seen"
    elif observed[used:].any() or not np.isnan(row[used:]).all():
        wrong = f"there are {used} keys, and values of more examples"
    elif state["updates"] == 0 and not (np.isnan(row).all() and not state["repeats"]):
        wrong = "updates is 0, and the open epoch has values"
    elif any(np.isnan(row[np.asarray(index)]).any() for index, _ in state["repeats"]):
        wrong = "repeats name an example that the open epoch has not seen"
    elif state["loss_scale"] is not None and store.task not in SCALED:
        wrong = f"loss_scale must be None for task {store.task!r}, got {state['loss_scale']}"
    elif any(m > counters[name] for m, name in zip(state["merged"], MERGED, strict=True)):
        wrong = f"merged must not exceed {MERGED}, got {state['merged']}"
    if wrong is not None:
        raise ValueError(f"the state is of no recording: {wrong}")


def checked_arrays(arrays: Any, counters: dict[str, Any], store: Store) -> dict[str, np.ndarray]:
    """Return the arrays of a state, each of the shape, type and range that it must have."""
    fields = layout(store, counters["num_classes"])
    check_keys(arrays, tuple(fields), "the tracker's arrays")
    checked = {}
    for name, field in fields.items():
        shape, dtype = (*field.lead, store.num_examples), np.dtype(field.dtype)
        stored = portable(np.empty(0, dtype)).dtype
        checked[name] = check_array(name, arrays[name], shape, stored).numpy().view(dtype)
        check_values(name, checked[name], counters, store)
    return checked


def checked_repeats(repeats: Any, store: Store) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Return the batches of a state whose examples had been seen before in the open epoch."""
    names = tuple(name for name in store.rows() if name != "tdds")
    if not isinstance(repeats, list):
        raise TypeError(f"repeats of the state must be a list, got {type(repeats).__name__}")
    checked = []
    for repeat in repeats:
        if not isinstance(repeat, (tuple, list)) or len(repeat) != 2:
            raise TypeError(f"repeats of the state must hold pairs, got {type(repeat).__name__}")
        index = check_index(repeat[0], store.num_examples)
        check_keys(repeat[1], names, "a repeated batch")
        shape = tuple(index.shape)
        values = {n: check_array(n, v, shape, torch.float32).numpy() for n, v in repeat[1].items()}
        checked.append((index.numpy(), values))
    return checked


def portable(array: np.ndarray) -> Tensor:
    """Return a copy as a tensor; torch 2.13 writes unsigned 16-bit ones but cannot read them."""
    copy = array.copy()
    return torch.from_numpy(copy.view(np.int16) if copy.dtype == np.uint16 else copy)
