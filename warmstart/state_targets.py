"""Which tensors of a state dict are shrunk, and in which units: names and shapes alone decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from specgd_common.lora_names import lora_role

from .entries import memory_key
from .fire import default_parts
from .targets import LORA_REASONS, Patterns, Skipped, Target, as_list, check_patterns, matches
from .units import UNIT_NAMES

StateUnits = str | Callable[[str, Tensor], str | Sequence[int] | None]


def state_targets(
    state_dict: Mapping[str, Any],
    *,
    units: StateUnits = "kernel",
    include: Patterns = None,
    exclude: Patterns = None,
    bias: str = "vector",
    transposed: Patterns = None,
    strict: bool = True,
    elsewhere: Mapping[str, int] | None = None,
) -> tuple[list[Target], list[Skipped]]:
    """Route every tensor of a state dict, from its name and shape alone.

    Tensors with two or more dimensions whose name ends in ``weight`` are shrunk, and the ``bias``
    beside them; one-dimensional weights belong to normalizations and stay.

    Args:
        state_dict: Name -> tensor; other entries are ignored.
        units: ``"kernel"``, ``"filter"``, ``"row"``, or ``callable(name, tensor)`` that returns one
            of these, the dimensions of one unit, or None to skip.
        include: Exactly these tensors; ``"default"`` stands for the default choice.
        exclude: Not these.
        bias: ``"vector"`` or ``"skip"``.
        transposed: Weights stored (in, out), such as those of GPT-2's layers and of transposed
            convolutions: a state dict does not say so.
        strict: Refuse patterns without a match and an empty selection; False for one shard of many.
        elsewhere: For one shard, the number of dimensions of every tensor of the whole checkpoint:
            a bias may lie in another shard than its weight.

    Returns:
        Targets and skipped tensors.

    Raises:
        ValueError: If nothing is selected or a rule is unknown.
    """
    if not callable(units) and units not in UNIT_NAMES:
        raise ValueError(f"units must be one of {UNIT_NAMES} or a callable, got {units!r}")
    if strict:
        check_patterns(list(state_dict), include=include, exclude=exclude, transposed=transposed)
    here = {n: x.ndim for n, x in state_dict.items() if isinstance(x, Tensor)}
    dimensions = {**(elsewhere or {}), **here}
    targets: list[Target] = []
    skipped: list[Skipped] = []
    first: dict[object, int] = {}
    aliases: dict[int, list[str]] = {}
    for name, x in state_dict.items():
        if not isinstance(x, Tensor):
            continue
        at = first.get(memory_key(x))
        if at is not None:
            aliases[at].append(name)
            continue
        reason = _reason(dimensions, name, x, include, exclude, bias)
        flipped = x.ndim >= 2 and matches(transposed, name, x)
        dims = None if reason else _dims(name, x, units, flipped)
        if dims is None:
            skipped.append(Skipped(name, reason or "left out by units"))
            continue
        first[memory_key(x)] = len(targets)
        aliases[len(targets)] = []
        unit = {0: "entry", 1: "row"}.get(len(dims), "kernel") if x.ndim > 1 else "vector"
        owner = "Tensor"
        if flipped:
            owner = "Conv1D" if x.ndim == 2 else "ConvTranspose"
            unit = "column" if dims == (0,) else unit
        targets.append(Target(name, x, f"{owner}.{name.rpartition('.')[2]}", unit, dims))
    if not targets and strict:
        raise ValueError("no tensor of the state dict is selected")
    return [_with_aliases(t, tuple(aliases[i])) for i, t in enumerate(targets)], skipped


def _reason(
    dimensions: Mapping[str, int],
    name: str,
    x: Tensor,
    include: Patterns,
    exclude: Patterns,
    bias: str,
) -> str:
    """Why a tensor is left alone, or the empty string."""
    if matches(exclude, name, x):
        return "excluded"
    if not x.is_floating_point() or x.dtype.itemsize < 2:
        return f"{x.dtype}"
    if x.numel() == 0:
        return "empty"
    if matches(include, name, x):
        return ""
    if include is not None and (callable(include) or "default" not in as_list(include)):
        return "not included"
    lora = lora_role(name)
    if lora in LORA_REASONS:
        return LORA_REASONS[lora]
    if lora == "b":
        return ""
    prefix, _, leaf = name.rpartition(".")
    if leaf.endswith("weight") and x.ndim >= 2:
        return ""
    sibling = dimensions.get(f"{prefix}.{leaf[:-4]}weight".lstrip("."), 0)
    if leaf.endswith("bias") and x.ndim == 1 and sibling >= 2:
        return "bias" if bias == "skip" else ""
    return "neither a weight matrix nor the bias of one"


def _dims(name: str, x: Tensor, units: StateUnits, flipped: bool) -> tuple[int, ...] | None:
    answer = units(name, x) if callable(units) else units
    if answer is None:
        return None
    if not isinstance(answer, str):
        if any(not -x.ndim <= d < x.ndim for d in answer):
            raise ValueError(f"units returned {answer!r} for {name} with {x.ndim} dimensions")
        return tuple(sorted({d % x.ndim for d in answer}))
    if answer not in UNIT_NAMES:
        raise ValueError(f"units returned {answer!r} for {name}: {UNIT_NAMES}")
    if x.ndim <= 1:
        return tuple(range(x.ndim))
    if answer == "kernel" and x.ndim > 2:
        return tuple(range(2, x.ndim))
    if flipped and answer != "row":
        return (0, *range(2, x.ndim))
    return tuple(range(1, x.ndim))


def check_orientation(targets: Sequence[Target]) -> None:
    """Refuse fused projections that are stored (in, out) and not named in ``transposed``.

    Raises:
        ValueError: If the parts lie along the second dimension.
    """
    for t in targets:
        shape = t.parameter.shape
        fused = t.parameter.ndim == 2 and default_parts(t.name, t.parameter) == 3
        if fused and shape[1] == 3 * shape[0] and not t.kind.startswith("Conv1D"):
            raise ValueError(
                f"{t.name!r} {tuple(shape)} is stored (in, out), as GPT-2 does; name all such "
                "weights in transposed, for example '*.c_attn.weight', '*.c_proj.weight', "
                "'*.c_fc.weight' (--transposed on the command line)"
            )


def _with_aliases(t: Target, aliases: tuple[str, ...]) -> Target:
    return Target(t.name, t.parameter, t.kind, t.unit, t.dims, aliases=aliases)
