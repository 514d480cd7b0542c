"""One pass over the data that feeds a ``GradientDirection`` and leaves no trace on the model."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from specgd_common.optional import needed

from ..targets.parameters import unwrap
from .gradient_direction import GradientDirection
from .norms import watch_norms
from .ranks import agreed, all_agree, averages_itself, is_fully_sharded, rank_groups
from .undisturbed import Loss, default_loss, to_device, undisturbed


def measure_direction(
    model: nn.Module,
    data: Iterable[Any],
    loss_fn: Loss,
    direction: GradientDirection,
    *,
    grad_mode: str = "eval",
    max_batches: int | None = None,
    tail: int | None = None,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    progress: Any = None,
    process_group: Any = None,
) -> GradientDirection:
    """Feed ``direction`` with one pass over ``data``, without touching anything of the model.

    Gradients come from ``torch.autograd.grad``, so ``.grad`` and accumulation hooks (an optimizer
    that steps in backward) stay untouched.

    Args:
        model: The module to run.
        data: Batches, oldest first: ``(input, target)``, or a dict passed to the model by keyword.
        loss_fn: ``loss_fn(output, target) -> scalar``.
        direction: The accumulator.
        grad_mode: ``"eval"`` (what the published numbers rest on), ``"train"`` or ``"keep"``.
        max_batches: Use only the first so many batches.
        tail: Use only the last so many batches; older ones carry (1 - alpha)^tail of the weight.
        forward: ``forward(model, batch) -> loss`` for any other kind of batch or loss.
        progress: True for a bar, or ``callable(done, total)``.
        process_group: Ranks that each hold part of the data, for models that are not wrapped in
            DistributedDataParallel or sharded (those are recognized).

    Returns:
        ``direction``.

    Raises:
        ValueError: For an empty loader, a NaN loss or gradient, or a loss that is not a scalar.
    """
    module = unwrap(model)
    compute_loss = forward or (lambda m, batch: default_loss(m, batch, loss_fn))
    # On one process there is nothing to agree on.
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    groups = rank_groups(model, process_group) if several else []
    in_step = groups if several and averages_itself(module) else []
    device = next(iter(direction.parameters.values())).device
    finished = False
    try:
        with undisturbed(module, grad_mode, data):
            batches, total = take_batches(data, max_batches, tail)
            batches = track(batches, total, progress)
            for index, batch in enumerate(agreed(batches, in_step, device) if in_step else batches):
                with watch_norms(module) if index == 0 else nullcontext(direction.norms) as seen:
                    loss = compute_loss(module, to_device(batch, module))
                direction.norms = seen
                check_loss(loss, index, in_step)
                gradients, scale = batch_gradients(
                    module, loss, direction.parameters, sharded=bool(in_step)
                )
                direction.update(gradients, scale=scale)
            if direction.num_batches == 0:
                raise ValueError("data is empty: a gradient direction needs at least one batch")
        finished = True
    finally:
        # Also when this rank fails: the others would wait for it in the next collective for ever.
        ok = all_agree(finished, groups, device) if groups else finished
    if not ok:
        raise RuntimeError("another rank failed during the gradient pass; no weight was changed")
    if groups and not in_step:
        direction.average_over_ranks(groups)
    return direction


def take_batches(
    data: Iterable[Any], max_batches: int | None, tail: int | None
) -> tuple[Iterable[Any], int | None]:
    """Return the chosen batches in their order, and how many there are if that is known."""
    for name, value in (("max_batches", max_batches), ("tail", tail)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a positive integer or None, got {value!r}")
    if not isinstance(data, Iterable):
        raise TypeError(f"data must be an iterable of batches, got {type(data).__name__}")
    total: int | None
    try:
        total = len(data)  # type: ignore[arg-type]
    except TypeError:  # iterable data sets and generators have no length
        total = None
    if max_batches is not None:
        data = islice(data, max_batches)
        total = None if total is None else min(total, max_batches)
    if tail is None:
        return data, total
    if total is None:
        kept: Sequence[Any] = list(deque(data, maxlen=tail))
        return kept, len(kept)
    return islice(data, max(0, total - tail), None), min(tail, total)


def track(batches: Iterable[Any], total: int | None, progress: Any) -> Iterator[Any]:
    """Yield batches with a progress bar (``True``), a callback ``(done, total)``, or nothing."""
    if progress is True:
        bar = needed("tqdm.auto", "data").tqdm
        yield from bar(batches, total=total, desc="gradient direction", leave=False)
        return
    for done, batch in enumerate(batches, start=1):
        yield batch
        if callable(progress):
            progress(done, total)


def batch_gradients(
    module: nn.Module, loss: Tensor, parameters: Mapping[str, Tensor], sharded: bool
) -> tuple[dict[str, Tensor | None], float]:
    """Return gradients of one loss, and the power of two that they were multiplied by.

    ``.grad`` stays what it was, to the object.
    """
    half = any(p.dtype == torch.float16 for p in parameters.values())
    scale = loss_scale(loss.detach().item(), half)
    if not (sharded and is_fully_sharded(module)):
        found = torch.autograd.grad(
            loss, list(parameters.values()), torch.full_like(loss, scale), allow_unused=True
        )
        return dict(zip(parameters, found, strict=True)), scale
    # fully_shard delivers sharded gradients into .grad only: borrow it and give it back.
    everything = list(module.parameters())
    if any(getattr(p, "_post_accumulate_grad_hooks", None) for p in everything):
        raise RuntimeError(
            "an optimizer steps inside backward (post-accumulate hooks); remove it for the pass"
        )
    before = [p.grad for p in everything]
    try:
        for p in everything:
            p.grad = None
        loss.backward(torch.full_like(loss, scale))
        return {name: p.grad for name, p in parameters.items()}, scale
    finally:
        for p, grad in zip(everything, before, strict=True):
            p.grad = grad


def loss_scale(loss: float, half: bool) -> float:
    """Return a power of two that brings the loss to about 1 (2^8 with float16 weights).

    A cosine does not depend on it, but float16 gradients of a loss of 1e-6 are all zero. Powers of
    two are exact, so that float32 results do not change by a bit.
    """
    if loss == 0.0:
        return 1.0
    return math.ldexp(1.0, min(100, max(-100, -math.frexp(loss)[1]) + (8 if half else 0)))


def check_loss(loss: Any, index: int, groups: Sequence[Any] = ()) -> None:
    """Refuse a loss that is no finite scalar or does not lead back to the model, on every rank.

    Ranks that share their backward pass must refuse together: it is full of collectives.
    """
    wrong: Exception | None = None
    if not isinstance(loss, Tensor):
        wrong = TypeError(f"the loss of batch {index} is a {type(loss).__name__}, not a tensor")
    elif loss.numel() != 1:
        wrong = ValueError(
            f"the loss of batch {index} has shape {tuple(loss.shape)}, not one value"
        )
    elif not loss.requires_grad:
        wrong = ValueError(f"the loss of batch {index} does not depend on any trainable parameter")
    elif not math.isfinite(value := loss.detach().item()):
        wrong = ValueError(f"the loss of batch {index} is {value}; no weight was changed")
    device = loss.device if isinstance(loss, Tensor) else torch.device("cpu")
    ok = all_agree(wrong is None, groups, device) if groups else wrong is None
    if wrong is not None:
        raise wrong
    if not ok:
        raise RuntimeError(f"another rank refused the loss of batch {index}; no weight was changed")
