"""One Muon step on matrices as a function of tensors; the class ``Muon`` holds the state."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from specgd_common.tensors import is_dtensor, local

from ..distributed.layout import Layout, local_like, rewrapped
from ..distributed.orthogonalize import orthogonalize_distributed
from ..elementwise import apply_updates, next_updates
from ..groups.matrix_view import MatrixView, input_dims, matrix_shape, piece_shapes
from ..optimizer import orthogonalize_all
from ..stacks import Stacks, keep_memory, orthogonalize_stacks, stack_updates
from ..triton_kernels import orthogonalize, plan
from ..triton_kernels.schedule.named import is_triple
from .batches import Batch, Kind, alike, batches_of, chunks
from .rules import neuron_normalize
from .shape_scale import AdjustLr, shape_scale

Coefficients = str | tuple[float, float, float] | Sequence[tuple[float, ...]]
MAX_BATCH_BYTES = 1 << 29
# On a CPU the allocator gives large blocks back to the system, whose pages then are cleared and
# mapped anew in the next step; this much fits in what a thread keeps.
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
        adjust_lr_fn: See :func:`torch_specgd.step.shape_scale`.
        views: How each parameter is seen as matrices, see ``MatrixView``; default "auto".
        maximize: Ascend instead of descend.
        cautious: Decay only where the update shrinks the weight too.
        second_moments: Each neuron's running mean square (NorMuon), or None: off.
        neuron_beta: Averaging coefficient of ``second_moments``.
        rounding: Source of random bits for buffers that are rounded to bfloat16.
        max_batch_bytes: Bound on the bytes of updates that exist at one time; on a CPU 64 MiB at
            most, and the results of small matrices count as well.
        compute_dtype: dtype of the iteration; None: the engine's rule.
        share_work: See :class:`Muon`.
    """
    divided = any(any(map(is_dtensor, xs)) for xs in (params, grads, momentum_buffers))
    if divided:
        # All but the orthogonalization is elementwise: it runs on this rank's pieces.
        grads = [local_like(g, p) for g, p in zip(grads, params, strict=True)]
        momentum_buffers = [local(b) for b in momentum_buffers]
    kinds = alike(params, momentum_buffers, views or ["auto"] * len(params))
    options = _engine_options(ns_coefficients, ns_steps, eps, compute_dtype)
    scale = partial(shape_scale, adjust_lr_fn)
    traced = torch.compiler.is_compiling()  # the compiler plans memory by itself
    # Nearly always: whole matrices that stay where they are.
    whole = not (traced or share_work or divided or any(k.view.split for k in kinds))
    dtypes = {
        kind: kind.dtype if traced else update_dtype(ns_coefficients, compute_dtype, kind)
        for kind in kinds
    }
    cut = partial(chunks, kinds, max_batch_bytes)
    if whole and params and params[0].device.type == "cpu":
        # The engine gives each thread a matrix. What stays in float32 has a place for its result.
        cut = partial(
            chunks,
            kinds,
            min(max_batch_bytes, CPU_BATCH_BYTES),
            torch.get_num_threads(),
            lambda kind: kind.nbytes * (1 if dtypes[kind] == torch.bfloat16 else 2),
        )
    for chunk in cut():
        batches = batches_of(chunk, dtypes)
        members, seen, scales = _spread(batches, scale)
        weights, b, g = ([xs[i] for i in members] for xs in (params, momentum_buffers, grads))
        made = Stacks([]) if traced else stack_updates(b, batches, whole)
        updates = next_updates(
            b,
            g,
            None if traced else [place for stack in made.stacks for place in stack.places],
            momentum,
            nesterov=nesterov,
            maximize=maximize,
            rounding=rounding,
        )
        if whole:
            updates = orthogonalize_stacks(made.stacks, **options)
        else:
            updates = orthogonalize_distributed(
                updates,
                [Layout.of(p) for p in weights],
                seen,
                partial(_orthogonalize_some, views=seen, options=options, scale=scale),
                share_work=share_work,
            )
        if second_moments is not None:
            for k, (i, p, v) in enumerate(zip(members, weights, seen, strict=True)):
                # Means over neurons and norms of matrices: DTensor knows what to sum over ranks.
                o = rewrapped(updates[k].to(b[k].dtype), p)
                o = neuron_normalize(o, second_moments[i], neuron_beta, input_dims(p, v))
                updates[k] = local_like(o, p)
        pieces = [local(p) for p in weights] if divided else weights
        apply_updates(pieces, updates, scales, lr, weight_decay, cautious)
        if whole:
            keep_memory(made)


def _orthogonalize_some(
    updates: list[Tensor],
    members: Sequence[int],
    *,
    views: Sequence[MatrixView],
    options: dict[str, Any],
    scale: Callable[[int, int], float],
) -> list[Tensor]:
    engine = partial(orthogonalize, **options)
    return orthogonalize_all(updates, [views[i] for i in members], engine, scale)


def _spread(
    batches: Sequence[Batch], scale: Callable[[int, int], float]
) -> tuple[list[int], list[MatrixView], list[float]]:
    """Position, view and factor of each parameter of the batches, in their order."""
    members: list[int] = []
    views: list[MatrixView] = []
    scales: list[float] = []
    for batch in batches:
        for kind, some in batch.kinds.items():
            # The pieces of a split parameter have factors of their own.
            factor = 1.0 if kind.view.split else scale(*matrix_shape(kind.shape, kind.view))
            members += some
            views += [kind.view] * len(some)
            scales += [factor] * len(some)
    return members, views, scales


def update_dtype(
    coefficients: Coefficients, compute_dtype: torch.dtype | None, kind: Kind
) -> torch.dtype:
    """bfloat16 for float32 updates that the engine would round to it first thing; else their own.

    The results are the same bits, and two passes over the memory less. A GPU's engine divides by
    the norm before it rounds, so there the updates stay as they are.
    """
    shape, dtype, device, view = kind
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


def _engine_options(
    coefficients: Coefficients, steps: int, eps: float, dtype: torch.dtype | None
) -> dict[str, Any]:
    eps = max(eps, torch.finfo(torch.float32).tiny)  # torch.optim.Muon takes zero, the engine not
    if isinstance(coefficients, str) and coefficients == "auto":
        return {"method": "auto", "eps": eps, "dtype": dtype}
    # A named schedule and a list of steps have a length of their own.
    repeat = steps if is_triple(coefficients) else None
    method = {"method": "newton_schulz", "schedule": coefficients, "steps": repeat}
    return {**method, "eps": eps, "dtype": dtype}
