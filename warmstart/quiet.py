"""Run a model without leaving a trace: modes, buffers, random state and loaders as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

GRAD_MODES = ("eval", "train", "keep")


@contextmanager
def quiet(model: nn.Module, grad_mode: str = "keep", data: Any = None) -> Iterator[None]:
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
        stack.enter_context(_buffers(model))
        stack.enter_context(_modes(model))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if grad_mode != "keep":
            # Through train(), not the flag: a model that freezes its BatchNorm overrides train().
            model.train(grad_mode == "train")
        yield


@contextmanager
def _modes(model: nn.Module) -> Iterator[None]:
    before = [(m, m.training) for m in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def _buffers(model: nn.Module) -> Iterator[None]:
    """Running statistics and other buffers: same tensors, same values, same bindings."""
    before = [
        (m, name, b, None if b is None or b.is_meta else b.detach().clone())
        for m in model.modules()
        for name, b in m._buffers.items()
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, tensor, values in before:
                module._buffers[name] = tensor
                if tensor is not None and values is not None:
                    tensor.copy_(values)


@contextmanager
def _random_state(model: nn.Module, data: Any) -> Iterator[None]:
    """Dropout, data transforms and shuffling draw from these."""
    devices = sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)
    # The legacy state is what data transforms of older libraries draw from.
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    generators = {id(g): g for g in _generators(data)}.values()
    states = [(g, g.get_state()) for g in generators]
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        for generator, state in states:
            generator.set_state(state)


def _generators(data: Any) -> Iterator[torch.Generator]:
    """The torch generators of a DataLoader and of its samplers."""
    for holder in (data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None)):
        for name in ("generator", "base_generator"):
            generator = getattr(holder, name, None)
            if isinstance(generator, torch.Generator):
                yield generator
