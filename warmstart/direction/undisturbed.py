"""Run a user's model on a user's batches and leave no trace on either."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

GRAD_MODES = ("eval", "train", "keep")
Loss = Callable[..., Tensor]


@contextmanager
def undisturbed(model: nn.Module, grad_mode: str = "keep", data: Any = None) -> Iterator[None]:
    """Put back whatever a pass over ``data`` could change in and around ``model``.

    Inside, gradients are enabled (also when called under ``no_grad`` or ``inference_mode``) and
    every submodule is in the mode that ``grad_mode`` names.

    Args:
        model: The module that will run.
        grad_mode: ``"eval"``, ``"train"``, or ``"keep"`` (each submodule's own mode).
        data: A loader whose generators are rewound: its next epoch is what it would have been.
    """
    if grad_mode not in GRAD_MODES:
        raise ValueError(f"grad_mode must be one of {GRAD_MODES}, got {grad_mode!r}")
    with ExitStack() as stack:
        stack.enter_context(_random_state(model, data))
        stack.enter_context(_modes_and_buffers(model))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if grad_mode != "keep":
            # Through train(), not the flag: a model that freezes its BatchNorm overrides train().
            model.train(grad_mode == "train")
        yield


@contextmanager
def _modes_and_buffers(model: nn.Module) -> Iterator[None]:
    """Put back modes, running statistics and other buffers: same tensors, values and bindings."""
    modes = [(m, m.training) for m in model.modules()]
    buffers = [
        (m, name, b, None if b is None or b.is_meta else b.detach().clone())
        for m in model.modules()
        for name, b in m._buffers.items()
    ]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, tensor, values in buffers:
                module._buffers[name] = tensor
                if tensor is not None and values is not None:
                    tensor.copy_(values)


@contextmanager
def _random_state(model: nn.Module, data: Any) -> Iterator[None]:
    """Put back what dropout, data transforms and shuffling draw from."""
    devices = sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)
    # The legacy state is what data transforms of older libraries draw from.
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    holders = (data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None))
    found = [getattr(h, n, None) for h in holders for n in ("generator", "base_generator")]
    generators = {id(g): g for g in found if isinstance(g, torch.Generator)}.values()
    states = [(g, g.get_state()) for g in generators]
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        for generator, state in states:
            generator.set_state(state)


def default_loss(model: nn.Module, batch: Any, loss_fn: Loss) -> Tensor:
    """Return the loss of an ``(input, target)`` pair, or of a dict whose model returns a loss."""
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
    """Return the batch with its tensors where the model's first parameter is."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return _moved(batch, device)


def _moved(x: Any, device: torch.device) -> Any:
    if isinstance(x, Tensor):
        return x.to(device, non_blocking=True)
    if isinstance(x, Mapping):
        return {k: _moved(v, device) for k, v in x.items()}
    if isinstance(x, (tuple, list)) and not hasattr(x, "_fields"):
        return type(x)(_moved(v, device) for v in x)
    return x
