"""Logits and targets of one batch -> one probability (and the peers' values) per example.

Everything here is a pure function on the logits' device, of a batch that ``batch`` has checked.
"""

from __future__ import annotations

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
_CHUNK_ELEMENTS = 1 << 22


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


def unknown(target: Tensor) -> Tensor:
    """Mark the entries of a multi-label target that say nothing."""
    return (target == -1) | (target != target)


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
    width = max(1, _CHUNK_ELEMENTS // max(1, len(z) * z.shape[over]))
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
    shift: bool = False,
) -> dict[str, Tensor]:
    """Return one float32 value per example for each quantity that is recorded in an epoch.

    Args:
        logits: The model's output for the batch; shape by task, see the functions above.
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
