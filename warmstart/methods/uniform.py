"""Uniform shrinking: one factor for every weight, the control that direction has to beat."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..shrink.apply import commit
from ..shrink.factors import accumulation_dtype, check_floor
from ..shrink.per_parameter import factor_row
from ..shrink.report import ShrinkReport
from ..shrink.report_notes import statistics_notes
from ..targets.find import Patterns, Target, find_targets


def uniform_shrink(
    model: nn.Module,
    factor: float = 0.3,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    bias: str = "vector",
    inplace: bool = True,
    dry_run: bool = False,
    **handover: Any,
) -> ShrinkReport:
    """Multiply every selected weight by one factor: the control that direction has to beat.

        w <- factor w

    Args:
        model: Any module; changed in place.
        factor: In (0, 1].
        include: Which parameters, see ``find_targets``.
        exclude: Which parameters not.
        bias: ``"vector"`` shrinks biases too, ``"skip"`` leaves them.
        inplace: False shrinks a copy, found in ``report.model``.
        dry_run: Report only.
        **handover: ``optimizer``, ``optimizer_state``, ``along``, as in ``dash_shrink``.

    Returns:
        A ``ShrinkReport``.

    Raises:
        ValueError: For a factor outside (0, 1].

    Example:
        >>> import torch
        >>> from warmstart import uniform_shrink
        >>> layer = torch.nn.Linear(4, 3)
        >>> uniform_shrink(layer, 0.5).row("weight").mean_factor
        0.5
    """
    check_floor(factor, "factor")
    model = model if inplace else copy.deepcopy(model)
    targets, skipped = find_targets(
        model, units="filter", include=include, exclude=exclude, bias=bias
    )
    factors = {t.name: constant(t, factor) for t in targets}
    rows = [factor_row(t, factors[t.name], factor) for t in targets]
    notes = statistics_notes(model, rows)
    report = ShrinkReport(
        "uniform_shrink", {"factor": factor}, rows, skipped, notes, factors=factors
    )
    return commit(model, targets, report, inplace=inplace, dry_run=dry_run, **handover)


def constant(t: Target, factor: float) -> Tensor:
    """Return one factor for every unit of a target."""
    p = t.parameter
    ones = torch.ones([1] * p.ndim, dtype=accumulation_dtype(p), device=p.device)
    return ones * factor
