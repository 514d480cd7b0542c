"""The elementwise parts of a step: every tensor's memory is passed over as rarely as possible.

On a CPU the operations of a step follow each other on one block that stays in the cache; on a GPU
and under the compiler they are written over all tensors at once, for `torch._foreach` or Inductor
to fuse.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from .step.rules import cautious_decay_, stochastic_round
from .triton_kernels.multi_tensor import (
    foreach_look_ahead,
    foreach_mean_,
    momentum_step,
    weight_step,
)

# Elements: three float32 blocks fit in the second cache of a core, and both threads of a pair
# still find enough in one.
BLOCK = 1 << 17
# Factors of updates by which the decay may be divided.
_TINY = 1e-30


def in_blocks(tensors: Sequence[Tensor]) -> bool:
    """Whether a step goes through these tensors block by block: on a CPU, outside the compiler."""
    return not torch.compiler.is_compiling() and all(x.is_cpu for x in tensors)


def blocks(*lists: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Cuts corresponding tensors into pieces, or takes some together, up to ``BLOCK`` elements.

    Small tensors go together because a call of torch's takes as long as the arithmetic of
    thousands of elements. A large tensor that is not contiguous is one piece.

    Args:
        lists: Of one length; tensors of one position have one shape.

    Yields:
        A list of pieces, or of whole tensors, for each of ``lists``.

    Example:
        >>> [[x.numel() for x in xs] for (xs,) in blocks([torch.zeros(2, BLOCK), *torch.zeros(3)])]
        [[131072], [131072], [1, 1, 1]]
    """
    some: list[tuple[Tensor, ...]] = []
    room = BLOCK
    for tensors in zip(*lists, strict=True):
        size = tensors[0].numel()
        if size > room and some:
            yield _columns(some)
            some, room = [], BLOCK
        if size > BLOCK and all(x.is_contiguous() for x in tensors):
            for pieces in zip(*(x.view(-1).split(BLOCK) for x in tensors), strict=True):
                yield _columns([pieces])
        else:
            some.append(tensors)
            room -= size
    if some:
        yield _columns(some)


def _columns(rows: Sequence[tuple[Tensor, ...]]) -> tuple[list[Tensor], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))


def fused_is_exact(dtype: torch.dtype) -> bool:
    """Whether torch's fused steps on a CPU round only once.

    With 16 bits they round the last few elements of a tensor after every operation, and those of a
    sharded tensor's pieces are others than those of the whole.
    """
    return dtype in (torch.float32, torch.float64)


def next_updates(
    buffers: Sequence[Tensor],
    grads: Sequence[Tensor],
    places: Sequence[Tensor] | None,
    momentum: float | Tensor,
    *,
    nesterov: bool,
    maximize: bool = False,
    rounding: torch.Generator | None = None,
) -> list[Tensor]:
    """Moves the momentum buffers on, and makes from them what is to be orthogonalized.

    ::

        B <- momentum B + (1 - momentum) G
        U  = (1 - momentum) G + momentum B   if nesterov, else B

    Args:
        buffers: Momentum buffers B.
        grads: Gradients G of the same shapes, any floating dtypes; never changed.
        places: Where each U goes, of the same shapes, any floating dtype; None: new tensors.
        momentum: Weight of the old buffer.
        nesterov: Whether to look ahead.
        maximize: Takes -G for G.
        rounding: Source of random bits for buffers that are rounded to bfloat16.

    Returns:
        The updates U; those without ``nesterov`` and ``places`` are the buffers themselves.
    """
    if places is not None and in_blocks(buffers):
        # On a CPU this is no wait for a device.
        beta = float(momentum)
        for bs, gs, us in blocks(buffers, grads, places):
            _next_updates(bs, gs, us, beta, nesterov, maximize, rounding)
        return list(places)
    gs = [x.neg() if maximize else x for x in grads]
    if places is not None and rounding is None:
        momentum_step(gs, buffers, places, momentum, nesterov=nesterov)
        return list(places)
    if rounding is not None:
        for b, x in zip(buffers, gs, strict=True):
            b.copy_(_rounded_mean(b, x, momentum, rounding))
    gs = [x.to(b.dtype) for x, b in zip(gs, buffers, strict=True)]
    if rounding is None:
        foreach_mean_(list(buffers), gs, momentum)
    updates = foreach_look_ahead(gs, list(buffers), momentum) if nesterov else list(buffers)
    if places is None:
        return updates
    torch._foreach_copy_(list(places), updates)
    return list(places)


def _next_updates(
    buffers: list[Tensor],
    grads: list[Tensor],
    places: list[Tensor],
    momentum: float,
    nesterov: bool,
    maximize: bool,
    rounding: torch.Generator | None,
) -> None:
    if maximize:
        grads = list(torch._foreach_neg(grads))
    if rounding is not None:
        for b, g in zip(buffers, grads, strict=True):
            b.copy_(_rounded_mean(b, g, momentum, rounding))
    # A cast that changes nothing is a call as well.
    pairs = zip(grads, buffers, strict=True)
    grads = [g if g.dtype == b.dtype else g.to(b.dtype) for g, b in pairs]
    if rounding is None:
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
    if not nesterov:
        torch._foreach_copy_(places, buffers)
        return
    for b, g, u in zip(buffers, grads, places, strict=True):
        if u.dtype == b.dtype:
            torch.lerp(g, b, momentum, out=u)
        else:
            u.copy_(torch.lerp(g, b, momentum))


def _rounded_mean(
    b: Tensor, g: Tensor, momentum: float | Tensor, rounding: torch.Generator
) -> Tensor:
    weight = 1 - momentum
    weight = weight.float() if isinstance(weight, Tensor) else weight
    return stochastic_round(torch.lerp(b.float(), g.float(), weight), rounding)


def apply_updates(
    params: Sequence[Tensor],
    updates: Sequence[Tensor],
    scales: Sequence[float],
    lr: float | Tensor,
    weight_decay: float,
    cautious: bool,
) -> None:
    """W <- (1 - lr weight_decay) W - lr s O in place.

    Args:
        params: Weights W.
        updates: Orthogonalized updates O of the same shapes, any floating dtype and strides.
        scales: Factor s of each.
        lr: Learning rate; a tensor is used without reading its value on the host.
        weight_decay: Decoupled weight decay per unit of ``lr``.
        cautious: Decay only where the update shrinks the weight too.
    """
    decay = lr * weight_decay if weight_decay else 0.0
    if in_blocks(params):
        # Runs of one factor and dtype, whose memory torch's fused step can pass over or not.
        keys = [
            (s, p.dtype, p.dtype == o.dtype and p.is_contiguous() and o.is_contiguous())
            for p, o, s in zip(params, updates, scales, strict=True)
        ]
        start = 0
        for (s, dtype, plain), run in groupby(keys):
            some = slice(start, start := start + len(list(run)))
            if plain and fused_is_exact(dtype) and s > _TINY and not cautious:
                _fused_apply(params[some], updates[some], lr * s, weight_decay / s)
                continue
            for pieces in blocks(params[some], updates[some]):
                for p, o in zip(*pieces, strict=True):
                    _apply_update(p, o, -lr * s, decay, cautious)
        return
    if cautious:
        for p, o in zip(params, updates, strict=True):
            cautious_decay_(p, _as_wide(o, p), decay)
    weight_step(params, updates, scales, lr, 0.0 if cautious else weight_decay)


def _as_wide(o: Tensor, p: Tensor) -> Tensor:
    """Returns o in p's dtype if that holds more, so that its scale is not rounded to o's."""
    return o.to(p.dtype) if o.dtype.itemsize < p.dtype.itemsize else o


def _fused_apply(
    params: Sequence[Tensor], updates: Sequence[Tensor], rate: float | Tensor, decay: float
) -> None:
    """W <- W - rate (O + decay W): a step of SGD, for which torch has one pass over memory.

    By its inner name: of the outer one's checks and groups a step on small tensors feels each.
    """
    torch._fused_sgd_(
        list(params),
        list(updates),
        [],
        weight_decay=decay,
        momentum=0.0,
        lr=rate,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


def _apply_update(
    p: Tensor, o: Tensor, rate: float | Tensor, decay: float | Tensor, cautious: bool
) -> None:
    # By itself: an addition of two dtypes takes longer than both passes.
    o = _as_wide(o, p)
    if cautious:
        cautious_decay_(p, o, decay)
    elif isinstance(decay, Tensor) or decay:
        p.mul_(1 - decay)
    if isinstance(rate, Tensor):
        p.add_(o * rate)
    else:
        p.add_(o, alpha=rate)
