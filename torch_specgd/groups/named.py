"""A model of names: what parameters' names and shapes say about the layers that they stand in."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from specgd_common.places import EMBEDDING_NAME

# Names of matrices that a module holds by itself; those of no module go by their shape.
MATRIX = re.compile(
    r"(\w+_)?(w\d?|proj|kernel|matrix|[qkvo])|w_\w+|lora_\w+|\w+weight", re.IGNORECASE
)
PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original(\d*)$")


class Experts(nn.Module):
    """Holder of parameters of three dimensions that are no layer's weight."""


def model_of(named: Iterable[tuple[str, Tensor]]) -> nn.Module:
    """Build modules that hold these parameters under these names, of the likeliest types.

    A weight of two dimensions is a linear layer's, or an embedding's where its name says so; one of
    more is a convolution's. No memory is taken.

    Args:
        named: Names and parameters.

    Returns:
        A model that has the given parameters. A matrix that is not called "weight" is one in it.
    """
    model, convolutions = nn.Module(), 0
    for name, p in named:
        *path, own_name = PARAMETRIZED.sub(r"\1\2", name).split(".")
        is_weight = own_name.startswith("weight") and bool(path)
        if not is_weight and p.ndim > 1 and (not path or MATRIX.fullmatch(own_name)):
            path.append(own_name)
            own_name = own_name if p.ndim == 3 else "weight"
        layer: nn.Module | None = None
        if p.ndim == 2 and own_name.startswith("weight"):
            layer = _linear(path[-1], p)
        elif p.ndim == 3 and not is_weight:
            layer = Experts()
        elif 3 <= p.ndim <= 5 and own_name.startswith("weight"):
            # That of a picture's one channel comes first.
            layer = _convolution(p, depthwise=is_weight and p.shape[1] == 1 and convolutions > 0)
            convolutions += is_weight
        _holder(model, path, layer)._parameters[own_name] = p  # type: ignore[assignment]
    return model


def _holder(model: nn.Module, path: Sequence[str], layer: nn.Module | None) -> nn.Module:
    """Return the module at a path, made where it is not there, as ``layer`` where one is given."""
    module = model
    for depth, name in enumerate(path, 1):
        known = module._modules.get(name)
        last = depth == len(path)
        if known is None or (last and layer is not None):
            numbered = not last and path[depth].isdigit()
            made = layer if last and layer else nn.ModuleList() if numbered else nn.Module()
            if known is not None:
                made._modules.update(known._modules)
                own = {key: p for key, p in made._parameters.items() if p is not None}
                made._parameters.update({**known._parameters, **own})
            module._modules[name] = known = made
        module = known
    return module


def _linear(name: str, p: Tensor) -> nn.Module:
    if EMBEDDING_NAME.fullmatch(name):
        return nn.Embedding(p.shape[0], p.shape[1], device="meta")
    return nn.Linear(p.shape[1], p.shape[0], bias=False, device="meta")


def _convolution(p: Tensor, depthwise: bool) -> nn.Module:
    kind: Any = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[p.ndim]
    groups = p.shape[0] if depthwise else 1
    inputs, taps = p.shape[1] * groups, tuple(p.shape[2:])
    return kind(inputs, p.shape[0], taps, groups=groups, bias=False, device="meta")
