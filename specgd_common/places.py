"""Where a parameter stands in its model, seen through wrappers and parametrizations."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

# Attributes under which DDP, torch.compile, PEFT, FSDP and checkpointing keep the module that they
# wrap. The wrapper and what it wraps count as one module of the wrapper's name.
WRAPPERS = {
    "module", "_orig_mod", "base_layer", "original_module", "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
}  # fmt: skip
LINEAR = (nn.Linear, nn.Bilinear)
CONVOLUTION = nn.modules.conv._ConvNd
EMBEDDING_CLASS = re.compile(r"\w*Embed(ding|der)?s?(Bag)?")
EMBEDDING_NAME = re.compile(
    r"(?!patch)(\w+_)?embed(ding|der)?s?(_tokens?|_positions?|_table)?|(\w+_)?emb|wte|wpe|shared",
    re.IGNORECASE,
)
ROUTER = re.compile(r"\w*router\w*|gate|wg", re.IGNORECASE)
SEQUENCES = (nn.ModuleList, nn.Sequential)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True, eq=False)
class Place:
    """One name of a parameter, and the modules on the way to it.

    Attributes:
        name: The full name, without those of wrappers around the whole model.
        path: Names of the modules from below the model down to the owner, without wrappers.
        chain: The model and the modules of ``path``.
        own_name: What the owner calls it: "weight" also where a parametrization holds it.
        param: The parameter.
    """

    name: str
    path: tuple[str, ...]
    chain: tuple[nn.Module, ...]
    own_name: str
    param: Tensor

    @property
    def owner(self) -> nn.Module:
        """The layer that the parameter belongs to."""
        return self.chain[-1]

    @property
    def module(self) -> str:
        """The layer's name in its holder; of a Linear that is all of its holder, the holder's."""
        return self.path[self._depth - 1] if self._depth else ""

    @property
    def holder(self) -> nn.Module:
        """The module that ``module`` is a name in."""
        return self.chain[max(self._depth - 1, 0)]

    @cached_property
    def _depth(self) -> int:
        depth = len(self.path)
        while depth > 1 and _is_only_layer(self.chain[depth - 1], self.path[depth - 1]):
            depth -= 1
        return depth

    def in_block(self, depth: int | None = None) -> bool:
        """Say whether a module above the given depth (default: the owner's) is one of a sequence.

        Blocks are the modules with children in a ModuleList, and those in a Sequential of their
        class: what stands in them is inside the model, neither its first nor its last layer. A
        list of one module around all of the model is a wrapper.
        """
        last = len(self.path) if depth is None else min(depth, len(self.path))
        first = 0
        while isinstance(self.chain[first], SEQUENCES) and len(self.chain[first]._modules) == 1:
            first += 1
        return any(is_block(self.chain[i], self.chain[i + 1]) for i in range(first, last - 1))

    def setting(self, *names: str) -> Any:
        """Return the first of these attributes that a module or its config has, nearest first."""
        for module in reversed(self.chain):
            for source in (module, getattr(module, "config", None)):
                for name in names:
                    value = getattr(source, name, None) if source is not None else None
                    if isinstance(value, int) and not isinstance(value, bool):
                        return value
        return None


@dataclass(frozen=True, eq=False)
class Layer:
    """A child with one weight, as its siblings see it: ``outputs`` x ``inputs``."""

    name: str
    module: nn.Module
    outputs: int
    inputs: int


def places_of(model: nn.Module) -> list[list[Place]]:
    """Return the places of each parameter, once for each: several where it is tied."""
    found: dict[int, list[Place]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
            found.setdefault(id(p), []).append(_place(model, prefix, name, p))
    return list(found.values())


def place_of(model: nn.Module, name: str) -> Place:
    """Return the place of a parameter by its name."""
    prefix, _, own_name = name.rpartition(".")
    return _place(model, prefix, own_name, model.get_parameter(name))


def _place(model: nn.Module, prefix: str, own_name: str, p: Tensor) -> Place:
    name = _without_wrappers(f"{prefix}.{own_name}" if prefix else own_name)
    path: list[str] = []
    chain = [model]
    parts = prefix.split(".") if prefix else []
    module: Any = model
    while parts:
        part = parts.pop(0)
        module = module._modules[part]
        if part == "parametrizations":
            weight = parts.pop(0)
            module = module._modules[weight]
            if not parts:
                own_name = weight
                break
            # A parameter of the parametrization itself, such as a low-rank factor.
        elif part == "modules_to_save":
            module = module._modules[parts.pop(0)]
            chain[-1] = module
        elif part in WRAPPERS:
            chain[-1] = module
        else:
            path.append(part)
            chain.append(module)
    return Place(name, tuple(path), tuple(chain), own_name, p)


def _without_wrappers(name: str) -> str:
    """Return the name that a parameter has in the bare model, by which checkpoints are read."""
    first, _, rest = name.partition(".")
    return _without_wrappers(rest) if first in WRAPPERS and rest else name


def unwrapped(module: nn.Module) -> nn.Module:
    """Return what a chain of wrappers holds."""
    while True:
        inner = next((m for n, m in module._modules.items() if n in WRAPPERS and m), None)
        if inner is None:
            return module
        module = inner


def raw_weight(module: nn.Module) -> Tensor | None:
    """Return a layer's weight without running its parametrization, which may have side effects."""
    held = getattr(module, "parametrizations", None)
    if isinstance(held, nn.ModuleDict) and "weight" in held:
        originals = list(held["weight"]._parameters.values())
        return max((x for x in originals if x is not None), key=lambda x: x.numel(), default=None)
    for name in ("weight", "weight_v", "weight_orig"):  # the latter two: older weight norms
        weight = module._parameters.get(name)
        if weight is not None:
            return weight
    return None


def has_class(module: nn.Module, name: str) -> bool:
    """Say whether a module is of a class of this name, which need not be importable."""
    return any(c.__name__ == name for c in type(module).__mro__)


def is_linear(module: nn.Module) -> bool:
    """Say whether a module is a linear layer, torch's or another library's."""
    if isinstance(module, LINEAR) or has_class(module, "Conv1D"):
        return True
    name = type(module).__name__.lower()
    return "weight" in module._parameters and ("linear" in name or "dense" in name)


def is_convolution(module: nn.Module) -> bool:
    """Say whether a module is a convolution, torch's or another library's."""
    if isinstance(module, CONVOLUTION):
        return True
    weight = module._parameters.get("weight")
    named = "conv" in type(module).__name__.lower() and not has_class(module, "Conv1D")
    return weight is not None and weight.ndim >= 3 and named


def is_applied(module: nn.Module) -> bool:
    """Say whether a module applies its weight as a matrix."""
    return is_linear(module) or is_convolution(module)


def is_embedding(place: Place) -> bool:
    """Say whether a parameter is a table that is looked up, torch's or another library's."""
    owner, p = place.owner, place.param
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) or "lora_embedding_A" in place.name:
        return True
    if is_convolution(owner) or place.own_name != "weight" or p.ndim != 2:
        return False
    named = bool(place.path) and bool(EMBEDDING_NAME.fullmatch(place.path[-1]))
    if is_linear(owner):  # some keep their table in one; a projection of patches is no such tower
        return named and p.shape[0] >= 8 * p.shape[1]
    return named or bool(EMBEDDING_CLASS.fullmatch(type(owner).__name__))


def is_depthwise(module: nn.Module) -> bool:
    """Say whether a convolution has a filter of its own for each channel."""
    if not isinstance(module, CONVOLUTION) or module.groups == 1:
        return False
    return module.groups in (module.in_channels, module.out_channels)


def layers_of(holder: nn.Module) -> list[Layer]:
    """Return the linear layers and convolutions that are a module's children, in their order."""
    result = []
    for name, child in holder._modules.items():
        layer = _layer(name, child) if child is not None else None
        if layer is not None:
            result.append(layer)
    return result


def _layer(name: str, child: nn.Module) -> Layer | None:
    child = unwrapped(child)
    inner = [m for n, m in child._modules.items() if m is not None and _is_only_layer(child, n)]
    if inner:
        child = unwrapped(inner[0])
    weight, width = raw_weight(child), widths(child)
    if width is not None:
        return Layer(name, child, *width)
    if weight is not None and weight.ndim == 3:  # a stack of experts
        return Layer(name, child, weight.shape[1], weight.shape[2])
    return None


def widths(module: nn.Module) -> tuple[int, int] | None:
    """Return how many outputs and inputs a linear layer or a convolution has, else None."""
    weight = raw_weight(module)
    if weight is None or weight.ndim < 2 or not is_applied(module):
        return None
    if isinstance(module, CONVOLUTION):  # of several groups a weight has but one's inputs
        return module.out_channels, module.in_channels
    outputs, inputs = weight.shape[:2]
    return (inputs, outputs) if has_class(module, "Conv1D") else (outputs, inputs)


def is_block(parent: nn.Module, child: nn.Module) -> bool:
    """Say whether a module is one of a sequence of blocks."""
    if not child._modules:
        return False
    if isinstance(parent, nn.ModuleList):
        return True
    if not isinstance(parent, nn.Sequential):
        return False
    return all(type(m) is type(child) for m in parent)


def _is_only_layer(holder: nn.Module, name: str) -> bool:
    """Say whether a child is the one layer of a small wrapper, such as (linear, batch norm)."""
    if isinstance(holder, (nn.ModuleList, nn.Sequential, nn.ModuleDict)):
        return isinstance(holder, nn.Sequential) and name == "0" and _count(holder) == 1
    return name in ("linear", "conv", "convolution", "dense", "layer") and _count(holder) == 1


def _count(holder: nn.Module) -> int:
    """Count the weights of two or more dimensions that a module holds."""
    return sum(p.ndim > 1 and p.numel() > max(p.shape) for p in holder.parameters())


def experts_in_rows(place: Place) -> int:
    """Return how many experts' matrices stand on each other in a parameter of two dimensions."""
    count = place.setting("num_experts", "moe_num_experts") or 0
    rows = place.param.shape[0]
    # One row for each expert is the router's.
    fits = place.param.ndim == 2 and 1 < count < rows and rows % count == 0
    return count if fits and not is_linear(place.owner) and not is_embedding(place) else 0


def is_router(name: str) -> bool:
    """Say whether a module of this name may choose among experts."""
    return bool(ROUTER.fullmatch(name))
