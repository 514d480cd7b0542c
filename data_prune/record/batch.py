"""What a user hands over for one batch -> values that can be credited, or an error.

Logits and targets are checked by the rules of their task, and give one probability (and the
peers' values) for each example; losses and probabilities come as they are. Nothing is stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .observe import (
    CHUNK_ELEMENTS,
    SCALED,
    UNLABELLED,
    check_multilabel,
    error_norm,
    is_correct,
    margin,
    multilabel_prob,
    position_log_prob,
    segmentation_prob,
    squared_error,
    two_classes,
)


class Reading(NamedTuple):
    """One batch on the device where it was computed.

    Attributes:
        values: name -> (B,) or (B, C) numbers.
        label: (B,) int64, or None where targets are no classes.
        num_classes: C; -1 where targets are no classes.
    """

    values: dict[str, Tensor]
    label: Tensor | None = None
    num_classes: int = -1


def read_logits(
    index: Tensor,
    logits: Any,
    target: Any,
    *,
    task: str,
    peers: tuple[str, ...] = (),
    ignore_index: int = -100,
    shift: bool = False,
) -> Reading:
    """Return what a batch of outputs and targets says; see ``DualTracker.update``."""
    if task == "loss":
        raise ValueError("task 'loss' takes one loss for each example: loss=, got logits")
    check_tensors(index, logits=logits, target=target)
    target = target.detach().to(logits.device)
    if task == "classification" and (logits.ndim == 1 or logits.shape[1:] == (1,)):
        logits, target = two_classes(logits, target)
    check_task(logits, target, task, ignore_index)
    safe = target if target.dtype.is_floating_point else target.long()
    label, num_classes = None, -1
    if task == "classification":
        label, num_classes = safe, logits.shape[-1]
        if logits.device.type == "cpu":
            check_labels(label, num_classes, ignore_index)
        safe = safe.clamp(0, num_classes - 1)  # elsewhere the check waits for the copy
    values = observe(logits, safe, task=task, peers=peers, ignore_index=ignore_index, shift=shift)
    if label is not None:
        values["prob"] = values["prob"].masked_fill(label == ignore_index, UNLABELLED)
    return Reading(values, label, num_classes)


def observe(
    logits: Tensor,
    target: Tensor,
    *,
    task: str = "classification",
    peers: tuple[str, ...] = (),
    ignore_index: int = -100,
    shift: bool = False,
) -> dict[str, Tensor]:
    """Return one float32 value per example for each quantity that is recorded in an epoch.

    Args:
        logits: The model's output for the batch; shape by task, see ``DualTracker.update``.
        target: The target used in the loss, classes already inside [0, C).
        task: One of ``TASKS``.
        peers: The peers whose values are wanted as well (classification only).
        ignore_index: The label that does not count (tasks "tokens" and "segmentation").
        shift: Compare the logits at t with the token at t + 1 (task "tokens").

    Returns:
        ``{"prob": (B,), ...}``; for regression "prob" holds the loss, which becomes a
        probability at the end of the epoch, when its scale is known. For "tdds" the value is
        the (B, C) log-softmax.

    Example:
        >>> values = observe(torch.zeros(1, 4), torch.tensor([2]), peers=("aum",))
        >>> {name: value.tolist() for name, value in values.items()}
        {'prob': [0.25], 'aum': [0.0]}
    """
    if task == "tokens":
        if shift:
            logits, target = logits[:, :-1], target[:, 1:]
        prob = position_log_prob(logits, target, ignore_index).exp()
        return {"prob": prob.masked_fill((target == ignore_index).all(-1), UNLABELLED)}
    if task == "segmentation":
        return {"prob": segmentation_prob(logits, target, ignore_index)}
    if task == "multilabel":
        return {"prob": multilabel_prob(logits, target)}
    if task == "regression":
        return {"prob": squared_error(logits, target)}
    log_prob = target_log_prob(logits, target)
    # A target whose own logit is -inf gives exactly 0, as does NaN arithmetic on some devices:
    # the label itself was masked out, so the observation is marked as not finite.
    prob = log_prob.exp().masked_fill(log_prob.isneginf(), float("nan"))
    values = {"prob": prob}
    if "el2n" in peers:
        values["el2n"] = error_norm(logits, target)
    if "aum" in peers:
        values["aum"] = margin(logits, target)
    if "forgetting" in peers:
        values["forgetting"] = is_correct(logits, target)
    if "tdds" in peers:
        values["tdds"] = logits.detach().float().log_softmax(-1)
    return values


def target_log_prob(logits: Tensor, target: Tensor) -> Tensor:
    r"""Return the log-probability of the target class, in float32, without a full softmax.

    .. math:: \log P(y) = z_y - \log \sum_c e^{z_c}

    Args:
        logits: (B, C), any floating dtype.
        target: (B,), integer classes in [0, C).

    Returns:
        (B,) float32, on the logits' device, detached.

    Example:
        >>> target_log_prob(torch.zeros(2, 4), torch.tensor([0, 3])).exp().tolist()
        [0.25, 0.25]
    """
    rows = max(1, CHUNK_ELEMENTS // max(1, logits.shape[-1]))
    parts = []
    for z, y in zip(logits.detach().split(rows), target.split(rows), strict=True):
        z = z.float()
        parts.append(z.gather(-1, y[:, None]).squeeze(-1) - z.logsumexp(-1))
    return torch.cat(parts) if parts else logits.new_zeros(0, dtype=torch.float32)


def read_losses(index: Tensor, loss: Any, label: Any, task: str) -> Reading:
    """Return what a batch of losses says: they as they are where a scale follows, else exp(-loss).

    On an accelerator a negative loss becomes NaN, so that nobody waits for the device.
    """
    check_tensors(index, loss=loss)
    if loss.shape != index.shape:
        raise ValueError(
            f"loss must have one value for each of the {len(index)} examples, got shape "
            f"{tuple(loss.shape)}: pass reduction='none', averaged over all axes but the first"
        )
    value = loss.detach().float()
    if value.device.type == "cpu" and bool((value < 0).any()):
        raise ValueError(
            f"loss must be at least 0, got {value.min():.6g}: add a constant, or pass a "
            "probability of your own with prob="
        )
    value = value.masked_fill(value < 0, float("nan"))
    labels = None if label is None else host_labels(label, index).to(value.device)
    return Reading({"prob": value if task in SCALED else (-value).exp()}, labels)


def read_probabilities(index: Tensor, prob: Any, label: Any) -> Reading:
    """Return what a batch of probabilities says, on the host."""
    values = torch.as_tensor(prob).detach().float().cpu()
    if values.shape != index.shape:
        raise ValueError(f"prob has shape {tuple(values.shape)}, index {tuple(index.shape)}")
    if bool(((values < 0) | (values > 1)).any()):
        raise ValueError(f"prob must be in [0, 1], got {values.min()} to {values.max()}")
    return Reading({"prob": values}, None if label is None else host_labels(label, index))


def check_index(index: Any, num_examples: int) -> Tensor:
    """Return (B,) int64 on the host, every entry inside [0, num_examples)."""
    try:
        tensor = torch.as_tensor(index).detach()
    except (ValueError, TypeError, RuntimeError):
        raise TypeError(
            "index must hold the positions of the examples, integers, got "
            f"{type(index).__name__}: KeyedTracker takes names"
        ) from None
    if tensor.numel() == 0:
        tensor = tensor.long()
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
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


def check_tensors(index: Tensor, **values: Any) -> None:
    """Refuse what is no tensor or has another number of examples than the index."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if name == "loss" and value.ndim == 0:
            continue  # refused with advice of its own
        if value.ndim == 0 or len(value) != len(index):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, but the batch has {len(index)} examples"
            )


def check_task(logits: Tensor, target: Tensor, task: str, ignore_index: int) -> None:
    """Refuse tensors of other shapes or kinds than the task takes."""
    if task == "regression":
        shapes = [[n for n in x.shape[1:] if n != 1] for x in (logits, target)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"prediction has shape {tuple(logits.shape)}, target {tuple(target.shape)}"
            )
        return
    if not logits.dtype.is_floating_point:
        raise TypeError(f"logits must be floating, got {logits.dtype}")
    if logits.ndim > 1 and logits.shape[-1] < 1:
        raise ValueError("logits have no classes")
    if task == "multilabel":
        check_multilabel(logits, target)
    elif task != "classification":
        _check_positions(logits, target, task, ignore_index)
    elif target.dtype.is_floating_point and target.ndim == 2:
        raise ValueError(
            f"target has shape {tuple(target.shape)} and dtype {target.dtype}: for soft labels "
            "(mixup, CutMix, distillation) the probability of the label is not defined; pass the "
            "hard label"
        )
    elif target.dtype.is_floating_point or target.dtype == torch.bool:
        raise TypeError(f"target must hold integer classes, got {target.dtype}")
    elif logits.ndim != 2 or target.ndim != 1:
        raise ValueError(
            f"expected logits (B, C) and target (B,), got {tuple(logits.shape)} and "
            f"{tuple(target.shape)}"
        )


def _check_positions(logits: Tensor, target: Tensor, task: str, ignore_index: int) -> None:
    """Check one label at each position: tokens (B, L, V), or segmentation (B, C, ...)."""
    tokens, shape = task == "tokens", logits.shape
    binary = not tokens and logits.ndim > 2 and shape[1] == 1
    if not (binary or tokens) and (target.dtype.is_floating_point or target.dtype == torch.bool):
        raise TypeError(f"target must hold integer classes, got {target.dtype}")
    if tokens and (target.dtype.is_floating_point or target.dtype == torch.bool):
        raise TypeError(f"target must hold integer tokens, got {target.dtype}")
    wanted = shape[:2] if tokens else (*shape[:1], *shape[2:])
    if (logits.ndim != 3 if tokens else logits.ndim < 3) or not (
        target.shape == wanted or (binary and target.shape == shape)
    ):
        takes = (
            "logits (B, L, V) and target (B, L)"
            if tokens
            else "logits (B, C, ...), target (B, ...)"
        )
        raise ValueError(f"expected {takes}, got {tuple(shape)} and {tuple(target.shape)}")
    if target.device.type == "cpu":
        classes = 2 if binary else shape[-1 if tokens else 1]
        known = target[(target != ignore_index) & (target == target)]
        if known.dtype.is_floating_point:
            known = known[(known != 0) & (known != 1)]
            if len(known):
                raise ValueError(f"binary targets must be 0 or 1, got {known[0].item():.6g}")
        elif known.dtype != torch.bool:
            check_labels(known, classes, ignore_index)


def check_labels(label: Tensor, num_classes: int, ignore_index: int) -> None:
    """Refuse a label outside [0, num_classes) that is not the one that does not count."""
    label = label[label != ignore_index]
    if len(label) and not 0 <= label.min() <= label.max() < num_classes:
        raise ValueError(
            f"labels must be in [0, {num_classes}), got {label.min()} to {label.max()} "
            f"({ignore_index} is ignored: ignore_index=)"
        )


def host_labels(label: Any, index: Tensor) -> Tensor:
    """Return the labels of a batch as (B,) int64 on the host."""
    labels = torch.as_tensor(label).detach()
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        raise TypeError(f"label must hold integers, got {labels.dtype}")
    if labels.shape != index.shape:
        raise ValueError(f"label has shape {tuple(labels.shape)}, index {tuple(index.shape)}")
    labels = labels.to("cpu", torch.int64)
    if len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < 2**31:
        raise ValueError(
            f"label must be in [-1, 2**31), got {int(labels.min())} to {int(labels.max())}"
        )
    return labels
