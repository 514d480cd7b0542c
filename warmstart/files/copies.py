"""What lies beside the weights in a checkpoint: copies that go along, moments that are reset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..targets.parameters import memory_key
from .nested import (
    at,
    copies_of,
    is_state_dict,
    optimizers_in,
    plain_names,
    replaced_at,
    resolve,
    without_optimizer_state,
)


@dataclass(frozen=True)
class Beside:
    """What happens to a checkpoint's other entries.

    Attributes:
        along: Keys of copies of the weights, such as an average, that change with them.
        reset_optimizer: Whether optimizers forget their moments.
    """

    along: Sequence[str] = ()
    reset_optimizer: bool = False


def change_beside(
    whole: dict[str, Any],
    keys: tuple[str, ...],
    beside: Beside,
    changed: Iterable[Sequence[str]],
    new: Mapping[str, Any],
    factors: Mapping[str, Tensor] | None,
) -> dict[str, Any]:
    """Return a checkpoint whose copies and optimizers follow its weights.

    Args:
        whole: The checkpoint; not changed.
        keys: Where its weights lie.
        beside: What is asked for.
        changed: For every changed tensor all of its names.
        new: The new weights.
        factors: By name, what was multiplied; None where new values were written.

    Raises:
        ValueError: If a key names no copy of the weights, or there is no optimizer to reset.
    """
    changed = list(changed)
    out: dict[str, Any] = whole
    for key in beside.along:
        path = resolve(whole, key)
        if path == keys:
            raise ValueError(f"--along {key} names the weights themselves")
        copy = at(whole, path)
        if not is_state_dict(copy):
            raise ValueError(f"--along {key} holds no state dict")
        try:
            followed = _followed(copy, changed, new, factors)
        except ValueError as error:
            raise ValueError(f"--along {key} {error}") from None
        out = replaced_at(out, path, followed)
    if beside.reset_optimizer:
        if not optimizers_in(whole):
            raise ValueError("--reset-optimizer finds no optimizer (state and param_groups)")
        out = without_optimizer_state(out)
    return out


def left_notes(
    whole: Mapping[str, Any], weights: Mapping[str, Any], keys: tuple[str, ...], beside: Beside
) -> list[str]:
    """Name what stays as it was although it belongs to the old weights."""
    followed = {resolve(whole, key) for key in beside.along}
    copies = [k for k in copies_of(whole, weights, keys) if resolve(whole, k) not in followed]
    notes = [f"{k!r} holds a copy of the weights and was left: --along {k}" for k in copies]
    if not beside.reset_optimizer:
        notes += [
            f"{'.'.join(path)!r} holds an optimizer whose moments belong to the old weights and "
            "was left: --reset-optimizer"
            for path in optimizers_in(whole)
        ]
    return notes


def _followed(
    copy: Mapping[str, Any],
    changed: Sequence[Sequence[str]],
    new: Mapping[str, Any],
    factors: Mapping[str, Tensor] | None,
) -> Mapping[str, Any]:
    """Return a copy of the weights, changed as they were; what is tied in it stays tied."""
    own = plain_names(copy)
    values: dict[str, Tensor] = {}
    done: dict[object, Tensor] = {}
    for names in changed:
        here = [n for n in names if n in own]
        if not here:
            raise ValueError(f"has no tensor named {names[0]!r}")
        for n in here:
            x = copy[own[n]]
            if x.shape != new[n].shape:
                raise ValueError(f"has {tuple(x.shape)} for {n!r} {tuple(new[n].shape)}")
            if memory_key(x) not in done:
                f = None if factors is None else factors[names[0]]
                done[memory_key(x)] = new[n].to(x.dtype) if f is None else times(x, f)
            values[own[n]] = done[memory_key(x)]
    return type(copy)((k, values.get(k, v)) for k, v in copy.items())  # type: ignore[call-arg]


def times(x: Tensor, f: Tensor) -> Tensor:
    """Return a tensor times factors, in its own dtype."""
    if f.ndim == x.ndim + 1:  # one factor for each (group, output) of a transposed convolution
        return (x.unflatten(0, (f.shape[0], -1)).to(f.dtype) * f).flatten(0, 1).to(x.dtype)
    return (x.to(torch.promote_types(x.dtype, f.dtype)) * f).to(x.dtype)
