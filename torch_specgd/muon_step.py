"""One Muon step on matrices as a function of tensors; the class ``Muon`` holds the state."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .distributed.layout import Layout, local, local_like, rewrapped
from .distributed.orthogonalize import orthogonalize_distributed
from .learning_rate import AdjustLr, shape_scale
from .optimizer import orthogonalize_all
from .routing import MatrixView, as_matrices, input_dims, matrix_shape
from .triton_kernels import orthogonalize
from .triton_kernels.schedules import is_triple
from .update_rules import cautious_decay_, neuron_normalize, stochastic_round

Coefficients = str | tuple[float, float, float] | Sequence[tuple[float, ...]]
MAX_BATCH_BYTES = 1 << 29


def muon(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    lr: float | Tensor,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    ns_coefficients: Coefficients,
    eps: float,
    ns_steps: int,
    adjust_lr_fn: AdjustLr,
    views: Sequence[str | MatrixView] | None = None,
    maximize: bool = False,
    cautious: bool = False,
    second_moments: list[Tensor] | None = None,
    neuron_beta: float = 0.95,
    rounding: torch.Generator | None = None,
    max_batch_bytes: int = MAX_BATCH_BYTES,
    compute_dtype: torch.dtype | None = None,
    share_work: bool = False,
) -> None:
    """One Muon step on matrices, in place; the equation stands at :class:`Muon`.

    Args:
        params: Weights W of two or more dimensions, changed in place; plain tensors or DTensors,
            with gradients and buffers of the same kind.
        grads: Gradients G of the same shapes; never changed.
        momentum_buffers: Buffers B of the same shapes, changed in place.
        lr: Learning rate, a float or a one-element tensor (used without a device sync).
        weight_decay: Decoupled weight decay per unit of ``lr``.
        momentum: Weight of the old buffer.
        nesterov: Whether to look ahead.
        ns_coefficients: See :class:`Muon`.
        eps: Lower bound on the norm that a matrix is divided by.
        ns_steps: How often a single coefficient triple is applied.
        adjust_lr_fn: See :func:`torch_specgd.learning_rate.shape_scale`.
        views: How each parameter is seen as matrices, see ``MatrixView``; default "auto".
        maximize: Ascend instead of descend.
        cautious: Decay only where the update shrinks the weight too.
        second_moments: Each neuron's running mean square (NorMuon), or None: off.
        neuron_beta: Averaging coefficient of ``second_moments``.
        rounding: Source of random bits for buffers that are rounded to bfloat16.
        max_batch_bytes: Bound on the bytes of updates that exist at one time.
        compute_dtype: dtype of the iteration; None: the engine's rule.
        share_work: See :class:`Muon`.
    """
    views = ["auto"] * len(params) if views is None else views
    # All but the orthogonalization is elementwise: it runs on this rank's pieces.
    grads = [local_like(g, p) for g, p in zip(grads, params, strict=True)]
    momentum_buffers = [local(b) for b in momentum_buffers]
    if maximize:
        grads = list(torch._foreach_neg(grads)) if grads else grads
    grads = update_momentum(momentum_buffers, grads, momentum, rounding)
    engine = _engine(ns_coefficients, ns_steps, eps, compute_dtype)
    scale = partial(shape_scale, adjust_lr_fn)
    for chunk in chunks(params, max_batch_bytes):
        weights, b = [params[i] for i in chunk], [momentum_buffers[i] for i in chunk]
        seen = [MatrixView.of(views[i]) for i in chunk]
        g = [grads[i].to(x.dtype) for i, x in zip(chunk, b, strict=True)]
        updates = look_ahead(g, b, momentum, seen) if nesterov else b
        updates = orthogonalize_distributed(
            updates,
            [Layout.of(p) for p in weights],
            seen,
            partial(_orthogonalize_some, views=seen, engine=engine, scale=scale),
            share_work=share_work,
        )
        if second_moments is not None:
            for k, (i, p, v) in enumerate(zip(chunk, weights, seen, strict=True)):
                # Means over neurons and norms of matrices: DTensor knows what to sum over ranks.
                o = rewrapped(updates[k], p)
                o = neuron_normalize(o, second_moments[i], neuron_beta, input_dims(p, v))
                updates[k] = local_like(o, p)
        # A split parameter's pieces have been scaled one by one.
        scales = [
            scale(*matrix_shape(p, v)) if v.split is None else 1.0
            for p, v in zip(weights, seen, strict=True)
        ]
        _apply([local(p) for p in weights], updates, scales, lr, weight_decay, cautious)


def _orthogonalize_some(
    updates: list[Tensor],
    members: Sequence[int],
    *,
    views: Sequence[MatrixView],
    engine: Callable[[Tensor], Tensor],
    scale: Callable[[int, int], float],
) -> list[Tensor]:
    return orthogonalize_all(updates, [views[i] for i in members], engine, scale)


def update_momentum(
    buffers: list[Tensor], grads: list[Tensor], momentum: float, rounding: torch.Generator | None
) -> list[Tensor]:
    """B <- momentum B + (1 - momentum) G in place; returns the gradients, never changed."""
    if rounding is not None:
        for b, g in zip(buffers, grads, strict=True):
            b.copy_(stochastic_round(torch.lerp(b.float(), g.float(), 1 - momentum), rounding))
    elif buffers:
        matched = [g.to(b.dtype) for g, b in zip(grads, buffers, strict=True)]
        torch._foreach_lerp_(buffers, matched, 1 - momentum)
    return grads


def look_ahead(
    grads: list[Tensor], buffers: list[Tensor], momentum: float, views: Sequence[MatrixView]
) -> Sequence[Tensor]:
    """(1 - momentum) G + momentum B; all matrices of one shape lie side by side in one tensor.

    ``orthogonalize_all`` then takes that tensor as its batch, where fresh tensors would be copied
    together once more, and one large allocation replaces many small ones.
    """
    if torch.compiler.is_compiling():  # the compiler plans memory by itself
        return torch._foreach_lerp(grads, buffers, momentum)
    batches: dict[tuple[object, ...], list[int]] = {}
    for i, (b, view) in enumerate(zip(buffers, views, strict=True)):
        shape = as_matrices(b, view).shape if view.split is None else (i,)
        batches.setdefault((*shape[-2:], b.dtype, b.device), []).append(i)
    updates = list(buffers)
    for members in batches.values():
        memory = buffers[members[0]].new_empty(sum(buffers[i].numel() for i in members))
        sizes = [buffers[i].numel() for i in members]
        for i, place in zip(members, memory.split(sizes), strict=True):
            updates[i] = place.view(buffers[i].shape)
            torch.lerp(grads[i], buffers[i], momentum, out=updates[i])
    return updates


def chunks(params: Sequence[Tensor], max_bytes: int) -> list[list[int]]:
    """Positions of the parameters, like shapes together, cut where ``max_bytes`` is passed.

    Example:
        >>> a, b = torch.zeros(2, 2), torch.zeros(3)
        >>> chunks([a, b, a], max_bytes=32)
        [[0, 2], [1]]
    """
    first: dict[tuple[int, ...], int] = {}
    for i, p in enumerate(params):
        first.setdefault(tuple(p.shape), i)
    order = sorted(range(len(params)), key=lambda i: (first[tuple(params[i].shape)], i))
    result: list[list[int]] = []
    room = -1
    for i in order:
        size = params[i].numel() * params[i].element_size()
        if size > room:
            result.append([])
            room = max_bytes
        result[-1].append(i)
        room -= size
    return result


def _apply(
    params: list[Tensor],
    updates: Sequence[Tensor],
    scales: list[float],
    lr: float | Tensor,
    weight_decay: float,
    cautious: bool,
) -> None:
    if cautious:
        for p, o in zip(params, updates, strict=True):
            cautious_decay_(p, o, lr * weight_decay)
    elif weight_decay:
        torch._foreach_mul_(params, 1 - lr * weight_decay)
    if isinstance(lr, Tensor):
        # A multiplication by a tensor, where alpha= would read the tensor's value on the host.
        scaled = torch._foreach_mul(torch._foreach_mul(list(updates), scales), lr)
        torch._foreach_sub_(params, scaled)
        return
    for p, o, s in zip(params, updates, scales, strict=True):
        p.add_(o, alpha=-lr * s)


def _engine(
    coefficients: Coefficients, steps: int, eps: float, dtype: torch.dtype | None
) -> Callable[[Tensor], Tensor]:
    if isinstance(coefficients, str) and coefficients == "auto":
        return partial(orthogonalize, method="auto", eps=eps, dtype=dtype)
    # A named schedule and a list of steps have a length of their own.
    repeat = steps if is_triple(coefficients) else None
    return partial(
        orthogonalize,
        method="newton_schulz",
        schedule=coefficients,
        steps=repeat,
        eps=eps,
        dtype=dtype,
    )
