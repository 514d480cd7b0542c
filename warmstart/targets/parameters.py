"""Every parameter of a model once: its owner, all of its names, what it is, and its units.

Tied weights, weights behind parametrizations, and weight normalization are resolved here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

UNIT_NAMES = ("kernel", "filter", "row")

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TABLE = (nn.Embedding, nn.EmbeddingBag)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
# Buffers beside "weight_orig" that tell that "weight" is computed from it.
BESIDE_ORIGINAL = ("_mask", "_u")


@dataclass
class OwnedParameter:
    """A parameter with where it lives, before anything is decided.

    Attributes:
        name: Its name in the model.
        parameter: The tensor.
        owner: The module that uses it, ``owner_name`` its name and ``attribute`` its place there.
        role: ``"conv"``, ``"conv_transpose"``, ``"matrix"``, ``"transposed"``, ``"bias"`` or
            ``"raw"``.
        aliases: Other names of the same memory.
        tied: Other Parameter objects on the same memory.
        partner: For the magnitude of a weight normalization, name and tensor of its direction.
        reason: Why nothing but the owner may change it, or the empty string.
    """

    name: str
    parameter: Tensor
    owner: nn.Module
    owner_name: str
    attribute: str
    role: str = ""
    aliases: list[str] = field(default_factory=list)
    tied: list[tuple[str, Tensor]] = field(default_factory=list)
    partner: tuple[str, Tensor] | None = None
    reason: str = ""


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's own module inside DistributedDataParallel, DataParallel, torch.compile."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def list_parameters(model: nn.Module) -> list[OwnedParameter]:
    """Return every parameter once, with its owner and with all its names."""
    by_memory: dict[object, OwnedParameter] = {}
    parameters: list[OwnedParameter] = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner_name, _, attribute = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        owned = OwnedParameter(name, parameter, owner, owner_name, attribute)
        first = by_memory.setdefault(memory_key(parameter), owned)
        if first is owned:
            _look_through_parametrization(model, owned)
            owned.role = _role(owned.owner, owned.attribute)
            parameters.append(owned)
            continue
        first.aliases.append(name)
        if first.role == "raw":
            # A head's bias may be registered beside the layer that uses it.
            role = _role(owner, attribute)
            if role != "raw":
                first.role, first.owner = role, owner
                first.owner_name, first.attribute = owner_name, attribute
        if parameter is not first.parameter and all(parameter is not p for _, p in first.tied):
            first.tied.append((name, parameter))
    return parameters


def memory_key(p: Tensor) -> object:
    """Return what is equal for two tensors that are the same view of the same memory."""
    if isinstance(p, nn.parameter.UninitializedParameter) or p.is_meta or p.numel() == 0:
        return id(p)
    try:
        return (p.data_ptr(), tuple(p.shape), p.stride(), p.dtype)
    except (RuntimeError, NotImplementedError):
        # Tensor subclasses (DTensor, quantized wrappers) may have no single address.
        return id(p)


def _look_through_parametrization(model: nn.Module, owned: OwnedParameter) -> None:
    """Give an original tensor the owner and attribute of the weight that is computed from it."""
    owner = owned.owner
    if isinstance(owner, nn.utils.parametrize.ParametrizationList):
        parent_name = owned.owner_name.rpartition("parametrizations.")[0].rstrip(".")
        attribute = owned.owner_name.rpartition(".")[2]
        prefix, slot = owned.owner_name, owned.attribute
        owned.owner, owned.owner_name = model.get_submodule(parent_name), parent_name
        owned.attribute = attribute
        if any(type(q).__name__ == "_WeightNorm" for q in owner):
            _weight_norm_roles(owned, slot == "original0", f"{prefix}.original1", owner)
        elif slot != "original":
            owned.reason = "parametrization with several originals"
    elif owned.attribute.endswith(("_g", "_v")) and hasattr(owner, owned.attribute[:-2] + "_v"):
        base, is_g = owned.attribute[:-2], owned.attribute.endswith("_g")
        if isinstance(getattr(owner, base + "_g", None), nn.Parameter):
            prefix = f"{owned.owner_name}.{base}_v".lstrip(".")
            owned.attribute = base
            _weight_norm_roles(owned, is_g, prefix, owner)
    elif owned.attribute.endswith("_orig"):
        # What torch.nn.utils.prune masks, and what its older spectral_norm divides.
        base = owned.attribute.removesuffix("_orig")
        if any(hasattr(owner, base + beside) for beside in BESIDE_ORIGINAL):
            owned.attribute = base


def _weight_norm_roles(owned: OwnedParameter, is_g: bool, v_name: str, holder: nn.Module) -> None:
    """Tell the roles in w = g v / |v|: g carries the length, v must stay."""
    if is_g:
        owned.partner = (v_name, getattr(holder, v_name.rpartition(".")[2]))
    else:
        owned.reason = "direction of weight normalization (its magnitude is shrunk instead)"


def _role(owner: nn.Module, attribute: str) -> str:
    """Tell what a parameter is by the module that uses it."""
    if isinstance(owner, nn.MultiheadAttention):
        if attribute == "in_proj_bias":
            return "bias"
        return "matrix" if attribute.endswith("proj_weight") else "raw"
    if isinstance(owner, _RECURRENT):
        return "matrix" if attribute.startswith("weight") else "bias"
    # transformers' Conv1D is a linear layer whose weight is stored (in, out).
    transposed = type(owner).__name__ == "Conv1D" and hasattr(owner, "nf")
    if not (transposed or isinstance(owner, (nn.Linear, *_CONV, *_CONV_TRANSPOSE, *_TABLE))):
        return _role_by_name(owner, attribute)
    if attribute == "bias":
        return "bias"
    if attribute != "weight":
        return "raw"
    if transposed:
        return "transposed"
    if isinstance(owner, _CONV_TRANSPOSE):
        return "conv_transpose"
    return "conv" if isinstance(owner, _CONV) else "matrix"


def _role_by_name(owner: nn.Module, attribute: str) -> str:
    """Tell what a parameter of an unknown kind of module is: a weight and its bias say so."""
    weight_name = f"{attribute[:-4]}weight" if attribute.endswith("bias") else attribute
    weight = getattr(owner, weight_name, None)
    if not (weight_name.endswith("weight") and isinstance(weight, Tensor) and weight.ndim >= 2):
        return "raw"
    bias = getattr(owner, f"{weight_name[:-6]}bias", None)
    if isinstance(bias, Tensor) and bias.shape == weight.shape:
        return "raw"  # an elementwise scale and its shift
    if attribute.endswith("bias"):
        return "bias" if isinstance(bias, Tensor) and bias.ndim == 1 else "raw"
    return "conv" if weight.ndim > 2 else "matrix"


def default_dims(
    owned: OwnedParameter, units: str
) -> tuple[str, tuple[int, ...], tuple[int, tuple[int, ...]] | None]:
    """Return the unit's name, the dimensions of one unit, and the split that they count on."""
    p, role = owned.parameter, owned.role
    if owned.partner is not None:
        # The magnitude has one entry per unit; each entry is its own unit, whatever `units` says.
        return "weight-norm magnitude", (), None
    if role == "bias" or p.ndim <= 1:
        return "vector", tuple(range(p.ndim)), None
    if role == "raw":
        return "last axis", (p.ndim - 1,), None
    if units == "row":
        return "row", tuple(range(1, p.ndim)), None
    if role == "transposed":
        return "column", (0,), None
    if role == "matrix" or p.ndim == 2:
        return "row", tuple(range(1, p.ndim)), None
    if units == "kernel":
        return "kernel", tuple(range(2, p.ndim)), None
    if role == "conv":
        return "filter", tuple(range(1, p.ndim)), None
    groups = int(getattr(owned.owner, "groups", 1))
    if groups == 1:
        return "filter", (0, *range(2, p.ndim)), None
    # Grouped transposed convolutions store (in, out / groups, ...): an output is (group, column).
    split = (0, (groups, p.shape[0] // groups))
    return "filter", (1, *range(3, p.ndim + 1)), split


def checked_dims(owned: OwnedParameter, dims: Sequence[int]) -> tuple[int, ...]:
    """Return a callable's answer as sorted, non-negative dimensions."""
    n = owned.parameter.ndim
    if any(not isinstance(d, int) or not -n <= d < n for d in dims):
        raise ValueError(f"units returned {dims!r} for {owned.name} with {n} dimensions")
    return tuple(sorted({d % n for d in dims}))
