"""What a user hands to the tracker -> the same, or an error that names what is wrong with it."""

from __future__ import annotations

import os
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prune.observe import PEERS, TASKS

__all__ = ["check_batch", "check_index", "check_labels", "check_settings"]


def check_settings(
    num_examples: int,
    epochs: int,
    window: int,
    task: str,
    peers: tuple[str, ...],
    storage: str | os.PathLike | None,
) -> None:
    """Numbers in their ranges, names that are known, combinations that are possible."""
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


def check_index(index: Any, num_examples: int) -> Tensor:
    """(B,) int64 on the host, every entry inside [0, num_examples)."""
    tensor = torch.as_tensor(index).detach()
    if tensor.dtype.is_floating_point or tensor.dtype in (torch.bool, torch.complex64):
        raise TypeError(
            f"index must hold integers, got {tensor.dtype}: floats are not exact above 2**24"
        )
    tensor = tensor.to("cpu", torch.int64)
    if tensor.ndim != 1:
        raise ValueError(f"index must have shape (B,), got {tuple(tensor.shape)}")
    if len(tensor) and not 0 <= int(tensor.min()) <= int(tensor.max()) < num_examples:
        raise ValueError(
            f"index must be in [0, {num_examples}), got {int(tensor.min())} to {int(tensor.max())}"
        )
    return tensor


def check_batch(index: Tensor, logits: Tensor, target: Tensor, task: str) -> None:
    """Shapes and kinds of one batch; the message says what the task takes."""
    for name, value in (("logits", logits), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if value.ndim == 0 or len(value) != len(index):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, but the batch has {len(index)} examples"
            )
    shape, given = tuple(logits.shape), tuple(target.shape)
    if task == "regression":
        if logits.numel() != target.numel():
            raise ValueError(f"prediction has shape {shape}, target {given}")
        return
    if not logits.dtype.is_floating_point:
        raise TypeError(f"logits must be floating, got {logits.dtype}")
    if task == "multilabel":
        if logits.ndim != 2 or given != shape:
            raise ValueError(f"multilabel takes (B, C) twice, got logits {shape}, target {given}")
        return
    if task == "classification" and target.dtype.is_floating_point and target.ndim == 2:
        raise ValueError(
            f"target has shape {given} and dtype {target.dtype}: for soft labels (mixup, CutMix, "
            "distillation) the probability of the label is not defined; pass the hard label"
        )
    if target.dtype.is_floating_point or target.dtype == torch.bool:
        raise TypeError(f"target must hold integer classes, got {target.dtype}")
    if task == "classification" and (logits.ndim != 2 or target.ndim != 1):
        raise ValueError(f"expected logits (B, C) and target (B,), got {shape} and {given}")
    if task == "tokens" and (logits.ndim != 3 or given != shape[:2]):
        raise ValueError(f"expected logits (B, L, V) and target (B, L), got {shape} and {given}")
    if logits.shape[-1] < 1:
        raise ValueError("logits have no classes")


def check_labels(label: NDArray, num_classes: int) -> None:
    """Every label inside [0, num_classes)."""
    if len(label) and not 0 <= label.min() <= label.max() < num_classes:
        raise ValueError(
            f"labels must be in [0, {num_classes}), got {label.min()} to {label.max()}"
        )
