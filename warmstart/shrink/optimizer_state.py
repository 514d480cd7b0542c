"""What goes along with the weights: optimizer state, master copies, shadow weights.

An optimizer that still pushes in the old direction, a float32 master copy that overwrites the
shrunk weight at the next step, and an EMA that pulls it back: each undoes a shrink silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from specgd_common.tensors import local

from ..targets.find import Target
from ..targets.parameters import unwrap

STATE_RULES = ("keep", "reset", "scale")

# Squares of gradients or of updates: they carry the factor twice.
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta")
# Copies of the weight itself: float32 masters of mixed-precision optimizers, and "ax", the average
# of torch.optim.ASGD.
_MASTERS = ("master_param", "master_params", "master_weight", "master_weights", "fp32_param", "ax")

# Numbers of the step (mu_product is NAdam's; eta and mu are ASGD's). A scalar parameter has their
# shape, so that shape alone would take them for moments.
_COUNTERS = ("step", "mu_product", "eta", "mu")

Along = nn.Module | Mapping[str, Tensor]
NewValue = Callable[[Target, Tensor, int], Tensor]


def check_optimizer(optimizer: Any, rule: str, targets: Sequence[Target]) -> None:
    """Refuse an unknown rule, a non-optimizer, and an optimizer of another model.

    Raises:
        ValueError: For an unknown rule, or an optimizer that holds none of the targets.
        TypeError: For an object without ``state`` and ``param_groups``.
    """
    if rule not in STATE_RULES:
        raise ValueError(f"optimizer_state must be one of {STATE_RULES}, got {rule!r}")
    if optimizer is None:
        if rule != "keep":
            raise ValueError(f"optimizer_state={rule!r} needs optimizer=")
        return
    if not hasattr(optimizer, "state") or not hasattr(optimizer, "param_groups"):
        raise TypeError(f"optimizer must be a torch optimizer, got {type(optimizer).__name__}")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(t.parameter) in held for t in targets):
        raise ValueError(
            "optimizer holds none of the shrunk parameters; if it trains copies of them, "
            "pass the copies in along= (name -> tensor)"
        )


def state_changes(
    optimizer: Any, rule: str, targets: Sequence[Target], new: NewValue
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield ``(label, tensor, new value)`` for what changes with the weights inside the optimizer.

    Master copies always follow their weight. Under ``"scale"`` first moments carry the factor once
    and second moments twice, as if all past gradients had been that much smaller.
    """
    if optimizer is None:
        return
    for t in targets:
        for key, value in optimizer.state.get(t.parameter, {}).items():
            if not isinstance(value, Tensor) or value.shape != t.parameter.shape:
                continue
            if key in _COUNTERS:
                continue
            label = f"optimizer state {key} of {t.name}"
            if key in _MASTERS:
                yield label, local(value), new(t, value, 1)
            elif rule == "scale" and value.is_floating_point():
                yield label, local(value), new(t, value, 2 if key in _SQUARES else 1)


def reset_state(optimizer: Any, targets: Sequence[Target]) -> None:
    """Forget momentum and moments of the touched parameters; the optimizer starts them anew."""
    for t in targets:
        state = optimizer.state.get(t.parameter, {})
        if any(key in _MASTERS for key in state):
            for key, value in state.items():
                if isinstance(value, Tensor) and key not in _MASTERS:
                    value.zero_()
        else:
            # Every torch optimizer builds missing state at its next step, in the right place.
            optimizer.state.pop(t.parameter, None)


def along_changes(
    along: Along | Sequence[Along] | None, targets: Sequence[Target], new: NewValue
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield ``(label, tensor, new value)`` for copies of the model: EMA weights, float32 masters.

    Raises:
        ValueError: If a copy lacks a shrunk parameter or has another shape for it.
        TypeError: If a copy is neither a module nor a mapping.
    """
    copies = [] if along is None else [along] if isinstance(along, (nn.Module, Mapping)) else along
    for i, item in enumerate(copies):
        named = _named(item)
        for t in targets:
            name = next((n for n in (t.name, *t.aliases) if n in named), None)
            if name is None:
                raise ValueError(f"along[{i}] has no tensor named {t.name!r}")
            value = named[name]
            if value.shape != t.parameter.shape:
                raise ValueError(f"along[{i}] has {tuple(value.shape)} for {t.name!r}")
            yield f"along[{i}] {t.name}", local(value.detach()), new(t, value, 1)


def _named(copy: Along) -> Mapping[str, Tensor]:
    if isinstance(copy, nn.Module):
        # AveragedModel and other shadows hold the model under `module`.
        inner = getattr(copy, "module", copy)
        copy = unwrap(inner if isinstance(inner, nn.Module) else copy)
        return dict(copy.named_parameters(remove_duplicate=False))
    if isinstance(copy, Mapping):
        return {str(k).removeprefix("module."): v for k, v in copy.items()}
    raise TypeError(f"along takes modules and mappings of tensors, got {type(copy).__name__}")


def scaled_copy(x: Tensor, factor: Tensor, power: int, t: Target) -> Tensor:
    """Return ``x factor^power`` in the accumulation precision, ready to be swapped in."""
    wide = torch.promote_types(x.dtype, torch.float32)
    out = local(x.detach()).to(wide, copy=True)
    t.view(out).mul_(factor.to(wide) ** power)
    return out
