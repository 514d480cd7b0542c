"""Fresh initial values for a model's parameters, without touching the model or the random state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import methodcaller
from typing import Any

import torch
from torch import Tensor, nn

from ..targets.parameters import unwrap

Initial = nn.Module | Mapping[str, Tensor] | Callable[[], nn.Module] | None


def initial_values(
    model: nn.Module, names: Sequence[str], fresh: Initial = None, seed: int = 0
) -> dict[str, Tensor]:
    """Return a newly drawn value for each named parameter.

    Args:
        model: The model in use; only shapes and module kinds are read.
        names: Parameter names.
        fresh: A freshly built model, a state dict, or a function that builds a model. None redraws
            each module by its own ``reset_parameters``, which is torch's default initialization:
            give ``fresh`` if your model's constructor initializes differently.
        seed: Of the draw; the caller's random state does not move.

    Raises:
        ValueError: If a value is missing, has another shape, or cannot be redrawn.
    """
    values = _redrawn(model, names, seed) if fresh is None else _given(fresh, seed)
    shapes = dict(unwrap(model).named_parameters(remove_duplicate=False))
    for name in names:
        if name not in values:
            raise ValueError(f"fresh has no value for parameter {name!r}")
        if values[name].shape != shapes[name].shape:
            raise ValueError(
                f"fresh value of {name!r} is {tuple(values[name].shape)}, "
                f"the parameter is {tuple(shapes[name].shape)}"
            )
    return {name: values[name].detach() for name in names}


def _given(fresh: Initial, seed: int) -> Mapping[str, Tensor]:
    if isinstance(fresh, Mapping):
        return fresh
    if not isinstance(fresh, nn.Module):
        assert fresh is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = fresh()
    if not isinstance(fresh, nn.Module):
        raise TypeError(f"fresh must give a torch.nn.Module, got {type(fresh).__name__}")
    return dict(unwrap(fresh).named_parameters(remove_duplicate=False))


def _redrawn(model: nn.Module, names: Sequence[str], seed: int) -> dict[str, Tensor]:
    """Reset copies of single modules, never of the whole model, and return their values."""
    model = unwrap(model)
    values: dict[str, Tensor] = {}
    owners = dict.fromkeys(name.rpartition(".")[0] for name in names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for owner in owners:
            module = model.get_submodule(owner)
            own = [n for n, _ in module.named_parameters(recurse=False)]
            initialize = _initializer(module)
            if initialize is None:
                raise ValueError(
                    f"parameters {[f'{owner}.{n}'.lstrip('.') for n in own]} belong to a "
                    f"{type(module).__name__} without reset_parameters(); pass fresh= a newly "
                    "built model"
                )
            # Only this module's own tensors are wanted: children would be copied for nothing.
            # Made by hand, because fully_shard gives modules a class that copy cannot build.
            twin = object.__new__(type(module))
            twin.__dict__ = dict(module.__dict__)
            twin._parameters = {
                n: None
                if p is None
                else nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device=p.device))
                for n, p in module._parameters.items()
            }
            twin._buffers = {
                n: None if b is None else b.clone() for n, b in module._buffers.items()
            }
            initialize(twin)
            fresh = {n: p for n, p in twin._parameters.items() if p is not None and n in own}
            values.update({f"{owner}.{n}".lstrip("."): p for n, p in fresh.items()})
    return values


def _initializer(module: nn.Module) -> Callable[[Any], object] | None:
    """Return what draws a module's initial values: its own method, or what GPT-2's layer does."""
    for name in ("reset_parameters", "_reset_parameters"):
        if callable(getattr(module, name, None)):
            return methodcaller(name)
    return _as_conv1d if type(module).__name__ == "Conv1D" else None


def _as_conv1d(layer: Any) -> None:
    """Initialize transformers' Conv1D as its constructor does."""
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
