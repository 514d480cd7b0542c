"""What a tracker is made from -> nothing, or an error that names what is wrong with it."""

from __future__ import annotations

import os

from .observe import PEERS, SCALED, TASKS


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
