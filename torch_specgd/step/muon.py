"""One Muon step on matrices as a function of tensors; the class ``Muon`` holds the state."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from specgd_common.tensors import is_dtensor, local

from ..distributed.layout import Layout, least_divided, local_like
from ..groups.matrix_view import MatrixView
from ..triton_kernels import momentum_step, orthogonalize_together, weight_step
from ..triton_kernels.kernels.owned import Owned
from ..triton_kernels.random_bits import RandomBits
from ..triton_kernels.schedule.named import Coefficients, is_triple
from .batches import Room, arrange
from .light import LightBuffer
from .pieces import orthogonalize_all
from .rules import AdjustLr, named_scale, shape_scale
from .stages import After, Before, second_moment

MAX_BATCH_BYTES = 1 << 29


def muon(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: Sequence[Any],
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
    stages: tuple[Sequence[Before], Sequence[After]] = ((), ()),
    rounding: RandomBits | None = None,
    max_batch_bytes: int = MAX_BATCH_BYTES,
    compute_dtype: torch.dtype | None = None,
    share_work: bool = False,
    owner: object = None,
    clock: Callable[[torch.device], None] | None = None,
) -> None:
    """Take one Muon step on matrices, in place; the equation stands at :class:`Muon`.

    Args:
        params: Weights W of two or more dimensions, changed in place; plain tensors or DTensors,
            with gradients and buffers of the same kind.
        grads: Gradients G of the same shapes; never changed.
        momentum_buffers: Buffers B of the same shapes, changed in place; tensors, or what holds
            them in eight or four bits.
        lr: Learning rate, a float or a one-element tensor (used without a device sync).
        weight_decay: Decoupled weight decay per unit of ``lr``.
        momentum: Weight of the old buffer.
        nesterov: Whether to look ahead.
        ns_coefficients: See :class:`Muon`.
        eps: Lower bound on the norm that a matrix is divided by.
        ns_steps: How often a single coefficient triple is applied.
        adjust_lr_fn: See :func:`torch_specgd.step.rules.shape_scale`.
        views: How each parameter is seen as matrices, see ``MatrixView``; default "auto".
        maximize: Ascend instead of descend.
        cautious: Decay only where the update shrinks the weight too.
        second_moments: Each neuron's running mean square (NorMuon), or None: off.
        neuron_beta: Averaging coefficient of ``second_moments``.
        stages: What changes updates before, and polar factors after the orthogonalization, see
            ``step.stages``.
        rounding: Source of random bits for buffers that are rounded to bfloat16.
        max_batch_bytes: Bound on the bytes of updates that exist at one time on a rank; on a CPU
            64 MiB at most (``step.batches``), with the results of small matrices included.
        compute_dtype: dtype of the iteration; None: the engine's rule.
        share_work: See :class:`Muon`.
        owner: Whom a GPU's memory for updates and tables belongs to; None: the first parameter.
        clock: Called with the device before and after each orthogonalization, unless compiled.
    """
    if not params:
        return
    divided = any(any(map(is_dtensor, xs)) for xs in (params, grads, momentum_buffers))
    if divided:
        # All but the orthogonalization is elementwise: it runs on this rank's pieces.
        grads = [local_like(g, p) for g, p in zip(grads, params, strict=True)]
        momentum_buffers = [local(b) for b in momentum_buffers]
    views = views or ["auto"] * len(params)
    if second_moments is not None:
        after = second_moment(params, second_moments, neuron_beta, views, "neuron")
        stages = stages[0], [*stages[1], after]
    # In most runs every matrix is whole and stays on its rank. Then the engine runs as many
    # matrices at a time as there are threads.
    traced = torch.compiler.is_compiling()
    split = any(not isinstance(v, str) and v.split is not None for v in views)
    whole = not (divided or share_work or traced or split)
    together = torch.get_num_threads() if whole else 1
    if divided:
        # A rank holds a piece of each update. With as many matrices at a time as there are ranks,
        # each rank has a whole one to orthogonalize.
        cuts, together = least_divided(params)
        max_batch_bytes *= cuts
    options = engine_options(ns_coefficients, ns_steps, eps, compute_dtype)
    # A preconditioner wants the digits that the engine would round away first.
    arithmetic = options.get("schedule"), torch.float32 if stages[0] else compute_dtype
    scale = partial(shape_scale if traced or callable(adjust_lr_fn) else named_scale, adjust_lr_fn)
    for some in arrange(params, momentum_buffers, views, arithmetic, max_batch_bytes, together):
        lists = params, grads, momentum_buffers
        weights, gs, kept = ([xs[i] for i in some.members] for xs in lists)
        device = kept[0].device
        on_gpu = device.type != "cpu" and not traced
        owned = Owned.by(params[0] if owner is None else owner) if on_gpu else None
        room = Room.of(some, owned) if whole else Room.scattered(some, kept)
        _move_on(
            gs, kept, room.updates, momentum, nesterov=nesterov, maximize=maximize,
            rounding=rounding, owned=owned,
        )  # fmt: skip
        for before in stages[0]:
            before(some.members, room.updates, gs)
        if clock is not None and not traced:
            clock(device)
        updates = room.factors
        if whole:
            orthogonalize_together(room.stacks, room.results, **options)
        else:
            spread = [Layout.of(p) for p in weights] if divided or share_work else []
            updates = orthogonalize_all(
                room.updates, some.views, options, scale, spread, share_work
            )
        if clock is not None and not traced:
            clock(device)
        for after in stages[1]:
            updates = after(some.members, updates)
        pieces = [local(p) for p in weights] if divided else weights
        scales = [1.0 if shape is None else scale(*shape) for shape in some.logical]
        weight_step(pieces, updates, scales, lr, weight_decay, cautious=cautious, owned=owned)
        room.give_back()


def _move_on(
    grads: Sequence[Tensor], buffers: Sequence[Any], outs: Sequence[Tensor], *args: Any, **how: Any
) -> None:
    """Take a `momentum_step`; buffers of few bits are read before it, and written after it."""
    wide = [b.read() if isinstance(b, LightBuffer) else b for b in buffers]
    momentum_step(grads, wide, outs, *args, **how)
    for x, b in zip(wide, buffers, strict=True):
        if isinstance(b, LightBuffer):
            b.write(x)


def engine_options(
    coefficients: Coefficients, steps: int, eps: float, dtype: torch.dtype | None
) -> dict[str, Any]:
    """Say to the engine what Muon's arguments mean."""
    eps = max(eps, torch.finfo(torch.float32).tiny)  # torch.optim.Muon takes zero, the engine not
    options: dict[str, Any] = {"eps": eps, "dtype": dtype}
    if isinstance(coefficients, str) and coefficients == "auto":
        return options
    options["method"] = "newton_schulz"
    if is_triple(coefficients):
        # A named schedule and a list of steps have a length of their own.
        return {**options, "schedule": tuple(coefficients), "steps": steps}
    # Lists are no keys for caches.
    if isinstance(coefficients, Sequence) and not isinstance(coefficients, str):
        coefficients = tuple(tuple(step) for step in coefficients)  # type: ignore[arg-type]
    return {**options, "schedule": coefficients}
