"""Reset of the head: the last layers are drawn anew, the rest is kept."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..shrink.apply import commit
from ..shrink.per_parameter import add_value, whole
from ..shrink.report import ShrinkReport
from ..targets.find import find_targets
from .initial_values import Initial, initial_values


def head_reset(
    model: nn.Module,
    layers: int | Sequence[str] = 1,
    *,
    fresh: Initial = None,
    seed: int = 0,
    inplace: bool = True,
    dry_run: bool = False,
    **handover: Any,
) -> ShrinkReport:
    """Draw the last layers anew and keep the rest.

    Args:
        model: Any module; changed in place.
        layers: How many of the last modules that hold weights (in order of registration), or the
            names of modules.
        fresh: Where fresh values come from, see ``initial_values``.
        seed: Of the draw.
        inplace: False changes a copy, found in ``report.model``.
        dry_run: Report only.
        **handover: ``optimizer``, ``optimizer_state``, ``along``, as in ``dash_shrink``.

    Returns:
        A ``ShrinkReport``.

    Raises:
        ValueError: For an unknown module, or more layers than there are.

    Source: Nikishin et al. 2022 (arXiv 2205.07802).

    Example:
        >>> import torch
        >>> from warmstart import head_reset
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> [r.name for r in head_reset(model).rows]
        ['1.weight', '1.bias']
    """
    model = model if inplace else copy.deepcopy(model)
    everything, skipped = find_targets(model, units="filter", include="*")
    owners = list(dict.fromkeys(t.module for t in find_targets(model)[0]))
    if isinstance(layers, int):
        if not 1 <= layers <= len(owners):
            raise ValueError(f"layers must be in [1, {len(owners)}], got {layers}")
        chosen = set(owners[-layers:])
    else:
        chosen = set(layers)
        unknown = chosen - {t.module for t in everything}
        if unknown:
            raise ValueError(f"no module with parameters is named {sorted(unknown)}; {owners}")
    targets = [t for t in everything if t.module in chosen]
    skipped += [t.left("not in the head") for t in everything if t.module not in chosen]
    drawn = initial_values(model, [t.name for t in targets], fresh, seed)
    values: dict[str, Tensor] = {}
    rows = [add_value(t, whole(drawn[t.name]), values) for t in targets]
    report = ShrinkReport("head_reset", {"layers": sorted(chosen), "seed": seed}, rows, skipped)
    return commit(
        model, targets, report, values=values, inplace=inplace, dry_run=dry_run, **handover
    )
