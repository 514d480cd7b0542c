"""Which tensors of a state dict are shrunk, and in which units: names and shapes alone decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from specgd_common.fused_in_files import split_by_name
from specgd_common.head_names import HEAD
from specgd_common.lora_names import lora_role

from .find import LORA_REASONS, Patterns, Skipped, Target, check_patterns, includes, matches
from .names import Names, Shapes, Told
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
    elsewhere: Shapes | None = None,
) -> tuple[list[Target], list[Skipped]]:
    """Route every tensor of a state dict, from its name and shape alone.

    What ``find_targets`` takes of a model is taken here: weights of two or more dimensions, the
    biases beside them, gates of recurrent cells, magnitudes of weight normalization. Buffers, such
    as running statistics, never change, whatever is included.

    Args:
        state_dict: Name -> tensor; other entries are ignored.
        units: ``"kernel"``, ``"filter"``, ``"row"``, or ``callable(name, tensor)`` that returns one
            of these, the dimensions of one unit, or None to skip.
        include: Exactly these tensors; ``"default"`` stands for the default choice.
        exclude: Not these.
        bias: ``"vector"`` or ``"skip"``.
        transposed: Weights stored (in, out), such as those of GPT-2's layers and of transposed
            convolutions; where the bias beside a weight tells so, it need not be said.
        strict: Refuse patterns without a match and an empty selection; False for one shard of many.
        elsewhere: For one shard, the shape of every tensor of the whole checkpoint: a bias may lie
            in another shard than its weight.

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
    names = Names({**(elsewhere or {}), **{n: tuple(x.shape) for n, x in tensors.items()}})
    targets: list[Target] = []
    skipped: list[Skipped] = []
    for own, x in _by_memory(tensors):
        reasons = [_skip_reason(names.told(n), n, x, include, exclude, bias) for n in own]
        if all(reasons) or "excluded" in reasons:
            skipped += [
                Skipped(n, r or "excluded", tuple(x.shape))
                for n, r in zip(own, reasons, strict=True)
            ]
            continue
        target = _target(own, own[reasons.index("")], tensors, names, units, transposed)
        if isinstance(target, Target):
            targets.append(target)
        else:
            skipped += [Skipped(n, target, tuple(x.shape)) for n in own]
    if not targets and strict:
        raise ValueError("no tensor of the state dict is selected")
    return targets, skipped


def _target(
    own: Sequence[str],
    name: str,
    tensors: Mapping[str, Tensor],
    names: Names,
    units: StateUnits,
    transposed: Patterns,
) -> Target | str:
    """Return a target, or why there is none after all."""
    x, told = tensors[name], names.told(name)
    full = f"{told.module}.{told.attribute}".lstrip(".")
    flipped = x.ndim >= 2 and (full in names.flipped or matches(transposed, own, x))
    owner = "Tensor" if not flipped else "Conv1D" if x.ndim == 2 else "ConvTranspose"
    if x.ndim == 2 and any(names.told(n).is_embedding for n in own):
        owner = "Embedding"
    elif x.ndim == 2 and len(own) > 1 and any(HEAD.fullmatch(_layer(names.told(n))) for n in own):
        owner = "Embedding"  # what a head is tied to
    aliases = tuple(n for n in own if n != name)
    target = Target(
        name, x, f"{owner}.{told.attribute}", "", (), aliases=aliases, module=told.module
    )
    if told.partner:
        v = tensors.get(told.partner)
        if v is None:
            return "its direction lies in another shard"
        partner = (told.partner, v)
        return replace(target, unit="weight-norm magnitude", direction_of=partner)
    unit = _unit(name, x, units, flipped)
    return "left out by units" if unit is None else replace(target, unit=unit[0], dims=unit[1])


def _layer(told: Told) -> str:
    return told.module.rpartition(".")[2]


def _by_memory(tensors: Mapping[str, Tensor]) -> list[tuple[list[str], Tensor]]:
    """Return every tensor once, with all of its names."""
    groups: dict[object, tuple[list[str], Tensor]] = {}
    for name, x in tensors.items():
        groups.setdefault(memory_key(x), ([], x))[0].append(name)
    return list(groups.values())


def _skip_reason(
    told: Told, name: str, x: Tensor, include: Patterns, exclude: Patterns, bias: str
) -> str:
    """Tell why a tensor is left alone, or return the empty string."""
    if matches(exclude, [name], x):
        return "excluded"
    if told.role == "buffer":
        return "buffer"
    if told.reason:
        return told.reason
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
    if told.is_embedding and _is_sinusoidal(x):
        return "sinusoidal positions, which are not trained"
    if told.role == "normalization":
        return "normalization parameter"
    if told.role == "raw":
        return "raw parameter or buffer (name it in include to shrink it)"
    return "bias" if told.role == "bias" and bias == "skip" else ""


def _is_sinusoidal(x: Tensor) -> bool:
    """Say whether the first row of a table is sin(0) in one half and cos(0) in the other."""
    if x.ndim != 2 or x.shape[1] < 2:
        return False
    ones, zeros = int((x[0] == 1).sum()), int((x[0] == 0).sum())
    return ones + zeros == x.shape[1] and abs(ones - zeros) <= 1


def _unit(
    name: str, x: Tensor, units: StateUnits, flipped: bool
) -> tuple[str, tuple[int, ...]] | None:
    """Return a unit's name and the dimensions over which it extends; None leaves a tensor out."""
    rule = units(name, x) if callable(units) else units
    if rule is None:
        return None
    if not isinstance(rule, str):
        if any(not -x.ndim <= d < x.ndim for d in rule):
            raise ValueError(f"units returned {rule!r} for {name} with {x.ndim} dimensions")
        return "custom", tuple(sorted({d % x.ndim for d in rule}))
    if rule not in UNIT_NAMES:
        raise ValueError(f"units returned {rule!r} for {name}: {UNIT_NAMES}")
    if x.ndim <= 1:
        return "vector", tuple(range(x.ndim))
    if rule == "kernel" and x.ndim > 2:
        return "kernel", tuple(range(2, x.ndim))
    if flipped and rule != "row":
        return ("column" if x.ndim == 2 else "filter"), (0, *range(2, x.ndim))
    return ("row" if x.ndim == 2 or rule == "row" else "filter"), tuple(range(1, x.ndim))


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
