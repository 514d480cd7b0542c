"""The elementwise halves of an optimizer step over lists of tensors: fused where a GPU has it.

One launch for all tensors on a GPU (kernels/elementwise.py), torch._foreach elsewhere, for
tensors of mixed dtypes or devices, and under the compiler, which fuses by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["momentum_step", "weight_step"]


def momentum_step(
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    outs: Sequence[Tensor],
    momentum: float | Tensor,
    *,
    nesterov: bool = True,
    fused: bool | None = None,
) -> None:
    """Move momentum buffers on and write the matrices to orthogonalize.

    ``B <- B + (1 - momentum)(G - B)``; the operand is B, or ``G + momentum (B - G)``.

    Args:
        grads: G, any shapes and strides; never changed.
        buffers: B of the same shapes, updated in place, rounded to nearest.
        outs: Where the operands go, in their own dtype; never G or B.
        momentum: In [0, 1); a tensor is not read on the host.
        nesterov: Default True.
        fused: Default whether `fusible` says so.

    Example:
        >>> g, b, out = torch.ones(2, 2), torch.zeros(2, 2), torch.empty(2, 2)
        >>> momentum_step([g], [b], [out], 0.5, nesterov=False)
        >>> out[0, 0].item()
        0.5
    """
    if not grads:
        return
    if fusible(grads, buffers, outs) if fused is None else fused:
        from .kernels import elementwise

        some = _not_empty(grads)
        if some:
            g, b, out = (_matrices(x, some) for x in (grads, buffers, outs))
            elementwise.momentum(g, b, out, momentum, nesterov)
        return
    like = [g.to(b.dtype) for g, b in zip(grads, buffers, strict=True)]
    foreach_mean_(list(buffers), like, momentum)
    ahead = foreach_look_ahead(like, list(buffers), momentum) if nesterov else list(buffers)
    torch._foreach_copy_(list(outs), ahead)


def foreach_mean_(buffers: list[Tensor], grads: list[Tensor], momentum: float | Tensor) -> None:
    """B <- B + (1 - momentum)(G - B) in place."""
    if not buffers:
        return
    if not isinstance(momentum, Tensor):
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        return
    # lerp wants a weight of the tensors' own dtype; a product takes one of any.
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, torch._foreach_mul(grads, 1 - momentum))


def foreach_look_ahead(
    grads: list[Tensor], buffers: list[Tensor], momentum: float | Tensor
) -> list[Tensor]:
    """Return G + momentum (B - G)."""
    if not buffers:
        return []
    if not isinstance(momentum, Tensor):
        return list(torch._foreach_lerp(grads, buffers, momentum))
    ahead = torch._foreach_mul(buffers, momentum)
    torch._foreach_add_(ahead, torch._foreach_mul(grads, 1 - momentum))
    return list(ahead)


def weight_step(
    weights: Sequence[Tensor],
    directions: Sequence[Tensor],
    scales: Sequence[float],
    lr: float | Tensor,
    weight_decay: float = 0.0,
    *,
    fused: bool | None = None,
) -> None:
    """Set ``W <- (1 - lr weight_decay) W - lr s O`` for all weights.

    Args:
        weights: W, updated in place.
        directions: O of the same shapes, any floating dtype and strides.
        scales: s of each.
        lr: Learning rate; a tensor is not read on the host.
        weight_decay: Decoupled, per unit of `lr`.
        fused: Default whether `fusible` says so.

    Example:
        >>> w = torch.ones(2, 2)
        >>> weight_step([w], [torch.ones(2, 2)], [2.0], 0.25, 0.5)
        >>> w[0, 0].item()
        0.375
    """
    if not weights:
        return
    device = weights[0].device
    if fusible(weights, directions) if fused is None else fused:
        from .kernels import elementwise

        some = _not_empty(weights)
        if some:
            rate = _kept_scales(tuple(scales[i] for i in some), device) * lr
            decay = torch.ones_like(rate) - lr * weight_decay
            elementwise.update(_matrices(weights, some), _matrices(directions, some), decay, rate)
        return
    kept = list(weights)
    wide = [
        o.to(w.dtype) if o.dtype.itemsize < w.dtype.itemsize else o
        for w, o in zip(weights, directions, strict=True)
    ]
    if weight_decay:
        torch._foreach_mul_(kept, 1 - lr * weight_decay)
    if isinstance(lr, Tensor):
        # A multiplication by a tensor, where alpha= would read the tensor's value on the host.
        torch._foreach_sub_(kept, torch._foreach_mul(torch._foreach_mul(wide, list(scales)), lr))
        return
    for w, o, scale in zip(kept, wide, scales, strict=True):
        w.add_(o, alpha=-lr * scale)


def fusible(*lists: Sequence[Tensor]) -> bool:
    """Whether one launch can take these: one GPU, one dtype a list, a matrix view of each."""
    device = lists[0][0].device
    return (
        device.type == "cuda"
        and not torch.compiler.is_compiling()
        and all(
            type(t) in (Tensor, torch.nn.Parameter)
            and t.device == device
            and t.dtype == tensors[0].dtype
            and (t.ndim == 2 or t.is_contiguous())
            for tensors in lists
            for t in tensors
        )
    )


def _not_empty(tensors: Sequence[Tensor]) -> list[int]:
    """Positions of tensors with elements: a rank's piece of a sharded one may have none."""
    return [i for i, t in enumerate(tensors) if t.numel()]


def _matrices(tensors: Sequence[Tensor], some: Sequence[int]) -> list[Tensor]:
    return [t if t.ndim == 2 else t.reshape(1, -1) for t in (tensors[i] for i in some)]


@lru_cache(maxsize=64)
def _kept_scales(scales: tuple[float, ...], device: torch.device) -> Tensor:
    """Return the scales on the device; kept, because a graph capture may not copy to it."""
    return torch.tensor(scales, dtype=torch.float32).to(device)
