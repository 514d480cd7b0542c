"""A model goes in; targets with their units, and skipped parameters with reasons, come out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import Tensor, nn

from specgd_common.lora_names import lora_partner, lora_role
from specgd_common.tensors import is_dtensor

from .parameters import (
    UNIT_NAMES,
    OwnedParameter,
    checked_dims,
    default_dims,
    list_parameters,
    unwrap,
)

Patterns = str | Sequence[str] | Callable[[str, Tensor], bool] | None
UnitRule = str | Callable[[str, nn.Module, Tensor], str | Sequence[int] | None]

BIAS_RULES = ("vector", "skip")
LORA_RULES = ("factor", "product")
LORA_REASONS = {
    "a": "LoRA A factor (shrinking B alone shrinks the product once)",
    "magnitude": "LoRA magnitude vector",
}

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


@dataclass(frozen=True, eq=False)
class Target:
    """One tensor that will be multiplied by factors.

    Attributes:
        name: Its name in ``model.named_parameters()``.
        parameter: The tensor itself.
        kind: Class of the owning module and attribute, such as ``"Conv2d.weight"``.
        unit: Name of the unit, for the report.
        dims: Dimensions (of ``view(parameter)``) over which one unit extends.
        split: ``(dim, sizes)`` to unflatten before ``dims`` apply, or None.
        aliases: Other names of the same memory (tied weights); shrunk once.
        tied: Other Parameter objects on the same memory; their gradients are added.
        direction_of: For weight normalization, ``(name, v)`` whose magnitude this target is.
        module: Name of the owning module.
        product_with: For a LoRA B factor judged by the rows of B A, ``(name, A)``.
    """

    name: str
    parameter: Tensor
    kind: str
    unit: str
    dims: tuple[int, ...]
    split: tuple[int, tuple[int, ...]] | None = None
    aliases: tuple[str, ...] = ()
    tied: tuple[tuple[str, Tensor], ...] = ()
    direction_of: tuple[str, Tensor] | None = None
    module: str = ""
    product_with: tuple[str, Tensor] | None = None

    @property
    def owners(self) -> list[str]:
        """Names of all modules that use it."""
        return [self.module, *(name.rpartition(".")[0] for name in self.aliases)]

    def view(self, x: Tensor) -> Tensor:
        """Return ``x`` (shaped like the parameter) with the dimensions that ``dims`` count."""
        return x if self.split is None else x.unflatten(*self.split)

    def left(self, reason: str) -> Skipped:
        """Return it as one that is left alone after all."""
        return Skipped(self.name, reason, tuple(self.parameter.shape))


@dataclass(frozen=True)
class Skipped:
    """A parameter of some shape that is left alone, and why."""

    name: str
    reason: str
    shape: tuple[int, ...] = ()


def matches(patterns: Patterns, names: Iterable[str], parameter: Tensor) -> bool:
    """Say whether patterns or a predicate accept a parameter under one of its names."""
    if patterns is None:
        return False
    if callable(patterns):
        return any(patterns(name, parameter) for name in names)
    return any(fnmatchcase(name, p) for name in names for p in _listed(patterns))


def includes(include: Patterns, names: Iterable[str], parameter: Tensor) -> bool | None:
    """Say whether a parameter is included by name (True), not (False), or by default (None)."""
    if include is None:
        return None
    if matches(include, names, parameter):
        return True
    return None if not callable(include) and "default" in _listed(include) else False


def check_patterns(names: Sequence[str], **groups: Patterns) -> None:
    """Refuse a pattern that matches no name: it is a typing error, not a selection."""
    for keyword, patterns in groups.items():
        if patterns is None or callable(patterns):
            continue
        for pattern in _listed(patterns):
            if pattern == "default" and keyword == "include":
                continue
            if not any(fnmatchcase(n, pattern) for n in names):
                raise ValueError(f"{keyword} pattern {pattern!r} matches no parameter")


def _listed(patterns: str | Sequence[str]) -> Sequence[str]:
    return [patterns] if isinstance(patterns, str) else patterns


def find_targets(
    model: nn.Module,
    *,
    units: UnitRule = "kernel",
    include: Patterns = None,
    exclude: Patterns = None,
    bias: str = "vector",
    lora: str = "factor",
) -> tuple[list[Target], list[Skipped]]:
    """Route every parameter of a model: shrink it (in which units) or skip it (and why).

    By default the weights and biases of linear, convolutional, transposed-convolutional,
    embedding, attention and recurrent modules are targets; normalization parameters and raw
    parameters are not.

    Args:
        model: Any module; wrappers of DDP, DataParallel and torch.compile are looked through.
        units: ``"kernel"``: one unit per (output, input) pair of a convolution, one per output of
            any other weight (the official rule). ``"filter"``: one unit per output everywhere.
            ``"row"``: one unit per index of the first stored dimension, which needs no
            communication under FSDP2. Or ``callable(name, module, parameter)`` that returns one of
            these names, the dimensions over which one unit extends, or None to skip.
        include: Shell patterns, or ``callable(name, parameter) -> bool``: exactly these parameters,
            of whatever kind. The pattern ``"default"`` stands for the default choice, so
            ``("default", "cls_token")`` adds to it. A raw parameter's unit is its last dimension.
        exclude: Patterns or predicate of what to leave out; wins over ``include``.
        bias: ``"vector"``: a bias is one unit (the official rule). ``"skip"``: biases stay.
        lora: What a row of an adapter's B factor is compared with its direction as: ``"factor"``,
            the row itself, or ``"product"``, its row of the merged B A (see ``product_cosine``).
            B alone is multiplied in both cases, and with it each row of the product once.

    Returns:
        Targets and skipped parameters, in the model's order, each parameter in exactly one list.

    Raises:
        ValueError: For an unknown rule, a pattern that matches nothing, a lazy or meta parameter,
            or when nothing is selected.
        TypeError: For quantized or complex weights.

    Example:
        >>> import torch
        >>> from warmstart import find_targets
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4))
        >>> targets, skipped = find_targets(model)
        >>> [(t.name, t.unit, t.dims) for t in targets]
        [('0.weight', 'kernel', (2, 3)), ('0.bias', 'vector', (0,))]
        >>> skipped[0].reason
        'normalization parameter'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, value, known in (("bias", bias, BIAS_RULES), ("lora", lora, LORA_RULES)):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}")
    if not callable(units) and units not in UNIT_NAMES:
        raise ValueError(f"units must be one of {UNIT_NAMES} or a callable, got {units!r}")
    model = unwrap(model)
    _refuse_packed_modules(model)
    parameters = list_parameters(model)
    names = [n for owned in parameters for n in (owned.name, *owned.aliases)]
    check_patterns(names, include=include, exclude=exclude)
    targets: list[Target] = []
    skipped: list[Skipped] = []
    for owned in parameters:
        reason = _skip_reason(owned, include, exclude, bias)
        target = None if reason else _target(owned, units)
        if target is None:
            lazy = isinstance(owned.parameter, nn.parameter.UninitializedParameter)
            shape = () if lazy else tuple(owned.parameter.shape)
            skipped.append(Skipped(owned.name, reason or "left out by units", shape))
        elif lora == "product" and lora_role(owned.name) == "b":
            targets.append(_as_product(target, model))
        else:
            targets.append(target)
    if not targets:
        reasons = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:5]) or "it has no parameters"
        raise ValueError(f"no parameter of {type(model).__name__} is selected ({reasons})")
    return targets, skipped


def _skip_reason(owned: OwnedParameter, include: Patterns, exclude: Patterns, bias: str) -> str:
    """Tell why a parameter is left alone, or return the empty string."""
    names, p = [owned.name, *owned.aliases], owned.parameter
    if exclude is not None and matches(exclude, names, p):
        return "excluded"
    if owned.reason:
        return owned.reason
    if not p.requires_grad:
        return "frozen (requires_grad=False)"
    if not isinstance(p, nn.parameter.UninitializedParameter) and p.numel() == 0:
        return "empty"
    included = None if include is None else includes(include, names, p)
    if included is not None:
        return "" if included else "not included"
    return _default_skip_reason(owned, bias)


def _default_skip_reason(owned: OwnedParameter, bias: str) -> str:
    """Tell why the default choice leaves a parameter alone, or return the empty string."""
    lora = lora_role(owned.name)
    if lora in LORA_REASONS:
        return LORA_REASONS[lora]
    if isinstance(owned.owner, NORMS) or type(owned.owner).__name__.endswith("Norm"):
        return "normalization parameter"
    if lora == "b":
        return ""
    if owned.role == "raw":
        return "raw parameter (name it in include to shrink it)"
    return "bias" if owned.role == "bias" and bias == "skip" else ""


def _target(owned: OwnedParameter, units: UnitRule) -> Target | None:
    """Decide the units of a selected parameter; None when a callable leaves it out."""
    p = owned.parameter
    rule = units(owned.name, owned.owner, p) if callable(units) else units
    if rule is None:
        return None
    _refuse_unusable(owned.name, p)
    if not isinstance(rule, str):
        unit, dims, split = "custom", checked_dims(owned, rule), None
    elif rule in UNIT_NAMES:
        unit, dims, split = default_dims(owned, rule)
    else:
        raise ValueError(f"units returned {rule!r} for {owned.name}: {UNIT_NAMES}")
    return Target(
        name=owned.name,
        parameter=p,
        kind=f"{type(owned.owner).__name__.removeprefix('Parametrized')}.{owned.attribute}",
        unit=unit,
        dims=dims,
        split=split,
        aliases=tuple(owned.aliases),
        tied=tuple(owned.tied),
        direction_of=owned.partner,
        module=owned.owner_name,
    )


def _as_product(t: Target, model: nn.Module) -> Target:
    """Return a B factor as a target in units of the rows of B A."""
    name = lora_partner(t.name)
    a = dict(model.named_parameters(remove_duplicate=False)).get(name)
    if a is None or a.ndim < 2 or t.parameter.ndim < 2 or a.shape[0] != t.parameter.shape[1]:
        shape = None if a is None else tuple(a.shape)
        raise ValueError(
            f'lora="product" needs {t.name!r} (out, r) and {name!r} (r, in), got '
            f"{tuple(t.parameter.shape)} and {shape}"
        )
    dims = tuple(range(1, t.parameter.ndim))
    return replace(t, unit="row of B A", dims=dims, split=None, product_with=(name, a))


def _refuse_packed_modules(model: nn.Module) -> None:
    """Refuse eager-mode quantized modules, which have no parameter to shrink."""
    for name, module in model.named_modules():
        path = type(module).__module__
        if ".nn.quantized" in path or ".nn.intrinsic.quantized" in path:
            raise TypeError(
                f"module {name!r} ({type(module).__name__}) is quantized; shrink the "
                "floating-point model first and quantize afterwards"
            )


def _refuse_unusable(name: str, p: Tensor) -> None:
    """Refuse lazy, meta, quantized and complex parameters, each with what to do about it."""
    what = f"parameter {name!r}"
    if isinstance(p, nn.parameter.UninitializedParameter):
        raise ValueError(f"{what} is lazy and has no shape yet; run one forward pass first")
    if p.is_meta:
        raise ValueError(f"{what} {tuple(p.shape)} is on the meta device; load its values first")
    if getattr(p, "_is_flat_param", False):
        raise TypeError(f"{what} is a flat parameter of FSDP1; use fully_shard (FSDP2)")
    if p.is_complex():
        raise TypeError(f"{what} is {p.dtype}; real floating-point weights are supported")
    if not p.is_floating_point() or p.dtype.itemsize < 2:
        raise TypeError(
            f"{what} is {p.dtype} (quantized); float64/32/16 and bfloat16 are supported"
        )
    plain = type(p) in (nn.Parameter, Tensor) or type(p.data) is Tensor or is_dtensor(p)
    if not plain:
        raise TypeError(f"{what} is a {type(p).__name__} (a quantized or custom tensor class)")
