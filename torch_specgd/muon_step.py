"""One Muon step on matrices as a function of tensors; the class ``Muon`` holds the state."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .distributed.layout import Layout, is_dtensor, local, local_like, rewrapped
from .distributed.orthogonalize import orthogonalize_distributed
from .elementwise import apply_updates, next_updates
from .learning_rate import AdjustLr, shape_scale
from .optimizer import orthogonalize_all
from .routing import MatrixView, input_dims, matrix_shape, piece_shapes
from .stacks import in_order, keep_memory, orthogonalize_stacks, stack_updates
from .triton_kernels import orthogonalize, plan
from .triton_kernels.schedules import is_triple
from .update_rules import neuron_normalize

Coefficients = str | tuple[float, float, float] | Sequence[tuple[float, ...]]
MAX_BATCH_BYTES = 1 << 29
# On a CPU the allocator gives blocks above 32 MiB back to the system, whose pages then are cleared
# and mapped anew in the next step; the updates of this much float32 fit.
CPU_BATCH_BYTES = 1 << 26


def muon(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    lr: float | Tensor,
    weight_decay: float,
    momentum: float | Tensor,
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
    kinds = [MatrixView.of(v) for v in views or ["auto"] * len(params)]
    # All but the orthogonalization is elementwise: it runs on this rank's pieces.
    grads = [local_like(g, p) for g, p in zip(grads, params, strict=True)]
    momentum_buffers = [local(b) for b in momentum_buffers]
    engine = _engine(ns_coefficients, ns_steps, eps, compute_dtype)
    dtype_of = partial(update_dtype, ns_coefficients, compute_dtype)
    scale = partial(shape_scale, adjust_lr_fn)
    traced = torch.compiler.is_compiling()  # the compiler plans memory by itself
    # Nearly always: whole matrices that stay where they are.
    whole = not traced and not share_work and all(v.split is None for v in kinds)
    whole = whole and not any(is_dtensor(p) for p in params)
    together = 1
    if whole and params and params[0].device.type == "cpu":
        max_batch_bytes = min(max_batch_bytes, CPU_BATCH_BYTES)
        together = torch.get_num_threads()  # the engine gives each thread a matrix
    for chunk in chunks(params, max_batch_bytes, together):
        weights, b, g = ([xs[i] for i in chunk] for xs in (params, momentum_buffers, grads))
        seen = [kinds[i] for i in chunk]
        stacks = [] if traced else stack_updates(b, [p.shape for p in weights], seen, dtype_of)
        updates = next_updates(
            b,
            g,
            None if traced else in_order(stacks),
            momentum,
            nesterov=nesterov,
            maximize=maximize,
            rounding=rounding,
        )
        if whole:
            updates = orthogonalize_stacks(stacks, engine)
        else:
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
                o = rewrapped(updates[k].to(b[k].dtype), p)
                o = neuron_normalize(o, second_moments[i], neuron_beta, input_dims(p, v))
                updates[k] = local_like(o, p)
        scales = shape_scales(weights, seen, scale)
        apply_updates([local(p) for p in weights], updates, scales, lr, weight_decay, cautious)
        if whole:
            keep_memory(stacks)


def _orthogonalize_some(
    updates: list[Tensor],
    members: Sequence[int],
    *,
    views: Sequence[MatrixView],
    engine: Callable[[Tensor], Tensor],
    scale: Callable[[int, int], float],
) -> list[Tensor]:
    return orthogonalize_all(updates, [views[i] for i in members], engine, scale)


def shape_scales(
    params: Sequence[Tensor], views: Sequence[MatrixView], scale: Callable[[int, int], float]
) -> list[float]:
    """The factor of each parameter's shape; 1 for a split one, whose pieces had their own."""
    known: dict[tuple[object, ...], float] = {}
    result = []
    for p, view in zip(params, views, strict=True):
        key = (tuple(p.shape), view)
        if key not in known:
            known[key] = scale(*matrix_shape(p, view)) if view.split is None else 1.0
        result.append(known[key])
    return result


def update_dtype(
    coefficients: Coefficients,
    compute_dtype: torch.dtype | None,
    shape: torch.Size,
    dtype: torch.dtype,
    device: torch.device,
    view: MatrixView,
) -> torch.dtype:
    """bfloat16 for float32 updates that the engine would round to it first thing; else ``dtype``.

    The results are the same bits, and two passes over the memory less. A GPU's engine divides by
    the norm before it rounds, so there the updates stay as they are.
    """
    if device.type != "cpu" or dtype != torch.float32:
        return dtype
    if compute_dtype is None and is_triple(coefficients):
        compute_dtype = torch.bfloat16
    if compute_dtype is not None:
        return torch.bfloat16 if compute_dtype == torch.bfloat16 else dtype
    auto = isinstance(coefficients, str) and coefficients == "auto"
    options: dict[str, Any] = {} if auto else {"schedule": coefficients, "form": "direct"}
    rounded = {
        plan(piece, 1, dtype, device, **options).dtype == torch.bfloat16
        for piece in piece_shapes(shape, view)
        if 0 not in piece
    }
    return torch.bfloat16 if rounded == {True} else dtype


def chunks(params: Sequence[Tensor], max_bytes: int, together: int = 1) -> list[list[int]]:
    """Positions of the parameters, like shapes together, cut where ``max_bytes`` is passed.

    Args:
        params: The parameters.
        max_bytes: Of the parameters in a chunk; a larger parameter has a chunk to itself.
        together: Like shapes are cut after a multiple of so many, as far as ``max_bytes`` lets.

    Example:
        >>> a, b = torch.zeros(2, 2), torch.zeros(3)
        >>> chunks([a, b, a], max_bytes=32)
        [[0, 2], [1]]
        >>> chunks([a, a, a, a], max_bytes=48, together=2)
        [[0, 1], [2, 3]]
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, p in enumerate(params):
        alike.setdefault(tuple(p.shape), []).append(i)
    result: list[list[int]] = []
    room = -1
    for members in alike.values():
        size = params[members[0]].numel() * params[members[0]].element_size()
        count = max(1, min(together, max_bytes // max(size, 1)))
        for start in range(0, len(members), count):
            piece = members[start : start + count]
            if size * len(piece) > room:
                result.append([])
                room = max_bytes
            result[-1] += piece
            room -= size * len(piece)
    return result


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
