"""Logits and targets of one batch -> one probability (and the peers' values) per example.

First station. Everything here is a pure function on the logits' device; nothing is stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "PEERS",
    "TASKS",
    "observe",
    "squared_error",
    "target_log_prob",
    "token_log_prob",
]

TASKS = ("classification", "multilabel", "tokens", "regression")
PEERS = ("dyn_unc", "el2n", "forgetting", "aum", "tdds")

# Rows of logits that are widened to float32 at once: 2**22 floats are 16 MB, so that a
# language model's (batch, length, 128k) logits are never copied whole.
_CHUNK_ELEMENTS = 1 << 22


def target_log_prob(logits: Tensor, target: Tensor) -> Tensor:
    r"""Log-probability of the target class, in float32, without a full softmax.

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
    r"""Mean log-probability per token, whose exponential is the geometric-mean probability.

    .. math:: \log P(y) = \frac{1}{|\{t : y_t \ne \text{ignore}\}|} \sum_t \log P(y_t)

    Args:
        logits: (B, L, V), already aligned with ``target`` (shift them for a causal model).
        target: (B, L), integer tokens; ``ignore_index`` marks padding and prompts.
        ignore_index: the token that does not count.

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
    r"""Geometric mean over classes of p^y (1 - p)^(1 - y), with p the sigmoid of the logits.

    Args:
        logits: (B, C).
        target: (B, C) of zeros and ones.

    Returns:
        (B,) float32.
    """
    z = logits.detach().float()
    signed = torch.where(target.bool(), z, -z)
    return torch.nn.functional.logsigmoid(signed).mean(-1).exp()


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error per example, (B,) float32: what the regression heuristic records."""
    difference = prediction.detach().float() - target.reshape(prediction.shape).float()
    return difference.square().reshape(len(prediction), -1).mean(-1)


def margin(logits: Tensor, target: Tensor) -> Tensor:
    """Logit of the target minus the largest other logit (AUM; Pleiss et al. 2020, eq. 1)."""
    z = logits.detach().float()
    other = z.scatter(-1, target[:, None], float("-inf")).amax(-1)
    return z.gather(-1, target[:, None]).squeeze(-1) - other


def error_norm(logits: Tensor, target: Tensor) -> Tensor:
    """Euclidean norm of softmax minus one-hot (EL2N; Paul et al. 2021, section 2.2)."""
    p = logits.detach().float().softmax(-1)
    p.scatter_add_(-1, target[:, None], p.new_full((len(p), 1), -1.0))
    return p.norm(dim=-1)


def is_correct(logits: Tensor, target: Tensor) -> Tensor:
    """1.0 where the largest logit is the target's, else 0.0 (Toneva et al. 2019)."""
    return (logits.detach().argmax(-1) == target).float()


def observe(
    logits: Tensor,
    target: Tensor,
    *,
    task: str = "classification",
    peers: tuple[str, ...] = (),
    ignore_index: int = -100,
) -> dict[str, Tensor]:
    """One float32 value per example for each quantity that is recorded in an epoch.

    Args:
        logits: the model's output for the batch; shape by task, see the functions above.
        target: the target used in the loss, classes already inside [0, C).
        task: one of ``TASKS``.
        peers: the peers whose values are wanted as well (classification only).
        ignore_index: the token that does not count (task "tokens").

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
        return {"prob": token_log_prob(logits, target, ignore_index).exp()}
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
