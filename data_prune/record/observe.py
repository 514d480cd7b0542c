"""Logits and targets of one batch -> what a task or a peer takes of each example.

Everything here is a pure function on the logits' device, called by ``batch``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TASKS = ("classification", "multilabel", "tokens", "segmentation", "regression", "loss")
# Their losses become probabilities at the end of an epoch, when the scale is known.
SCALED = ("regression", "loss")
PEERS = ("dyn_unc", "el2n", "forgetting", "aum", "tdds")

# In the place of a probability: no label of the example counts, so that it was not seen.
UNLABELLED = -1.0

# Rows of logits that are widened to float32 at once: 2**22 floats are 16 MB, so that a
# language model's (batch, length, 128k) logits are never copied whole.
CHUNK_ELEMENTS = 1 << 22


def unknown(target: Tensor) -> Tensor:
    """Mark the entries of a multi-label target that say nothing."""
    return (target == -1) | (target != target)


def two_classes(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return a single logit for class 1 as logits of two classes, softmax (0, z) = sigmoid(z).

    Args:
        logits: (B,) or (B, 1).
        target: (B,) or (B, 1) zeros and ones of any type.

    Example:
        >>> z, y = two_classes(torch.tensor([[0.5]]), torch.tensor([[1.0]]))
        >>> z.tolist(), y.tolist()
        ([[0.0, 0.5]], [1])
    """
    if target.shape not in (logits.shape[:1], (*logits.shape[:1], 1)):
        raise ValueError(
            f"binary logits of shape {tuple(logits.shape)} take a target (B,) or (B, 1), got "
            f"{tuple(target.shape)}"
        )
    y = target.reshape(-1)
    if y.dtype.is_floating_point or y.dtype == torch.bool:
        classes = torch.where(y == 0, 0, torch.where(y == 1, 1, 2))
        wrong = y[classes == 2] if y.device.type == "cpu" else y[:0]
        if len(wrong):
            raise ValueError(f"binary targets must be 0 or 1, got {wrong[0].item():.6g}")
        y = classes
    z = logits.reshape(-1)
    return torch.stack([torch.zeros_like(z), z], dim=-1), y


def check_multilabel(logits: Tensor, target: Tensor) -> None:
    """Refuse a target of another shape than the logits, or with other values than 0, 1, unknown."""
    if logits.ndim < 2 or target.shape != logits.shape:
        raise ValueError(
            f"multilabel takes (B, C) twice, or (B, ...) twice, got logits {tuple(logits.shape)}, "
            f"target {tuple(target.shape)}"
        )
    if target.device.type == "cpu":  # elsewhere the look would wait for the device
        wrong = target[~((target == 0) | unknown(target) | (target == 1))]
        if len(wrong):
            raise ValueError(
                "multilabel targets must be 0 or 1, and -1 or NaN where unknown, got "
                f"{wrong[0].item()}"
            )


def position_log_prob(
    logits: Tensor, target: Tensor, ignore_index: int = -100, classes: int = -1
) -> Tensor:
    r"""Return the mean log-probability per position, the log of the geometric-mean probability.

    .. math:: \log P(y) = \frac{1}{|\{t : y_t \ne \text{ignore}\}|} \sum_t \log P(y_t)

    Args:
        logits: (B, L, V) for tokens, (B, C, ...) for pixels.
        target: (B, L) or (B, ...), integers; ``ignore_index`` marks padding, prompts, borders.
        ignore_index: The label that does not count.
        classes: Axis of the classes: -1 for tokens, 1 for pixels.

    Returns:
        (B,) float32; NaN for an example of which every position is ignored.

    Example:
        >>> position_log_prob(torch.zeros(1, 2, 4), torch.tensor([[1, -100]])).exp().tolist()
        [0.25]
    """
    z, axis = logits.detach(), 1
    if classes == 1:
        z, target, axis = z.flatten(2), target.flatten(1), 2
    over = 3 - axis  # where the classes are
    width = max(1, CHUNK_ELEMENTS // max(1, len(z) * z.shape[over]))
    total = torch.zeros(len(z), dtype=torch.float32, device=z.device)
    for part, y in zip(z.split(width, axis), target.split(width, 1), strict=True):
        used, part = y != ignore_index, part.float()
        safe = y.masked_fill(~used, 0).unsqueeze(over)
        log_prob = part.gather(over, safe).squeeze(over) - part.logsumexp(over)
        total += log_prob.masked_fill(~used, 0.0).sum(-1)
    return total / (target != ignore_index).sum(-1)


def segmentation_prob(logits: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    """Return the geometric mean of the pixels' probabilities, ``UNLABELLED`` where none counts.

    Args:
        logits: (B, C, ...); one channel is the logit of a binary mask.
        target: (B, ...) classes; for one channel zeros and ones, (B, ...) or (B, 1, ...).
        ignore_index: The label that does not count (for one channel NaN does not either).

    Example:
        >>> mask = torch.tensor([[[0.0, 1.0]], [[255.0, 255.0]]])
        >>> segmentation_prob(torch.zeros(2, 1, 1, 2), mask, ignore_index=255).tolist()
        [0.5, -1.0]
    """
    if logits.shape[1] == 1:
        z, y = logits.flatten(1), target.flatten(1)
        y = y.to(z.dtype).masked_fill(y == ignore_index, -1.0)
        return multilabel_prob(z, y)
    prob = position_log_prob(logits, target, ignore_index, classes=1).exp()
    return prob.masked_fill((target == ignore_index).flatten(1).all(-1), UNLABELLED)


def multilabel_prob(logits: Tensor, target: Tensor) -> Tensor:
    r"""Return the geometric mean over known classes of p^y (1 - p)^(1 - y), p = sigmoid(logits).

    Args:
        logits: (B, C), or (B, ...).
        target: Of the same shape, zeros and ones; -1 or NaN is unknown and does not count.

    Returns:
        (B,) float32; NaN where an entry is none of these, ``UNLABELLED`` where all are unknown.

    Example:
        >>> target = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
        >>> multilabel_prob(torch.tensor([[0.0, 9.0], [0.0, 0.0]]), target).tolist()
        [0.5, -1.0]
    """
    z, target = logits.detach().flatten(1).float(), target.flatten(1)
    known = ~unknown(target)
    signed = torch.where(target == 1, z, -z)
    log_prob = torch.nn.functional.logsigmoid(signed)
    log_prob = log_prob.masked_fill((target != 0) & (target != 1), float("nan"))
    mean = log_prob.masked_fill(~known, 0.0).sum(-1) / known.sum(-1)
    return mean.exp().masked_fill(~known.any(-1), UNLABELLED)


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error per example, which regression records.

    Args:
        prediction: (B, ...).
        target: Of the same shape, up to axes of length 1; NaN is unknown and does not count.

    Returns:
        (B,) float32; ``UNLABELLED`` where all targets are unknown.

    Example:
        >>> nan = float("nan")
        >>> target = torch.tensor([[1.0, nan], [nan, nan]])
        >>> squared_error(torch.tensor([[3.0, 5.0], [0.0, 0.0]]), target).tolist()
        [4.0, -1.0]
    """
    shape = len(prediction), math.prod(prediction.shape[1:])
    z, y = (x.detach().reshape(shape).float() for x in (prediction, target))
    known = y == y
    square = (z - y).square().masked_fill(~known, 0.0)
    return (square.sum(-1) / known.sum(-1)).masked_fill(~known.any(-1), UNLABELLED)


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
