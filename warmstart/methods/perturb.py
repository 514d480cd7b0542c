"""Shrink and perturb, in its four published definitions."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..shrink.apply import commit
from ..shrink.per_parameter import add_value, whole
from ..shrink.report import ShrinkReport
from ..shrink.report_notes import statistics_notes
from ..targets.find import Patterns, Target, find_targets
from ..targets.parameters import unwrap
from .initial_values import Initial, initial_values


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


def shrink_and_perturb(
    model: nn.Module,
    preset: str = "ash",
    *,
    shrink: float | None = None,
    perturb: float | None = None,
    fresh: Initial = None,
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
        fresh: ``"ash"``: where fresh values come from, see ``initial_values``. ``"interpolate"``:
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


def check_strengths(
    preset: str, shrink: float | None, perturb: float | None
) -> tuple[float, float, Preset]:
    """Return the preset with its two numbers, overridden where given.

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


def _noise(
    model: nn.Module, targets: Sequence[Target], kind: str, fresh: Initial, seed: int
) -> Mapping[str, Tensor]:
    names = [t.name for t in targets]
    if kind in ("fresh", "initial"):
        return initial_values(unwrap(model), names, fresh, seed)
    # Drawn on the CPU, so that the same seed gives the same weights on every device and rank.
    generator = torch.Generator().manual_seed(seed)
    return {t.name: torch.randn(t.parameter.shape, generator=generator) for t in targets}
