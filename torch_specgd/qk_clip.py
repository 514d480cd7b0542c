"""QK-clip: rescales query and key weights when attention logits grow too large."""

import math

import torch
from torch import Tensor


@torch.no_grad()
def qk_clip_(q: Tensor, k: Tensor, max_logits: Tensor, *, tau: float = 100.0) -> Tensor:
    """Scale each attention head so that its largest logit is at most ``tau``, in place.

        gamma_h = min(1, tau / S_h)

    With as many key heads as query heads both weights take sqrt(gamma_h). Where query heads share
    key heads (grouped-query attention) only the queries are scaled, by gamma_h: another factor on
    a shared key would change the neighbours' logits.

    Call it after ``optimizer.step()``, with the largest absolute logit that each head showed in
    the forward pass. Rotary embeddings do not change the result; biases of q and k, if any, are
    passed as further weights of shape (heads * head_dim, 1).

    Args:
        q: (heads * head_dim, in), the query projection's weight, changed in place.
        k: (kv_heads * head_dim, in), the key projection's weight, changed in place.
        max_logits: (heads,), S_h: each head's largest absolute logit, as it enters the softmax.
        tau: The limit (default 100, as in the source).

    Returns:
        gamma, (heads,).

    Raises:
        ValueError: If shapes do not fit, a logit is not finite, or ``tau`` is not above zero.

    Source:
        Kimi K2, arXiv 2507.20534 (MuonClip).

    Example:
        >>> q, k = torch.eye(4), torch.eye(4)
        >>> qk_clip_(q, k, torch.tensor([50.0, 400.0]), tau=100.0)
        tensor([1.0000, 0.2500])
        >>> q.diag()
        tensor([1.0000, 1.0000, 0.5000, 0.5000])
    """
    heads = max_logits.numel()
    if not (tau > 0 and math.isfinite(tau)):
        raise ValueError(f"tau must be above 0 and finite, but is {tau}")
    if q.shape[0] % heads:
        raise ValueError(f"q has {q.shape[0]} rows, which is no multiple of {heads} heads")
    width = q.shape[0] // heads
    if k.shape[0] % width or heads % (k.shape[0] // width):
        raise ValueError(f"k has {k.shape[0]} rows, which do not fit {heads} heads of {width}")
    if not bool(max_logits.isfinite().all()):
        raise ValueError(f"max_logits are not finite: {max_logits.tolist()}")
    gamma = (tau / max_logits.clamp(min=tau)).to(q.dtype)
    shared = k.shape[0] < q.shape[0]
    factor = (gamma if shared else gamma.sqrt()).repeat_interleave(width)
    q.mul_(factor.view(-1, *[1] * (q.ndim - 1)))
    if not shared:
        k.mul_(factor.view(-1, *[1] * (k.ndim - 1)))
    return gamma
