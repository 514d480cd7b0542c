"""Which tensors of a state dict are shrunk, and in which units: names and shapes alone decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from specgd_common.fused import split_by_name
from specgd_common.lora_names import lora_role

from .find import LORA_REASONS, Patterns, Skipped, Target, check_patterns, includes, matches
from .parameters import UNIT_NAMES, memory_key

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
    tensors = {n: x for n, x in state_dict.items() if isinstance(x, Tensor)}
    dimensions = {**(elsewhere or {}), **{n: x.ndim for n, x in tensors.items()}}
    targets: list[Target] = []
    skipped: list[Skipped] = []
    for names, x in _by_memory(tensors):
        reasons = [_skip_reason(dimensions, n, x, include, exclude, bias) for n in names]
        if all(reasons) or "excluded" in reasons:
            skipped += [Skipped(n, r or "excluded") for n, r in zip(names, reasons, strict=True)]
            continue
        name = names[reasons.index("")]
        flipped = x.ndim >= 2 and matches(transposed, names, x)
        dims = _dims(name, x, units, flipped)
        if dims is None:
            skipped += [Skipped(n, "left out by units") for n in names]
            continue
        owner = "Tensor" if not flipped else "Conv1D" if x.ndim == 2 else "ConvTranspose"
        kind, unit = f"{owner}.{name.rpartition('.')[2]}", _unit_name(x.ndim, dims, flipped)
        aliases = tuple(n for n in names if n != name)
        targets.append(Target(name, x, kind, unit, dims, aliases=aliases))
    if not targets and strict:
        raise ValueError("no tensor of the state dict is selected")
    return targets, skipped


def _by_memory(tensors: Mapping[str, Tensor]) -> list[tuple[list[str], Tensor]]:
    """Return every tensor once, with all of its names."""
    groups: dict[object, tuple[list[str], Tensor]] = {}
    for name, x in tensors.items():
        groups.setdefault(memory_key(x), ([], x))[0].append(name)
    return list(groups.values())


def _skip_reason(
    dimensions: Mapping[str, int],
    name: str,
    x: Tensor,
    include: Patterns,
    exclude: Patterns,
    bias: str,
) -> str:
    """Tell why a tensor is left alone, or return the empty string."""
    if matches(exclude, [name], x):
        return "excluded"
    if not x.is_floating_point() or x.dtype.itemsize < 2:
        return f"{x.dtype}"
    if x.layout is not torch.strided or x.is_meta:
        return "without values (meta device)" if x.is_meta else f"{x.layout}"
    if x.numel() == 0:
        return "empty"
    included = includes(include, [name], x)
    if included is not None:
        return "" if included else "not included"
    lora = lora_role(name)
    if lora:
        return LORA_REASONS.get(lora, "")
    prefix, _, leaf = name.rpartition(".")
    if leaf.endswith("weight") and x.ndim >= 2:
        return ""
    sibling = dimensions.get(f"{prefix}.{leaf[:-4]}weight".lstrip("."), 0)
    if leaf.endswith("bias") and x.ndim == 1 and sibling >= 2:
        return "bias" if bias == "skip" else ""
    return "neither a weight matrix nor the bias of one"


def _dims(name: str, x: Tensor, units: StateUnits, flipped: bool) -> tuple[int, ...] | None:
    """Return the dimensions over which one unit extends, or None to leave the tensor out."""
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


def _unit_name(ndim: int, dims: tuple[int, ...], flipped: bool) -> str:
    if ndim <= 1:
        return "vector"
    if flipped and dims == (0,):
        return "column"
    return {0: "entry", 1: "row"}.get(len(dims), "kernel")


def check_orientation(targets: Sequence[Target]) -> None:
    """Refuse fused projections that are stored (in, out) and not named in ``transposed``.

    Raises:
        ValueError: If the parts lie along the second dimension.
    """
    for t in targets:
        shape = tuple(t.parameter.shape)
        if len(shape) != 2 or t.kind.startswith("Conv1D") or split_by_name(t.name, shape):
            continue
        cut = split_by_name(t.name, shape, stored_in_out=True)
        if cut is not None and len(cut[1]) == 3:
            raise ValueError(
                f"{t.name!r} {shape} is stored (in, out), as GPT-2 does; name all such "
                "weights in transposed, for example '*.c_attn.weight', '*.c_proj.weight', "
                "'*.c_fc.weight' (--transposed on the command line)"
            )
