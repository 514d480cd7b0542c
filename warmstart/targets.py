"""Which tensors are shrunk, and over which dimensions one unit of each extends.

The first station: a model goes in, a list of targets and a list of skipped parameters with the
reason come out. Nothing here looks at data or changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import Tensor, nn

from specgd_common.lora_names import lora_partner, lora_role
from specgd_common.tensors import is_dtensor

from .entries import Entry, list_entries, unwrap
from .units import UNIT_NAMES, checked_dims, default_dims, role_of

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

    def view(self, x: Tensor) -> Tensor:
        """``x`` (shaped like the parameter) with the dimensions that ``dims`` count; no copy."""
        return x if self.split is None else x.unflatten(*self.split)


@dataclass(frozen=True)
class Skipped:
    """A parameter that is left alone, and why."""

    name: str
    reason: str


def matches(patterns: Patterns, name: str, parameter: Tensor) -> bool:
    """Whether a shell pattern, one of several, or a predicate accepts a parameter."""
    if patterns is None:
        return False
    if callable(patterns):
        return bool(patterns(name, parameter))
    return any(fnmatchcase(name, p) for p in as_list(patterns))


def as_list(patterns: str | Iterable[str]) -> list[str]:
    """One pattern or several, as a list."""
    return [patterns] if isinstance(patterns, str) else list(patterns)


def find_targets(
    model: nn.Module,
    *,
    units: UnitRule = "kernel",
    include: Patterns = None,
    exclude: Patterns = None,
    bias: str = "vector",
    lora: str = "factor",
) -> tuple[list[Target], list[Skipped]]:
    """Route every parameter of a model: shrink it (in which units) or skip it (for which reason).

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
    if bias not in BIAS_RULES:
        raise ValueError(f"bias must be one of {BIAS_RULES}, got {bias!r}")
    if lora not in LORA_RULES:
        raise ValueError(f"lora must be one of {LORA_RULES}, got {lora!r}")
    if not callable(units) and units not in UNIT_NAMES:
        raise ValueError(f"units must be one of {UNIT_NAMES} or a callable, got {units!r}")
    model = unwrap(model)
    _refuse_packed_modules(model)
    entries = list_entries(model)
    names = [n for e in entries for n in (e.name, *e.aliases)]
    check_patterns(names, include=include, exclude=exclude)
    targets: list[Target] = []
    skipped: list[Skipped] = []
    for entry in entries:
        reason = _skip_reason(entry, include, exclude, bias)
        target = None if reason else _target(entry, units)
        if target is None:
            skipped.append(Skipped(entry.name, reason or "left out by units"))
        else:
            _refuse_unusable(target)
            if lora == "product" and lora_role(entry.name) == "b":
                target = _as_product(target, model)
            targets.append(target)
    if not targets:
        reasons = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:5]) or "it has no parameters"
        raise ValueError(f"no parameter of {type(model).__name__} is selected ({reasons})")
    return targets, skipped


def _skip_reason(entry: Entry, include: Patterns, exclude: Patterns, bias: str) -> str:
    """Why a parameter is left alone, or the empty string."""
    names = [entry.name, *entry.aliases]
    if any(matches(exclude, n, entry.parameter) for n in names):
        return "excluded"
    if entry.reason:
        return entry.reason
    if not entry.parameter.requires_grad:
        return "frozen (requires_grad=False)"
    lazy = isinstance(entry.parameter, nn.parameter.UninitializedParameter)
    if not lazy and entry.parameter.numel() == 0:
        return "empty"
    if any(matches(include, n, entry.parameter) for n in names):
        return ""
    by_default = _default_skip_reason(entry, bias)
    if include is None or (not callable(include) and "default" in as_list(include)):
        return by_default
    return "not included"


def _default_skip_reason(entry: Entry, bias: str) -> str:
    """Why the default choice leaves a parameter alone, or the empty string."""
    lora = lora_role(entry.name)
    if lora in LORA_REASONS:
        return LORA_REASONS[lora]
    if isinstance(entry.owner, NORMS) or type(entry.owner).__name__.endswith("Norm"):
        return "normalization parameter"
    if lora == "b":
        return ""
    role = role_of(entry)
    if role == "raw":
        return "raw parameter (name it in include to shrink it)"
    if role == "bias" and bias == "skip":
        return "bias"
    return ""


def _target(entry: Entry, units: UnitRule) -> Target | None:
    """Decide the units of a selected parameter; None when a callable leaves it out."""
    p = entry.parameter
    if not isinstance(p, nn.parameter.UninitializedParameter):
        unit, dims, split = default_dims(entry, units if isinstance(units, str) else "kernel")
        if callable(units):
            answer = units(entry.name, entry.owner, p)
            if answer is None:
                return None
            if isinstance(answer, str):
                if answer not in UNIT_NAMES:
                    raise ValueError(f"units returned {answer!r} for {entry.name}: {UNIT_NAMES}")
                unit, dims, split = default_dims(entry, answer)
            else:
                unit, dims, split = "custom", checked_dims(entry, answer), None
    else:
        unit, dims, split = "", (), None
    kind = f"{type(entry.owner).__name__.removeprefix('Parametrized')}.{entry.attribute}"
    return Target(
        entry.name,
        p,
        kind,
        unit,
        dims,
        split,
        tuple(entry.aliases),
        tuple(entry.tied),
        entry.partner,
        entry.owner_name,
    )


def _as_product(t: Target, model: nn.Module) -> Target:
    """A B factor in units of the rows of B A."""
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


def check_patterns(names: Sequence[str], **groups: Patterns) -> None:
    """A pattern that matches no name is a typing error, not a selection."""
    for keyword, patterns in groups.items():
        if patterns is None or callable(patterns):
            continue
        for pattern in as_list(patterns):
            if pattern == "default" and keyword == "include":
                continue
            if not any(fnmatchcase(n, pattern) for n in names):
                raise ValueError(f"{keyword} pattern {pattern!r} matches no parameter")


def _refuse_packed_modules(model: nn.Module) -> None:
    """Eager-mode quantized modules hide their weights: they have no parameter to shrink."""
    for name, module in model.named_modules():
        path = type(module).__module__
        if ".nn.quantized" in path or ".nn.intrinsic.quantized" in path:
            raise TypeError(
                f"module {name!r} ({type(module).__name__}) is quantized; shrink the "
                "floating-point model first and quantize afterwards"
            )


def _refuse_unusable(target: Target) -> None:
    """Lazy, meta, quantized and complex parameters, each with what to do about it."""
    p, what = target.parameter, f"parameter {target.name!r}"
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
