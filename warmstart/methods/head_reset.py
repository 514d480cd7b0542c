"""Reset of the head: the last layers are drawn anew, the rest is kept."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..shrink.apply import commit
from ..shrink.per_parameter import add_value, whole
from ..shrink.report import ShrinkReport
from ..targets.find import Target, find_targets
from ..targets.parameters import unwrap
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
            names of modules. A head that is tied to an embedding is drawn anew only by name, and
            the embedding with it.
        fresh: Where fresh values come from, see ``initial_values``.
        seed: Of the draw.
        inplace: False changes a copy, found in ``report.model``.
        dry_run: Report only.
        **handover: ``optimizer``, ``optimizer_state``, ``along``, as in ``dash_shrink``.

    Returns:
        A ``ShrinkReport``.

    Raises:
        ValueError: For an unknown module, more layers than there are, or a head that is tied to
            an embedding and was not named.

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
    chosen = _chosen(model, layers, everything)
    targets = [t for t in everything if chosen & set(t.owners)]
    skipped += [t.left("not in the head") for t in everything if t not in targets]
    notes = [
        f"{' and '.join(t.owners)} are one weight, drawn anew once" for t in targets if t.aliases
    ]
    drawn = initial_values(model, [t.name for t in targets], fresh, seed)
    values: dict[str, Tensor] = {}
    rows = [add_value(t, whole(drawn[t.name]), values) for t in targets]
    report = ShrinkReport(
        "head_reset", {"layers": sorted(chosen), "seed": seed}, rows, skipped, notes
    )
    return commit(
        model, targets, report, values=values, inplace=inplace, dry_run=dry_run, **handover
    )


def _chosen(model: nn.Module, layers: int | Sequence[str], everything: list[Target]) -> set[str]:
    """Return the names of the modules that are drawn anew."""
    if not isinstance(layers, int):
        chosen, known = set(layers), {owner for t in everything for owner in t.owners}
        if unknown := chosen - known:
            raise ValueError(
                f"no module with parameters is named {sorted(unknown)}; {sorted(known)}"
            )
        return chosen
    module = unwrap(model)
    weights = {t.name: t for t in find_targets(model)[0]}
    by_owner = {owner: t for t in weights.values() for owner in t.owners}
    order = [name for name, _ in module.named_modules(remove_duplicate=False) if name in by_owner]
    if not 1 <= layers <= len(order):
        raise ValueError(f"layers must be in [1, {len(order)}], got {layers}")
    for name in order[-layers:]:
        tables = [
            owner
            for owner in by_owner[name].owners
            if owner != name and isinstance(module.get_submodule(owner), nn.Embedding)
        ]
        if tables:
            raise ValueError(
                f"the head {name!r} is tied to the embedding {tables[0]!r}: drawn anew, it would "
                f"forget what tokens mean; layers=[{name!r}] does so all the same"
            )
    return set(order[-layers:])
