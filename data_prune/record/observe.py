"""Logits and targets of one batch -> one probability (and the peers' values) per example.

Everything here is a pure function on the logits' device: a batch is checked by the rules of its
task, then read; nothing is stored.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

TASKS = ("classification", "multilabel", "tokens", "regression")
PEERS = ("dyn_unc", "el2n", "forgetting", "aum", "tdds")

# In the place of a probability: no label of the example counts, so that it was not seen.
UNLABELLED = -1.0

# Rows of logits that are widened to float32 at once: 2**22 floats are 16 MB, so that a
# language model's (batch, length, 128k) logits are never copied whole.
_CHUNK_ELEMENTS = 1 << 22


def check_index(index: Any, num_examples: int) -> Tensor:
    """Return (B,) int64 on the host, every entry inside [0, num_examples)."""
    tensor = torch.as_tensor(index).detach()
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


def check_batch(index: Tensor, logits: Tensor, target: Tensor, task: str) -> None:
    """Refuse tensors of other shapes or kinds than the task takes."""
    for name, value in (("logits", logits), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if value.ndim == 0 or len(value) != len(index):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, but the batch has {len(index)} examples"
            )
    if task == "regression":
        if logits.numel() != target.numel():
            raise ValueError(
                f"prediction has shape {tuple(logits.shape)}, target {tuple(target.shape)}"
            )
        return
    if not logits.dtype.is_floating_point:
        raise TypeError(f"logits must be floating, got {logits.dtype}")
    if logits.ndim > 1 and logits.shape[-1] < 1:
        raise ValueError("logits have no classes")
    {"multilabel": _check_multilabel, "tokens": _check_tokens}.get(task, _check_classes)(
        logits, target
    )


def _check_multilabel(logits: Tensor, target: Tensor) -> None:
    if logits.ndim != 2 or target.shape != logits.shape:
        raise ValueError(
            f"multilabel takes (B, C) twice, got logits {tuple(logits.shape)}, target "
            f"{tuple(target.shape)}"
        )
    if target.device.type == "cpu":  # elsewhere the look would wait for the device
        wrong = target[~((target == 0) | _unknown(target) | (target == 1))]
        if len(wrong):
            raise ValueError(
                "multilabel targets must be 0 or 1, and -1 or NaN where unknown, got "
                f"{wrong[0].item()}"
            )


def _unknown(target: Tensor) -> Tensor:
    """Mark the entries of a multi-label target that say nothing."""
    return (target == -1) | (target != target)


def _check_classes(logits: Tensor, target: Tensor) -> None:
    if target.dtype.is_floating_point and target.ndim == 2:
        raise ValueError(
            f"target has shape {tuple(target.shape)} and dtype {target.dtype}: for soft labels "
            "(mixup, CutMix, distillation) the probability of the label is not defined; pass the "
            "hard label"
        )
    if target.dtype.is_floating_point or target.dtype == torch.bool:
        raise TypeError(f"target must hold integer classes, got {target.dtype}")
    if logits.ndim != 2 or target.ndim != 1:
        raise ValueError(
            f"expected logits (B, C) and target (B,), got {tuple(logits.shape)} and "
            f"{tuple(target.shape)}"
        )


def _check_tokens(logits: Tensor, target: Tensor) -> None:
    if target.dtype.is_floating_point or target.dtype == torch.bool:
        raise TypeError(f"target must hold integer tokens, got {target.dtype}")
    if logits.ndim != 3 or target.shape != logits.shape[:2]:
        raise ValueError(
            f"expected logits (B, L, V) and target (B, L), got {tuple(logits.shape)} and "
            f"{tuple(target.shape)}"
        )


def check_labels(label: NDArray, num_classes: int) -> None:
    """Refuse a label outside [0, num_classes)."""
    if len(label) and not 0 <= label.min() <= label.max() < num_classes:
        raise ValueError(
            f"labels must be in [0, {num_classes}), got {label.min()} to {label.max()}"
        )


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
    rows = max(1, _CHUNK_ELEMENTS // max(1, logits.shape[-1]))
    parts = []
    for z, y in zip(logits.detach().split(rows), target.split(rows), strict=True):
        z = z.float()
        parts.append(z.gather(-1, y[:, None]).squeeze(-1) - z.logsumexp(-1))
    return torch.cat(parts) if parts else logits.new_zeros(0, dtype=torch.float32)


def token_log_prob(logits: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    r"""Return the mean log-probability per token, the log of the geometric-mean probability.

    .. math:: \log P(y) = \frac{1}{|\{t : y_t \ne \text{ignore}\}|} \sum_t \log P(y_t)

    Args:
        logits: (B, L, V), already aligned with ``target`` (shift them for a causal model).
        target: (B, L), integer tokens; ``ignore_index`` marks padding and prompts.
        ignore_index: The token that does not count.

    Returns:
        (B,) float32; NaN for a sequence in which every token is ignored.

    Example:
        >>> token_log_prob(torch.zeros(1, 2, 4), torch.tensor([[1, -100]])).exp().tolist()
        [0.25]
    """
    used = target != ignore_index
    flat = target_log_prob(logits.flatten(0, 1), target.masked_fill(~used, 0).flatten())
    log_prob = flat.view(target.shape).masked_fill(~used, 0.0)
    return log_prob.sum(-1) / used.sum(-1)


def multilabel_prob(logits: Tensor, target: Tensor) -> Tensor:
    r"""Return the geometric mean over known classes of p^y (1 - p)^(1 - y), p = sigmoid(logits).

    Args:
        logits: (B, C).
        target: (B, C) of zeros and ones; -1 or NaN is unknown and does not count.

    Returns:
        (B,) float32; NaN where an entry is none of these, ``UNLABELLED`` where all are unknown.

    Example:
        >>> target = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
        >>> multilabel_prob(torch.tensor([[0.0, 9.0], [0.0, 0.0]]), target).tolist()
        [0.5, -1.0]
    """
    z, known = logits.detach().float(), ~_unknown(target)
    signed = torch.where(target == 1, z, -z)
    log_prob = torch.nn.functional.logsigmoid(signed)
    log_prob = log_prob.masked_fill((target != 0) & (target != 1), float("nan"))
    mean = log_prob.masked_fill(~known, 0.0).sum(-1) / known.sum(-1)
    return mean.exp().masked_fill(~known.any(-1), UNLABELLED)


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error per example, (B,) float32, which regression records."""
    difference = prediction.detach().float() - target.reshape(prediction.shape).float()
    return difference.square().reshape(len(prediction), -1).mean(-1)


def margin(logits: Tensor, target: Tensor) -> Tensor:
    """Return the target's logit minus the largest other one (AUM; Pleiss et al. 2020, eq. 1)."""
    z = logits.detach().float()
    other = z.scatter(-1, target[:, None], float("-inf")).amax(-1)
    return z.gather(-1, target[:, None]).squeeze(-1) - other


def error_norm(logits: Tensor, target: Tensor) -> Tensor:
    """Return the Euclidean norm of softmax minus one-hot (EL2N; Paul et al. 2021, section 2.2)."""
    p = logits.detach().float().softmax(-1)
    p.scatter_add_(-1, target[:, None], p.new_full((len(p), 1), -1.0))
    return p.norm(dim=-1)


def is_correct(logits: Tensor, target: Tensor) -> Tensor:
    """Return 1.0 where the largest logit is the target's, else 0.0 (Toneva et al. 2019)."""
    return (logits.detach().argmax(-1) == target).float()


def observe(
    logits: Tensor,
    target: Tensor,
    *,
    task: str = "classification",
    peers: tuple[str, ...] = (),
    ignore_index: int = -100,
) -> dict[str, Tensor]:
    """Return one float32 value per example for each quantity that is recorded in an epoch.

    Args:
        logits: The model's output for the batch; shape by task, see the functions above.
        target: The target used in the loss, classes already inside [0, C).
        task: One of ``TASKS``.
        peers: The peers whose values are wanted as well (classification only).
        ignore_index: The token that does not count (task "tokens").

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
        prob = token_log_prob(logits, target, ignore_index).exp()
        return {"prob": prob.masked_fill((target == ignore_index).all(-1), UNLABELLED)}
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
