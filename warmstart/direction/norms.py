"""Normalization around a weight: which weights it makes scale-free, and its stale statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..targets.find import NORMS
from .undisturbed import to_device, undisturbed

# Positively homogeneous and monotone: a scaled input gives a scaled output.
_PASS = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.Flatten,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
)


@dataclass
class NormMap:
    """What a forward pass has shown about normalization.

    Attributes:
        follows: Module -> the normalization that reads its output, directly or through ReLU,
            pooling and dropout. The length of such a module's weight does not change the function,
            only the effective learning rate.
        calls: Modules with weights and normalizations (as None), in the order of their first call.
        upstream: Module -> the one before it in its segment, None at a segment's start. Modules
            that were given the same tensor (queries, keys and values; a shortcut) share theirs.
    """

    follows: dict[str, str] = field(default_factory=dict)
    calls: list[str | None] = field(default_factory=list)
    upstream: dict[str, str | None] = field(default_factory=dict)

    def chains(self) -> dict[str, int]:
        """Return module -> how many weights without a normalization are multiplied in its segment.

        Normalizations cut the forward pass into segments; a module whose output is normalized
        counts 0. Modules that run side by side in one segment count as if they were in a row.
        """
        out = dict.fromkeys(self.follows, 0)
        segment: list[str] = []
        for call in [*self.calls, None]:
            if call is None:
                out.update(dict.fromkeys(segment, len(segment)))
                segment = []
            elif call not in self.follows:
                segment.append(call)
        return out


@contextmanager
def watch_norms(model: nn.Module) -> Iterator[NormMap]:
    """Fill a ``NormMap`` from the forward passes inside the block.

    Compiled modules run uncompiled inside it: the hooks identify tensors by their Python objects,
    which do not exist in compiled code, and tracing the hooks would compile the model for the sake
    of one batch.
    """
    seen = NormMap()
    watch = _Watch(seen)
    leaves = [(n, m) for n, m in model.named_modules() if not any(m.children()) or _holds(m)]
    compiled = any(
        m._compiled_call_impl is not None or hasattr(m, "_orig_mod") for m in model.modules()
    )
    handles = [m.register_forward_hook(partial(watch, n)) for n, m in leaves]
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield seen
    finally:
        for handle in handles:
            handle.remove()


class _Watch:
    """A forward hook that follows tensors from the module that made them to the next one."""

    def __init__(self, seen: NormMap) -> None:
        self.seen = seen
        # id of an output -> (the output, kept alive so that its id stays its own; its maker)
        self.origin: dict[int, tuple[Tensor, str]] = {}
        # id of an input -> (the input, kept alive likewise; what came before its first reader)
        self.read: dict[int, tuple[Tensor, str | None]] = {}

    def __call__(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        # Attention returns (output, weights).
        output = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(output, Tensor):
            return
        seen, source = self.seen, self.origin.get(id(inputs[0])) if inputs else None
        if isinstance(module, NORMS) or type(module).__name__.endswith("Norm"):
            seen.calls.append(None)
            if source is not None:
                seen.follows.setdefault(source[1], name)
        elif isinstance(module, _PASS):
            if source is not None:
                self.origin[id(output)] = (output, source[1])
        else:
            self.origin[id(output)] = (output, name)
            if _holds(module) and name not in seen.calls:
                before = seen.calls[-1] if seen.calls else None
                if inputs and isinstance(inputs[0], Tensor):
                    before = self.read.setdefault(id(inputs[0]), (inputs[0], before))[1]
                seen.calls.append(name)
                seen.upstream[name] = before


def _holds(module: nn.Module) -> bool:
    """Say whether a module has parameters of its own, or parametrized ones (of its children)."""
    own = any(p is not None for p in module._parameters.values())
    return own or hasattr(module, "parametrizations")


def batch_norms(model: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """Return every BatchNorm that keeps running statistics, by name."""
    return {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    }


def reestimated_statistics(
    model: nn.Module,
    data: Iterable[Any],
    batches: int,
    run: Callable[[nn.Module, Any], Any],
) -> dict[str, Tensor]:
    """Return running means and variances over the first so many batches, as the weights are now.

    After a shrink the old statistics belong to longer weights, and accuracy in eval mode is chance.

    Args:
        model: Runs in eval mode except for its BatchNorms; nothing of it changes.
        data: Iterated once.
        batches: How many, >= 1.
        run: ``run(model, batch)``.

    Returns:
        Buffer name -> new value (the plain mean over batches).
    """
    norms = batch_norms(model)
    momenta = {name: m.momentum for name, m in norms.items()}
    with undisturbed(model, "eval", data), torch.no_grad():
        try:
            for m in norms.values():
                m.reset_running_stats()
                m.momentum = None  # the cumulative mean over batches
                m.training = True
            count = 0
            for batch in islice(data, batches):
                run(model, to_device(batch, model))
                count += 1
        finally:
            for name, m in norms.items():
                m.momentum = momenta[name]
        if count == 0:
            raise ValueError("data is empty: no batch to recalibrate normalization on")
        return {
            f"{name}.{key}".lstrip("."): getattr(m, key).clone()
            for name, m in norms.items()
            for key in ("running_mean", "running_var")
        }
