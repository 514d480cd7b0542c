"""The elementwise halves of a step over lists of tensors: momentum, and weights.

One launch for all tensors on a GPU (kernels/elementwise.py). On a CPU all operations follow each
other on one block, which stays in the cache. Else, for tensors of mixed dtypes or devices and under
the compiler, which fuses by itself, `torch._foreach`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress, groupby

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .kernels.available import on_device, triton_runs, trusted
from .kernels.configuration import architecture, load_table
from .kernels.owned import Owned
from .random_bits import RandomBits, stochastic_round

# Elements of a block: three of float32 fit in the second-level cache of a core, and there are
# still several blocks in one matrix for the threads that share it.
BLOCK = 1 << 17
# Weights that torch's fused steps on a CPU round only once. With 16 bits they round the last few
# elements of a tensor after every operation, and those of a sharded tensor's pieces are others than
# those of the whole.
ROUND_ONCE = (torch.float32, torch.float64)
# Scales by which the weight decay may be divided.
_TINY = 1e-30
_ROUNDED = 1 << 24  # elements that are rounded at one time
_PLAIN = {Tensor, torch.nn.Parameter}


def momentum_step(
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    outs: Sequence[Tensor],
    momentum: float | Tensor,
    *,
    nesterov: bool = True,
    maximize: bool = False,
    rounding: RandomBits | None = None,
    fused: bool | None = None,
    owned: Owned | None = None,
) -> None:
    """Move momentum buffers on and write the matrices to orthogonalize.

    ``B <- B + (1 - momentum)(G - B)``; the operand is B, or ``G + momentum (B - G)``. The
    arithmetic has the wider dtype of G and B.

    Args:
        grads: G, any floating dtypes, shapes and strides; never changed.
        buffers: B of the same shapes, updated in place, rounded to nearest.
        outs: Where the operands go, in their own dtype; never G or B.
        momentum: In [0, 1); on a GPU a tensor is not read on the host.
        nesterov: Default True.
        maximize: Takes -G for G (default False).
        rounding: Source of random bits: buffers of bfloat16 are rounded stochastically.
        fused: Default whether `fusible` says so.
        owned: Device memory for tables of addresses; default that of the first buffer.

    Example:
        >>> g, b, out = torch.ones(2, 2), torch.zeros(2, 2), torch.empty(2, 2)
        >>> momentum_step([g], [b], [out], 0.5, nesterov=False)
        >>> out[0, 0].item()
        0.5
    """
    if not grads:
        return
    if isinstance(momentum, Tensor):
        momentum = _scalar(momentum)
    by_blocks = in_blocks(buffers)
    if fused is None:
        fused = not by_blocks and rounding is None and fusible(grads, buffers, outs)
    if fused and _triton(buffers[0]):
        from .kernels import elementwise

        with on_device(buffers[0].device):
            elementwise.momentum(grads, buffers, outs, momentum, nesterov, maximize, owned)
        return
    parts: Iterable[tuple[Sequence[Tensor], ...]] = [(grads, buffers, outs)]
    if by_blocks:
        momentum, parts = float(momentum), blocks(grads, buffers, outs)
    for gs, bs, us in parts:
        _move(list(gs), list(bs), list(us), momentum, nesterov, maximize, rounding)


def _move(
    grads: list[Tensor],
    buffers: list[Tensor],
    outs: list[Tensor],
    momentum: float | Tensor,
    nesterov: bool,
    maximize: bool,
    rounding: RandomBits | None,
) -> None:
    if maximize:
        grads = list(torch._foreach_neg(grads))
    dtypes = [torch.promote_types(g.dtype, b.dtype) for g, b in zip(grads, buffers, strict=True)]
    if rounding is not None:
        dtypes = [torch.promote_types(dtype, torch.float32) for dtype in dtypes]
    # A cast that changes nothing is a call as well.
    grads = [g if g.dtype == d else g.to(d) for g, d in zip(grads, dtypes, strict=True)]
    means = [b if b.dtype == d else b.to(d) for b, d in zip(buffers, dtypes, strict=True)]
    if isinstance(momentum, Tensor):
        # lerp wants a weight of the tensors' own dtype; a product takes one of any.
        torch._foreach_mul_(means, momentum)
        torch._foreach_add_(means, torch._foreach_mul(grads, 1 - momentum))
    else:
        torch._foreach_lerp_(means, grads, 1 - momentum)
    write_back(buffers, means, rounding)
    if not nesterov:
        torch._foreach_copy_(outs, means)
    elif isinstance(momentum, Tensor):
        ahead = list(torch._foreach_mul(means, momentum))
        torch._foreach_add_(ahead, torch._foreach_mul(grads, 1 - momentum))
        torch._foreach_copy_(outs, ahead)
    else:
        for g, mean, u in zip(grads, means, outs, strict=True):
            if u.dtype == mean.dtype:
                torch.lerp(g, mean, momentum, out=u)
            else:
                u.copy_(torch.lerp(g, mean, momentum))


def write_back(kept: Sequence[Tensor], wide: Sequence[Tensor], rounding: RandomBits | None) -> None:
    """Write what was computed in a wider dtype to where it is kept.

    Args:
        kept: Any floating dtypes, written; nothing is done where it is the wide tensor itself.
        wide: Tensors of the same shapes.
        rounding: Source of random bits, by which bfloat16 is rounded, see `stochastic_round`;
            without one everything is rounded to nearest.
    """
    pairs = [(x, y) for x, y in zip(kept, wide, strict=True) if x is not y]
    random = [rounding is not None and x.dtype == torch.bfloat16 for x, _ in pairs]
    for (x, y), at_random in zip(pairs, random, strict=True):
        if not at_random:
            x.copy_(y)
    some = list(compress(pairs, random))
    if rounding is None or not some:
        return
    for xs, ys in blocks(*zip(*some, strict=True), size=_ROUNDED):
        # One after the other in memory: a GPU feels each launch.
        flat = torch.cat([y.reshape(-1) for y in ys]).float()
        parts = stochastic_round(flat, rounding).split([y.numel() for y in ys])
        torch._foreach_copy_(xs, [part.view(x.shape) for part, x in zip(parts, xs, strict=True)])


def weight_step(
    weights: Sequence[Tensor],
    directions: Sequence[Tensor],
    scales: Sequence[float],
    lr: float | Tensor,
    weight_decay: float = 0.0,
    *,
    cautious: bool = False,
    fused: bool | None = None,
    owned: Owned | None = None,
) -> None:
    """Set ``W <- (1 - lr weight_decay) W - lr s O`` for all weights.

    Args:
        weights: W, updated in place.
        directions: O of the same shapes, any floating dtype and strides.
        scales: s of each.
        lr: Learning rate; on a GPU a tensor is not read on the host.
        weight_decay: Decoupled, per unit of `lr`.
        cautious: Decay only entries that the direction shrinks too (arXiv 2510.12402; default
            False).
        fused: Default whether `fusible` says so.
        owned: Device memory for tables of addresses; default that of the first weight.

    Example:
        >>> w = torch.ones(2, 2)
        >>> weight_step([w], [torch.ones(2, 2)], [2.0], 0.25, 0.5)
        >>> w[0, 0].item()
        0.375
    """
    if not weights:
        return
    if isinstance(lr, Tensor):
        lr = _scalar(lr)
    by_blocks = in_blocks(weights)
    if fused is None:
        fused = not by_blocks and not cautious and fusible(weights, directions)
    if fused and _triton(weights[0]):
        from .kernels import elementwise

        with on_device(weights[0].device):
            elementwise.update(weights, directions, scales, lr, weight_decay, owned)
        increment_version(weights)
        return
    if not by_blocks:
        _descend(list(weights), list(directions), scales, lr, weight_decay, cautious)
        return
    lr = float(lr)
    keys = [
        (s, not cautious and s > _TINY and _one_pass(w, o))
        for w, o, s in zip(weights, directions, scales, strict=True)
    ]
    start = 0
    for (s, one_pass), run in groupby(keys):
        some_of = slice(start, start := start + len(list(run)))
        if one_pass:
            _descend_in_one_pass(weights[some_of], directions[some_of], lr * s, weight_decay / s)
            continue
        for ws, os in blocks(weights[some_of], directions[some_of]):
            _descend(ws, os, [s] * len(ws), lr, weight_decay, cautious)


def _descend(
    weights: list[Tensor],
    directions: list[Tensor],
    scales: Sequence[float],
    lr: float | Tensor,
    weight_decay: float,
    cautious: bool,
) -> None:
    # A scale is not to be rounded to a narrower direction's dtype.
    wide = [
        o.to(w.dtype) if o.dtype.itemsize < w.dtype.itemsize else o
        for w, o in zip(weights, directions, strict=True)
    ]
    decay = lr * weight_decay if weight_decay else 0.0
    if cautious:
        for w, o in zip(weights, wide, strict=True):
            w.sub_(w * (o * w > 0) * decay)
    elif weight_decay:
        torch._foreach_mul_(weights, 1 - decay)
    if isinstance(lr, Tensor):
        # A multiplication by a tensor, where alpha= would read the tensor's value on the host.
        torch._foreach_sub_(weights, torch._foreach_mul(torch._foreach_mul(wide, list(scales)), lr))
        return
    for w, o, scale in zip(weights, wide, scales, strict=True):
        w.add_(o, alpha=-lr * scale)


def _one_pass(w: Tensor, o: Tensor) -> bool:
    alike = w.dtype == o.dtype and w.dtype in ROUND_ONCE
    return alike and w.is_contiguous() and o.is_contiguous()


def _descend_in_one_pass(
    weights: Sequence[Tensor], directions: Sequence[Tensor], rate: float, decay: float
) -> None:
    """W <- W - rate (O + decay W): a step of SGD, for which torch has one pass over memory.

    By its inner name: of the outer one's checks and groups a step on small tensors feels each.
    """
    torch._fused_sgd_(
        list(weights),
        list(directions),
        [],
        weight_decay=decay,
        momentum=0.0,
        lr=rate,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )
    # Or autograd would go back through weights that are others by then, and say nothing.
    increment_version(weights)


def in_blocks(tensors: Sequence[Tensor]) -> bool:
    """Say whether a step goes through tensors block by block: on a CPU, outside the compiler."""
    return not torch.compiler.is_compiling() and all(x.is_cpu for x in tensors)


def blocks(*lists: Sequence[Tensor], size: int = BLOCK) -> Iterator[tuple[list[Tensor], ...]]:
    """Cut corresponding tensors into pieces, or take some together, up to `size` elements.

    Small tensors go together because a call of torch's takes as long as the arithmetic of
    thousands of elements. A large tensor that is not contiguous is one piece.

    Args:
        lists: Of one length; tensors of one position have one shape.
        size: Default that of a step on a CPU.

    Yields:
        A list of pieces, or of whole tensors, for each of `lists`.

    Example:
        >>> [[x.numel() for x in xs] for (xs,) in blocks([torch.zeros(2, BLOCK), *torch.zeros(3)])]
        [[131072], [131072], [1, 1, 1]]
    """
    some: list[tuple[Tensor, ...]] = []
    room = size
    for tensors in zip(*lists, strict=True):
        count = tensors[0].numel()
        if count > room and some:
            yield tuple(map(list, zip(*some, strict=True)))
            some, room = [], size
        if count > size and all(x.is_contiguous() for x in tensors):
            for pieces in zip(*(x.view(-1).split(size) for x in tensors), strict=True):
                yield tuple([x] for x in pieces)
        else:
            some.append(tensors)
            room -= count
    if some:
        yield tuple(map(list, zip(*some, strict=True)))


def _scalar(value: Tensor) -> float | Tensor:
    """Return a one-element tensor without dimensions, and as a number if it is on a CPU.

    An operation on tensors of two devices takes a tensor without dimensions, and no other.
    """
    if value.device.type == "cpu" and not torch.compiler.is_compiling():
        return float(value)
    return value.reshape(())


def _triton(like: Tensor) -> bool:
    """Say whether kernels may be launched; on a CPU only tests ask, for the interpreter."""
    device = like.device
    if device.type != "cuda":
        return True
    if not triton_runs(device):
        return False
    config = load_table(architecture(device))["elementwise"]
    return trusted(device, {"elementwise": {**config, "dtype": like.dtype}})


def fusible(*lists: Sequence[Tensor]) -> bool:
    """Say whether one launch can take these: one GPU, one dtype a list, a matrix view of each."""
    device = lists[0][0].device
    if device.type != "cuda" or torch.compiler.is_compiling():
        return False
    alike = all(
        set(map(type, tensors)) <= _PLAIN
        and all(t.device == device and t.dtype == tensors[0].dtype for t in tensors)
        and all(t.is_contiguous() or t.ndim == 2 for t in tensors)
        for tensors in lists
    )
    return alike and triton_runs(device)
