"""Data-free peers of direction-aware shrinking, behind the same report.

uniform shrink, shrink-and-perturb in its four published definitions, and resets of the head.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .apply import commit
from .entries import unwrap
from .factors import accumulation_dtype, check_floor
from .fresh import Fresh, fresh_values
from .notes import statistics_notes
from .report import ShrinkReport
from .rows import add_value, factor_row, whole
from .targets import Patterns, Skipped, Target, find_targets


@dataclass(frozen=True)
class Preset:
    """One published definition of shrink-and-perturb: ``w <- shrink w + perturb noise``.

    Attributes:
        shrink: Factor on the old weights.
        perturb: Factor on the noise.
        noise: ``"fresh"`` (a newly drawn initialization), ``"initial"`` (the very weights that
            training started from) or ``"normal"`` (standard normal).
        everything: Normalization and raw parameters too, not only weights and biases of layers.
        source: Where it comes from.
    """

    shrink: float
    perturb: float
    noise: str
    everything: bool
    source: str


PRESETS: Mapping[str, Preset] = {
    "ash": Preset(0.4, 0.1, "fresh", True, "Ash & Adams 2020 (arXiv 1910.08475), official code"),
    "dash": Preset(0.3, 0.01, "normal", False, "the baseline in the official code of DASH"),
    "interpolate": Preset(0.2, 0.8, "initial", True, "the baseline in the official code of FIRE"),
    "dohare": Preset(1.0, 1e-5, "normal", True, "Dohare et al. 2024: every step, with decay"),
}


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


def shrink_and_perturb(
    model: nn.Module,
    preset: str = "ash",
    *,
    shrink: float | None = None,
    perturb: float | None = None,
    fresh: Fresh = None,
    seed: int = 0,
    include: Patterns = None,
    exclude: Patterns = None,
    inplace: bool = True,
    dry_run: bool = False,
    **handover: Any,
) -> ShrinkReport:
    """Shrink the weights and add noise: ``w <- shrink w + perturb noise``.

    Four definitions are in circulation under this name; each is a preset:

    - ``"ash"``: 0.4 w + 0.1 (a fresh initialization), every parameter (the original).
    - ``"dash"``: 0.3 w + 0.01 N(0, 1), weights and biases of layers (the baseline of DASH).
    - ``"interpolate"``: 0.2 w + 0.8 w_0 with the very initial weights, every parameter.
    - ``"dohare"``: w + 1e-5 N(0, 1), meant for every step beside weight decay.

    Args:
        model: Any module; changed in place.
        preset: One of the four names.
        shrink: Overrides the preset's factor, in [0, 1].
        perturb: Overrides the preset's factor on the noise, >= 0.
        fresh: ``"ash"``: where fresh values come from, see ``fresh_values``. ``"interpolate"``:
            the initial weights (a model or a state dict); required.
        seed: Of the noise; the caller's random state does not move.
        include: Which parameters, see ``find_targets``.
        exclude: Which parameters not.
        inplace: False changes a copy, found in ``report.model``.
        dry_run: Report only.
        **handover: ``optimizer``, ``optimizer_state``, ``along``, as in ``dash_shrink``.

    Returns:
        A ``ShrinkReport`` without factors: the noise cannot be undone by division.

    Raises:
        ValueError: For unknown presets, factors out of range, missing initial weights.

    Example:
        >>> import torch
        >>> from warmstart import shrink_and_perturb
        >>> layer = torch.nn.Linear(4, 3)
        >>> shrink_and_perturb(layer, "dash").settings["shrink"]
        0.3
    """
    shrink, perturb, p = check_strengths(preset, shrink, perturb)
    if p.noise == "initial" and (fresh is None or not isinstance(fresh, (nn.Module, Mapping))):
        raise ValueError(
            'preset "interpolate" needs fresh= the initial weights (a model or a state dict)'
        )
    model = model if inplace else copy.deepcopy(model)
    if p.everything and include is None:
        include = "*"
    targets, skipped = find_targets(model, units="filter", include=include, exclude=exclude)
    noise = _noise(model, targets, p.noise, fresh, seed)
    values: dict[str, Tensor] = {}
    rows = []
    with torch.no_grad():
        for t in targets:
            w = whole(t.parameter)
            rows.append(add_value(t, w * shrink + noise[t.name].to(w) * perturb, values))
    settings = {"preset": preset, "shrink": shrink, "perturb": perturb, "seed": seed}
    notes = statistics_notes(model, rows)
    report = ShrinkReport("shrink_and_perturb", settings, rows, skipped, notes)
    return commit(
        model, targets, report, values=values, inplace=inplace, dry_run=dry_run, **handover
    )


def head_reset(
    model: nn.Module,
    layers: int | Sequence[str] = 1,
    *,
    fresh: Fresh = None,
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
        fresh: Where fresh values come from, see ``fresh_values``.
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
    skipped += [Skipped(t.name, "not in the head") for t in everything if t.module not in chosen]
    drawn = fresh_values(model, [t.name for t in targets], fresh, seed)
    values: dict[str, Tensor] = {}
    rows = [add_value(t, whole(drawn[t.name]), values) for t in targets]
    report = ShrinkReport("head_reset", {"layers": sorted(chosen), "seed": seed}, rows, skipped)
    return commit(
        model, targets, report, values=values, inplace=inplace, dry_run=dry_run, **handover
    )


def check_strengths(
    preset: str, shrink: float | None, perturb: float | None
) -> tuple[float, float, Preset]:
    """The preset with its two numbers, overridden where given.

    Raises:
        ValueError: For an unknown preset and numbers out of range.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {tuple(PRESETS)}, got {preset!r}")
    p = PRESETS[preset]
    shrink = p.shrink if shrink is None else shrink
    perturb = p.perturb if perturb is None else perturb
    if not 0.0 <= shrink <= 1.0:
        raise ValueError(f"shrink must be in [0, 1], got {shrink}")
    if not 0.0 <= perturb < float("inf"):
        raise ValueError(f"perturb must be finite and >= 0, got {perturb}")
    return shrink, perturb, p


def constant(t: Target, factor: float) -> Tensor:
    """One factor for every unit of a target."""
    p = t.parameter
    ones = torch.ones([1] * p.ndim, dtype=accumulation_dtype(p), device=p.device)
    return ones * factor


def _noise(
    model: nn.Module, targets: Sequence[Target], kind: str, fresh: Fresh, seed: int
) -> Mapping[str, Tensor]:
    names = [t.name for t in targets]
    if kind in ("fresh", "initial"):
        return fresh_values(unwrap(model), names, fresh, seed)
    # Drawn on the CPU, so that the same seed gives the same weights on every device and rank.
    generator = torch.Generator().manual_seed(seed)
    return {t.name: torch.randn(t.parameter.shape, generator=generator) for t in targets}
