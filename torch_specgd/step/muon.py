"""One Muon step on matrices as a function of tensors; the class ``Muon`` holds the state."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specgd_common.tensors import is_dtensor, local

from ..distributed.layout import Layout, local_like, rewrapped
from ..distributed.orthogonalize import orthogonalize_distributed
from ..groups.matrix_view import MatrixView, input_dims, piece_shapes
from ..triton_kernels import momentum_step, orthogonalize, plan, weight_step
from ..triton_kernels.kernels.owned import Owned
from ..triton_kernels.schedule.named import Coefficients, is_triple
from .batches import Batch, Room, arrange, orthogonalize_all, positions, rounds, views_of
from .light import LightBuffer
from .rules import AdjustLr, neuron_normalize, shape_scale

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
    rounding: torch.Generator | None = None,
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
        rounding: Source of random bits for buffers that are rounded to bfloat16.
        max_batch_bytes: Bound on the bytes of updates that exist at one time; on a CPU 64 MiB at
            most, and the results of small matrices count as well.
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
    steps = isinstance(ns_coefficients, Sequence) and not isinstance(ns_coefficients, str)
    schedule = _hashable(ns_coefficients) if steps else ns_coefficients
    traced = torch.compiler.is_compiling()
    dtype_of = _own_dtype if traced else partial(update_dtype, schedule, compute_dtype)
    batches = arrange(params, momentum_buffers, views or ["auto"] * len(params), dtype_of)
    # Nearly always: whole matrices that stay where they are.
    whole = not (divided or share_work or traced or any(b.view.split for b in batches))
    scale = partial(shape_scale, adjust_lr_fn)
    options = engine_options(schedule, ns_steps, eps, compute_dtype)
    # The engine gives each thread a matrix.
    threads = torch.get_num_threads() if whole else 1
    owned = Owned() if traced else Owned.by(params[0] if owner is None else owner)
    for some in rounds(batches, max_batch_bytes, threads):
        members = positions(some)
        weights, gs = ([xs[i] for i in members] for xs in (params, grads))
        kept = [momentum_buffers[i] for i in members]
        bs = [b.read() if isinstance(b, LightBuffer) else b for b in kept]
        room = Room.of(some, owned) if whole else Scattered.of(some, weights, bs, scale, share_work)
        momentum_step(
            gs, bs, room.updates, momentum, nesterov=nesterov, maximize=maximize,
            rounding=rounding, owned=owned,
        )  # fmt: skip
        for x, b in zip(bs, kept, strict=True):
            if isinstance(b, LightBuffer):
                b.write(x)
        if clock is not None and not traced:
            clock(some[0].device)
        updates = room.orthogonalize(**options)
        if clock is not None and not traced:
            clock(some[0].device)
        if second_moments is not None:
            moments = [second_moments[i] for i in members]
            updates = _normalize_neurons(updates, weights, moments, neuron_beta, some)
        pieces = [local(p) for p in weights] if divided else weights
        factors = _scales(some, scale)
        weight_step(pieces, updates, factors, lr, weight_decay, cautious=cautious, owned=owned)
        room.give_back()


def _scales(batches: Sequence[Batch], scale: Callable[[int, int], float]) -> list[float]:
    """Return the factor of each parameter; the pieces of a split one have factors of their own."""
    factors: list[float] = []
    for batch in batches:
        count = sum(map(len, batch.members.values()))
        factors += [1.0 if batch.view.split else scale(*batch.logical)] * count
    return factors


def _normalize_neurons(
    updates: Sequence[Tensor],
    weights: Sequence[Tensor],
    moments: Sequence[Tensor],
    beta: float,
    batches: Sequence[Batch],
) -> list[Tensor]:
    """Divide by means over neurons: a DTensor knows what to sum over ranks."""
    result = []
    for o, p, v, view in zip(updates, weights, moments, views_of(batches), strict=True):
        normalized = neuron_normalize(rewrapped(o, p), v, beta, input_dims(p, view))
        result.append(local_like(normalized, p))
    return result


class Scattered(NamedTuple):
    """Updates that are no batches in memory: of ranks' pieces, of split parameters, compiled.

    Attributes:
        updates: Of each parameter of a round, of a DTensor this rank's piece.
        layouts: How each is spread.
        views: How each is seen as matrices.
        scale: Shape factor of the pieces of split parameters.
        share_work: See :class:`Muon`.
    """

    updates: list[Tensor]
    layouts: list[Layout]
    views: list[MatrixView]
    scale: Callable[[int, int], float]
    share_work: bool

    @staticmethod
    def of(
        batches: Sequence[Batch],
        weights: Sequence[Tensor],
        buffers: Sequence[Tensor],
        scale: Callable[[int, int], float],
        share_work: bool,
    ) -> "Scattered":
        """Make room for the updates of a round."""
        dtypes = [b.dtype for b in batches for _ in positions([b])]
        updates = [
            torch.empty(b.shape, dtype=dtype, device=b.device)
            for b, dtype in zip(buffers, dtypes, strict=True)
        ]
        layouts = [Layout.of(p) for p in weights]
        return Scattered(updates, layouts, views_of(batches), scale, share_work)

    def orthogonalize(self, **options: Any) -> list[Tensor]:
        """Return the polar factor of each update.

        Args:
            **options: Of the engine's ``orthogonalize``.
        """

        def polar(xs: list[Tensor], members: list[int]) -> list[Tensor]:
            views = [self.views[i] for i in members]
            return orthogonalize_all(xs, views, partial(orthogonalize, **options), self.scale)

        return orthogonalize_distributed(
            self.updates, self.layouts, self.views, polar, share_work=self.share_work
        )

    def give_back(self) -> None:
        """Keep nothing: no step finds this memory again."""


def _hashable(steps: Sequence[Any]) -> Any:
    return tuple(steps) if is_triple(steps) else tuple(tuple(step) for step in steps)


def engine_options(
    schedule: Any, steps: int, eps: float, dtype: torch.dtype | None
) -> dict[str, Any]:
    """Say to the engine what Muon's arguments mean."""
    eps = max(eps, torch.finfo(torch.float32).tiny)  # torch.optim.Muon takes zero, the engine not
    if schedule == "auto":
        return {"method": "auto", "eps": eps, "dtype": dtype}
    # A named schedule and a list of steps have a length of their own.
    repeat = steps if is_triple(schedule) else None
    method = {"method": "newton_schulz", "schedule": schedule, "steps": repeat}
    return {**method, "eps": eps, "dtype": dtype}


def _own_dtype(
    shape: torch.Size, view: MatrixView, dtype: torch.dtype, device: torch.device
) -> torch.dtype:
    return dtype


@lru_cache(maxsize=4096)
def update_dtype(
    schedule: Any,
    compute_dtype: torch.dtype | None,
    shape: torch.Size,
    view: MatrixView,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.dtype:
    """Return bfloat16 for float32 updates that the engine would round to it first; else their own.

    The results are the same bits, and two passes over the memory less. A GPU's engine divides by
    the norm before it rounds, so there the updates stay as they are.
    """
    if device.type != "cpu" or dtype != torch.float32:
        return dtype
    if compute_dtype is None and is_triple(schedule):
        compute_dtype = torch.bfloat16
    if compute_dtype is not None:
        return torch.bfloat16 if compute_dtype == torch.bfloat16 else dtype
    options: dict[str, Any] = {} if schedule == "auto" else {"schedule": schedule, "form": "direct"}
    pieces = [piece for piece in piece_shapes(shape, view) if 0 not in piece]
    taken = {plan(piece, 1, dtype, device, **options).dtype for piece in pieces}
    return torch.bfloat16 if taken == {torch.bfloat16} else dtype
