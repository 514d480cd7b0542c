"""From the user's loader to a loss: which batches, on which device, how the model is called."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[..., Tensor]


def default_loss(model: nn.Module, batch: Any, loss_fn: Loss) -> Tensor:
    """Loss of an ``(input, target)`` pair, or of a dict batch whose model returns a loss."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return loss_fn(model(batch[0]), batch[1])
    if isinstance(batch, Mapping):
        out = model(**batch)
        loss = out.get("loss") if isinstance(out, Mapping) else getattr(out, "loss", None)
        if loss is not None:
            return loss
        if "labels" in batch:
            return loss_fn(getattr(out, "logits", out), batch["labels"])
    what = f"{type(batch).__name__}" + (f" of {len(batch)}" if hasattr(batch, "__len__") else "")
    raise TypeError(
        f"a batch is a {what}; (input, target) pairs and dicts with labels are understood, "
        "for anything else pass forward=lambda model, batch: loss"
    )


def to_device(batch: Any, model: nn.Module) -> Any:
    """The batch's tensors where the model's first parameter is."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def move(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x.to(device, non_blocking=True)
        if isinstance(x, Mapping):
            return {k: move(v) for k, v in x.items()}
        if isinstance(x, (tuple, list)) and not hasattr(x, "_fields"):
            return type(x)(move(v) for v in x)
        return x

    return move(batch)


def take_batches(
    data: Iterable[Any], max_batches: int | None, tail: int | None
) -> tuple[Iterable[Any], int | None]:
    """The chosen batches in their order, and how many there are if that is known."""
    for name, value in (("max_batches", max_batches), ("tail", tail)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a positive integer or None, got {value!r}")
    if not isinstance(data, Iterable):
        raise TypeError(f"data must be an iterable of batches, got {type(data).__name__}")
    total = _length(data)
    if max_batches is not None:
        data = islice(data, max_batches)
        total = None if total is None else min(total, max_batches)
    if tail is None:
        return data, total
    if total is None:
        kept: Sequence[Any] = list(deque(data, maxlen=tail))
        return kept, len(kept)
    return islice(data, max(0, total - tail), None), min(tail, total)


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:  # iterable data sets and generators have no length
        return None


def track(batches: Iterable[Any], total: int | None, progress: Any) -> Iterator[Any]:
    """Batches with a progress bar (``True``), a callback ``(done, total)``, or nothing."""
    if progress is True:
        from tqdm.auto import tqdm

        yield from tqdm(batches, total=total, desc="gradient direction", leave=False)
        return
    for done, batch in enumerate(batches, start=1):
        yield batch
        if callable(progress):
            progress(done, total)
