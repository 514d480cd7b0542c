"""Every parameter of a model once, with the module it belongs to and all of its names.

Tied weights, weights behind parametrizations, and weight normalization are resolved here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass
class Entry:
    """A parameter with where it lives, before anything is decided."""

    name: str
    parameter: Tensor
    owner: nn.Module
    owner_name: str
    attribute: str
    aliases: list[str] = field(default_factory=list)
    tied: list[tuple[str, Tensor]] = field(default_factory=list)
    partner: tuple[str, Tensor] | None = None
    reason: str = ""


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def list_entries(model: nn.Module) -> list[Entry]:
    """Every parameter once, with its owner and with all its names."""
    by_memory: dict[object, Entry] = {}
    entries: list[Entry] = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner_name, _, attribute = name.rpartition(".")
        entry = Entry(name, parameter, model.get_submodule(owner_name), owner_name, attribute)
        first = by_memory.setdefault(memory_key(parameter), entry)
        if first is entry:
            _look_through_parametrization(model, entry)
            entries.append(entry)
            continue
        first.aliases.append(name)
        if parameter is not first.parameter and all(parameter is not p for _, p in first.tied):
            first.tied.append((name, parameter))
    return entries


def memory_key(p: Tensor) -> object:
    """Equal for two tensors that are the same view of the same memory."""
    if isinstance(p, nn.parameter.UninitializedParameter) or p.is_meta or p.numel() == 0:
        return id(p)
    try:
        return (p.data_ptr(), tuple(p.shape), p.stride(), p.dtype)
    except (RuntimeError, NotImplementedError):
        # Tensor subclasses (DTensor, quantized wrappers) may have no single address.
        return id(p)


def _look_through_parametrization(model: nn.Module, entry: Entry) -> None:
    """Give an original tensor the owner and attribute of the weight that is computed from it."""
    owner = entry.owner
    if isinstance(owner, nn.utils.parametrize.ParametrizationList):
        parent_name = entry.owner_name.rpartition("parametrizations.")[0].rstrip(".")
        attribute = entry.owner_name.rpartition(".")[2]
        prefix, slot = entry.owner_name, entry.attribute
        entry.owner, entry.owner_name = model.get_submodule(parent_name), parent_name
        entry.attribute = attribute
        if any(type(q).__name__ == "_WeightNorm" for q in owner):
            _weight_norm_roles(entry, slot == "original0", f"{prefix}.original1", owner)
        elif slot != "original":
            entry.reason = "parametrization with several originals"
    elif entry.attribute.endswith(("_g", "_v")) and hasattr(owner, entry.attribute[:-2] + "_v"):
        base, is_g = entry.attribute[:-2], entry.attribute.endswith("_g")
        if isinstance(getattr(owner, base + "_g", None), nn.Parameter):
            prefix = f"{entry.owner_name}.{base}_v".lstrip(".")
            entry.attribute = base
            _weight_norm_roles(entry, is_g, prefix, owner)


def _weight_norm_roles(entry: Entry, is_g: bool, v_name: str, holder: nn.Module) -> None:
    """Weight normalization: w = g v / |v|, so g carries the length and v must stay."""
    if is_g:
        entry.partner = (v_name, getattr(holder, v_name.rpartition(".")[2]))
    else:
        entry.reason = "direction of weight normalization (its magnitude is shrunk instead)"
