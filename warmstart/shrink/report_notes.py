"""What a reader of the report should know before training on, in plain words."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from specgd_common.tensors import local

from ..direction.norms import batch_norms
from ..targets.find import Skipped, Target
from ..targets.parameters import unwrap
from .report import ParameterRow, some

# Below this mean |cosine| a gradient is orthogonal to its weight up to float32 rounding.
ORTHOGONAL = 1e-3
# Below this correlation less than a tenth of the spread of the cosines is shared.
UNRELIABLE = 0.3

# Reasons for which a tensor that looks like a weight is named once more, below the table.
_LOUD = ("raw", "torch.", "heads")
Trace = tuple[int, tuple[float, ...]]
# Model -> traces of its weights after the last shrink; dies with the model.
_LAST: weakref.WeakKeyDictionary[nn.Module, dict[str, Trace]] = weakref.WeakKeyDictionary()


def _blind(r: ParameterRow) -> bool:
    return (
        r.norm_follows is not None
        and r.mean_abs_cosine is not None
        and r.mean_abs_cosine < ORTHOGONAL
    )


def _like_chance(r: ParameterRow) -> bool:
    if r.mean_abs_cosine is None or r.null_mean_abs_cosine is None or _blind(r):
        return False
    centered = abs(r.mean_cosine or 0.0) < 0.05
    return r.units >= 100 and centered and r.mean_abs_cosine < 1.1 * r.null_mean_abs_cosine


# (which rows, what to say of them); {rows} stands for their names.
_OBSERVATIONS: Sequence[tuple[Callable[[ParameterRow], bool], str]] = (
    (
        _blind,
        "direction carries no information for {rows}: a normalization follows, so the {mode}"
        "gradient is orthogonal to the weight, every cosine is zero and the shrink is uniform",
    ),
    (
        _like_chance,
        "cosines of {rows} are distributed as with a shuffled gradient; compare with "
        "uniform_shrink before crediting the direction",
    ),
    (
        lambda r: r.reliability is not None and r.units >= 20 and r.reliability < UNRELIABLE,
        "even and odd batches disagree about the units of {rows} (correlation below "
        f"{UNRELIABLE}): their factors are mostly noise, uniform_shrink will do as well",
    ),
    (
        lambda r: r.unit_size == 1 and r.units > 1 and r.unit == "kernel",
        "units of {rows} are single numbers: the cosine is a sign, the factor 1 or the floor "
        "(units='filter' looks at whole outputs)",
    ),
)


def direction_notes(rows: Sequence[ParameterRow], grad_mode: str) -> list[str]:
    """Say where the direction carries no information, and where it has no gradient at all."""
    mode = "train-mode " if grad_mode == "train" else ""
    out = []
    for applies, text in _OBSERVATIONS:
        names = [r.name for r in rows if applies(r)]
        if names:
            out.append(text.format(rows=some(names), mode=mode))
    silent = [f"{r.name} ({r.zero_gradient} of {r.units})" for r in rows if r.zero_gradient]
    if silent:
        out.append(
            f"units without any gradient: {some(silent)}; zero_gradient='keep' leaves unused "
            "embeddings and experts as they are"
        )
    return out


def left_out_notes(skipped: Sequence[Skipped]) -> list[str]:
    """Name tensors that look like weights but are left alone without anybody's word."""
    loud = [s for s in skipped if len(s.shape) >= 2 and s.reason.startswith(_LOUD)]
    if not loud:
        return []
    return [
        f"left as they are although they have two dimensions or more: "
        f"{some([f'{s.name} ({s.reason})' for s in loud])}"
    ]


def statistics_notes(
    model: nn.Module, rows: Sequence[ParameterRow], batches: int | None = None
) -> list[str]:
    """Name stale running statistics; ``batches`` is a number where they can be renewed."""
    norms = batch_norms(unwrap(model))
    changed = any(r.norm_after != r.norm_before for r in rows)
    if not norms or not changed or batches:
        return []
    return [
        f"running statistics of {len(norms)} BatchNorm layers still belong to the old weights: "
        "accuracy in eval mode is meaningless until training resumes"
        + (", or use recalibrate_norm" if batches is not None else "")
    ]


def data_notes(data: Any, alpha: float, tail: int | None, seen: int) -> list[str]:
    """Say what a shuffled loader means, and the weight of the batches that ``tail`` left out."""
    out = []
    if type(getattr(data, "sampler", None)).__name__ == "RandomSampler" and alpha < 1.0:
        out.append(
            f"data is shuffled: the moving average rests mostly on about {round(1 / alpha, 1):g} "
            "random batches, while the published rule goes through the data oldest first"
        )
    if tail is not None and seen >= tail:
        left = (1 - alpha) ** tail
        out.append(f"batches before the last {tail} would have carried {left:.2g} of 1")
    return out


def warn_if_untrained(model: nn.Module, targets: Sequence[Target]) -> None:
    """Warn of a second shrink without training in between: the factors multiply."""
    if _LAST.get(unwrap(model)) == {t.name: _trace(t.parameter) for t in targets}:
        warnings.warn(
            "these weights were shrunk and have not been trained since: the factors multiply",
            UserWarning,
            stacklevel=3,
        )


def remember(model: nn.Module, targets: Sequence[Target]) -> None:
    """Note what the weights are after a shrink."""
    _LAST[unwrap(model)] = {t.name: _trace(t.parameter) for t in targets}


def _trace(parameter: Tensor) -> Trace:
    """Return a weight's version and some of its values: fused optimizers count no version up."""
    some_of = local(parameter.detach())
    while some_of.ndim > 1 and some_of.numel():
        some_of = some_of[-1]
    return parameter._version, tuple(some_of.flatten()[-8:].tolist())
