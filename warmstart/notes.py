"""What a reader of the report should know before training on, in plain words."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

from torch import nn

from .entries import unwrap
from .norms import batch_norms
from .report import ParameterRow
from .targets import Target

# Below this mean |cosine| a gradient is orthogonal to its weight up to float32 rounding.
ORTHOGONAL = 1e-3
# Below this correlation less than a tenth of the spread of the cosines is shared.
UNRELIABLE = 0.3

# Model -> versions of its weights after the last shrink; dies with the model.
_LAST: weakref.WeakKeyDictionary[nn.Module, dict[str, int]] = weakref.WeakKeyDictionary()


def direction_notes(rows: Sequence[ParameterRow], grad_mode: str) -> list[str]:
    """Where the direction carries no information, and where it has no gradient at all."""
    out = []
    blind = [
        r.name
        for r in rows
        if r.norm_follows is not None
        and r.mean_abs_cosine is not None
        and r.mean_abs_cosine < ORTHOGONAL
    ]
    if blind:
        out.append(
            f"direction carries no information for {_some(blind)}: a normalization follows, so the "
            f"{'train-mode ' if grad_mode == 'train' else ''}gradient is orthogonal to the weight, "
            "every cosine is zero and the shrink is uniform"
        )
    chance = [
        r.name
        for r in rows
        if r.units >= 100
        and r.mean_abs_cosine is not None
        and r.null_mean_abs_cosine is not None
        and r.name not in blind
        and abs(r.mean_cosine or 0.0) < 0.05
        and r.mean_abs_cosine < 1.1 * r.null_mean_abs_cosine
    ]
    if chance:
        out.append(
            f"cosines of {_some(chance)} are distributed as with a shuffled gradient; compare with "
            "uniform_shrink before crediting the direction"
        )
    unsure = [
        r.name
        for r in rows
        if r.reliability is not None and r.units >= 20 and r.reliability < UNRELIABLE
    ]
    if unsure:
        out.append(
            f"even and odd batches disagree about the units of {_some(unsure)} (correlation below "
            f"{UNRELIABLE}): their factors are mostly noise, uniform_shrink will do as well"
        )
    signs = [r.name for r in rows if r.unit_size == 1 and r.units > 1 and r.unit == "kernel"]
    if signs:
        out.append(
            f"units of {_some(signs)} are single numbers: the cosine is a sign, the factor 1 or "
            "the floor (units='filter' looks at whole outputs)"
        )
    silent = [f"{r.name} ({r.zero_gradient} of {r.units})" for r in rows if r.zero_gradient]
    if silent:
        out.append(
            f"units without any gradient: {_some(silent)}; zero_gradient='keep' leaves unused "
            "embeddings and experts as they are"
        )
    return out


def statistics_notes(
    model: nn.Module, rows: Sequence[ParameterRow], batches: int | None = None
) -> list[str]:
    """Running statistics that belong to the old weights; ``batches`` where they can be renewed."""
    norms = batch_norms(unwrap(model))
    changed = any(r.norm_after != r.norm_before for r in rows)
    if not norms or not changed or batches:
        return []
    return [
        f"running statistics of {len(norms)} BatchNorm layers still belong to the old weights: "
        "accuracy in eval mode is meaningless until training resumes"
        + (", or use recalibrate_norm" if batches is not None else "")
    ]


def order_notes(data: Any, alpha: float) -> list[str]:
    """A shuffled loader makes the newest batches a random sample."""
    sampler = type(getattr(data, "sampler", None)).__name__
    if sampler != "RandomSampler" or alpha >= 1.0:
        return []
    window = round(1.0 / alpha, 1)
    return [
        f"data is shuffled: the moving average rests mostly on about {window:g} random batches, "
        "while the published rule goes through the data oldest first"
    ]


def window_note(tail: int | None, seen: int | None, alpha: float) -> list[str]:
    """The weight that batches left out by ``tail`` would have had."""
    if tail is None or seen is None or seen < tail:
        return []
    return [f"batches before the last {tail} would have carried {(1 - alpha) ** tail:.2g} of 1"]


def warn_if_untrained(model: nn.Module, targets: Sequence[Target]) -> None:
    """Shrinking twice without training in between multiplies the factors."""
    if _LAST.get(unwrap(model)) == _versions(targets):
        warnings.warn(
            "these weights were shrunk and have not been trained since: the factors multiply",
            UserWarning,
            stacklevel=3,
        )


def remember(model: nn.Module, targets: Sequence[Target]) -> None:
    """Note the weights' versions after a shrink."""
    _LAST[unwrap(model)] = _versions(targets)


def _versions(targets: Sequence[Target]) -> dict[str, int]:
    return {t.name: t.parameter._version for t in targets}


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
