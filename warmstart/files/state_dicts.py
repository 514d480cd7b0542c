"""State dict in, new state dict out: the same methods without a model.

Nothing is edited in place (a state dict's tensors are the live weights). Key order, dtypes,
devices, untouched entries and ``_metadata`` are kept; tensors that shared memory still share it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from specgd_common.cuts import Cut, unpacked
from specgd_common.fused_in_files import split_by_name, stored_by_head

from ..direction.gradient_direction import Direction, GradientDirection, check_alpha
from ..methods.fire import isometry, stored_in_out
from ..methods.perturb import check_strengths
from ..methods.uniform import constant
from ..shrink.apply import products
from ..shrink.factors import check_floor, check_zero_gradient
from ..shrink.per_parameter import add_value, factor_row, shrink_targets, whole
from ..shrink.report import ShrinkReport
from ..shrink.report_notes import left_out_notes
from ..targets.find import Patterns, Target
from ..targets.state_targets import StateUnits, check_orientation, state_targets

StateDict = dict[str, Any]


def shrink_state_dict(
    state_dict: Mapping[str, Any],
    directions: Mapping[str, Any] | GradientDirection,
    *,
    floor: float = 0.3,
    units: StateUnits = "kernel",
    include: Patterns = None,
    exclude: Patterns = None,
    bias: str = "vector",
    transposed: Patterns = None,
    zero_gradient: str = "floor",
    strict: bool = True,
    elsewhere: Mapping[str, tuple[int, ...]] | None = None,
) -> tuple[StateDict, ShrinkReport]:
    """Do ``dash_shrink`` for a state dict and saved directions.

    Args:
        state_dict: A model's ``state_dict()``.
        directions: Name -> moving average of negative gradients, or what
            ``GradientDirection.state_dict()`` gave.
        floor: Smallest factor, in (0, 1].
        units: See ``state_targets``.
        include: Default: exactly the tensors that have a direction.
        exclude: Not these.
        bias: ``"vector"`` or ``"skip"``.
        transposed: See ``state_targets``.
        zero_gradient: ``"floor"`` or ``"keep"``.
        strict: See ``state_targets``.
        elsewhere: See ``state_targets``.

    Returns:
        The new state dict and the report.

    Raises:
        KeyError: If a direction has no tensor, or an included tensor no direction.
        ValueError: For values out of range and shapes that differ.

    Example:
        >>> import torch
        >>> from warmstart import shrink_state_dict
        >>> new, report = shrink_state_dict(
        ...     {"fc.weight": torch.ones(2, 2)},
        ...     {"fc.weight": torch.tensor([[1.0, 1.0], [-1.0, -1.0]])},
        ... )
        >>> new["fc.weight"][:, 0]
        tensor([1.0000, 0.3000])
    """
    check_floor(floor)
    check_zero_gradient(zero_gradient)
    direction, alpha = saved_direction(directions)
    given = direction.average
    unknown = [n for n in given if n not in state_dict]
    if unknown:
        raise KeyError(f"directions for {unknown[:5]} have no tensor in the state dict")
    chosen = include if include is not None else (lambda name, x: name in given)
    targets, skipped = state_targets(
        state_dict,
        units=units,
        include=chosen,
        exclude=exclude,
        bias=bias,
        transposed=transposed,
        strict=strict,
        elsewhere=elsewhere,
    )
    if not callable(units):
        check_orientation(targets)
    missing = [t.name for t in targets if t.name not in given]
    if missing:
        raise KeyError(f"no direction for {missing[:5]}")
    for t in targets:
        if given[t.name].shape != t.parameter.shape:
            raise ValueError(f"direction of {t.name!r} is {tuple(given[t.name].shape)}")
        if not bool(given[t.name].isfinite().all()):
            raise ValueError(f"direction of {t.name!r} is not finite")
    factors, rows = shrink_targets(targets, direction, floor, zero_gradient)
    settings = {"alpha": alpha, "floor": floor, "bias": bias, "zero_gradient": zero_gradient}
    batches = direction.num_batches
    notes = left_out_notes(skipped)
    report = ShrinkReport("dash", settings, rows, skipped, notes, batches, factors=factors)
    return with_values(state_dict, targets, products(targets, factors)), report


def uniform_state_dict(
    state_dict: Mapping[str, Any], factor: float = 0.3, **selection: Any
) -> tuple[StateDict, ShrinkReport]:
    """Do ``uniform_shrink`` for a state dict; ``selection`` as in ``state_targets``."""
    check_floor(factor, "factor")
    targets, skipped = state_targets(state_dict, **selection)
    factors = {t.name: constant(t, factor) for t in targets}
    rows = [factor_row(t, factors[t.name], factor) for t in targets]
    notes = left_out_notes(skipped)
    report = ShrinkReport("uniform", {"factor": factor}, rows, skipped, notes, factors=factors)
    return with_values(state_dict, targets, products(targets, factors)), report


def perturb_state_dict(
    state_dict: Mapping[str, Any],
    preset: str = "dash",
    *,
    shrink: float | None = None,
    perturb: float | None = None,
    fresh: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    **selection: Any,
) -> tuple[StateDict, ShrinkReport]:
    """Do ``shrink_and_perturb`` for a state dict.

    The presets ``"ash"`` and ``"interpolate"`` need ``fresh``: the state dict of a newly built, or
    of the initial, model. ``selection`` as in ``state_targets``.
    """
    shrink, perturb, p = check_strengths(preset, shrink, perturb)
    if p.noise != "normal" and fresh is None:
        raise ValueError(f"preset {preset!r} needs the values of a fresh or initial model")
    if p.everything and selection.get("include") is None:
        selection["include"] = lambda name, x: x.is_floating_point()
    targets, skipped = state_targets(state_dict, **selection)
    values: dict[str, Tensor] = {}
    rows = []
    for t in targets:
        w = whole(t.parameter)
        normal = p.noise == "normal"
        noise = _noise(t.name, w.shape, seed) if normal else matching(fresh or {}, t)
        rows.append(add_value(t, w * shrink + noise.to(w) * perturb, values))
    settings = {"preset": preset, "shrink": shrink, "perturb": perturb, "seed": seed}
    report = ShrinkReport("perturb", settings, rows, skipped, left_out_notes(skipped))
    return with_values(state_dict, targets, values), report


def fire_state_dict(
    state_dict: Mapping[str, Any],
    strength: float = 1.0,
    *,
    heads: int | None = None,
    **selection: Any,
) -> tuple[StateDict, ShrinkReport]:
    """Do ``fire_reinit`` for a state dict; ``selection`` as in ``state_targets``.

    Embeddings are told by their usual names and left alone; exclude others by theirs. Weights that
    are stored (in, out) are told by the biases beside them; name others in ``transposed``. Layers
    that store q, k and v of one head after those of another (Bloom, GPT-NeoX, DeBERTa) are left,
    with a note, unless ``heads`` tells how many there are.
    """
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength must be in (0, 1], got {strength}")
    if heads is not None and heads < 1:
        raise ValueError(f"heads must be >= 1, got {heads}")
    found, skipped = state_targets(state_dict, **{**selection, "bias": "skip"})
    targets = []
    for t in found:
        why = _no_isometry(t, heads, selection.get("include") is not None)
        skipped += [t.left(why)] if why else []
        targets += [] if why else [t]
    check_orientation(targets)
    shapes = {n: tuple(x.shape) for n, x in state_dict.items() if isinstance(x, Tensor)}
    shapes = {**(selection.get("elsewhere") or {}), **shapes}
    values: dict[str, Tensor] = {}
    rows = []
    for t in targets:
        w = whole(t.parameter)
        new = w.lerp(isometry(w, t.kind, file_cut(t, shapes, heads)), strength)
        rows.append(add_value(t, new, values))
    notes = left_out_notes(skipped)
    report = ShrinkReport("fire", {"strength": strength}, rows, skipped, notes)
    return with_values(state_dict, targets, values), report


def _no_isometry(t: Target, heads: int | None, named: bool) -> str:
    """Tell why a tensor is left alone, or return the empty string."""
    if t.parameter.ndim < 2 or t.direction_of is not None:
        return "no matrix"
    if t.kind.startswith("Embedding") and not named:
        return "an embedding"
    shape = tuple(t.parameter.shape)
    if heads is not None and stored_by_head(t.name, shape) and shape[1] % heads:
        raise ValueError(f"heads must divide the {shape[1]} rows of q in {t.name!r}, got {heads}")
    if heads is None and stored_by_head(t.name, shape):
        return "heads lie one after the other, nobody knows how many: give heads (--heads)"
    return ""


def file_cut(t: Target, shapes: Mapping[str, tuple[int, ...]], heads: int | None) -> Cut | None:
    """Return how a tensor of a file is cut along its outputs, counted as dimension 0."""
    shape, name = t.parameter.shape, f"{t.module}.{t.kind.partition('.')[2]}".lstrip(".")
    if len(shape) != 2:
        return None
    if "weight_ih" in name or "weight_hh" in name:
        # The hidden size is the output of a projection, or the input of the other matrix.
        others = (re.sub("_(ih|hh)", "_hr", name), re.sub("_(ih|hh)", "_hh", name))
        hidden = next((shapes[key][1] for key in others if key in shapes), 0)
        gates = shape[0] // hidden if hidden else 0
        return (0, (hidden,) * gates) if gates in (3, 4) else None
    flipped = stored_in_out(t.kind, 2)
    cut = split_by_name(name, shape, stored_in_out=flipped, shapes=shapes, heads=heads)
    return None if cut is None else (0, *unpacked(cut)[1:])


def saved_direction(given: Any) -> tuple[Direction, float | None]:
    """Return the direction that ``GradientDirection.state_dict()`` or a plain mapping holds.

    Raises:
        TypeError: For values of another kind.
        ValueError: For halves of other parameters or shapes.
    """
    if isinstance(given, GradientDirection):
        given = given.state_dict()
    if not isinstance(given, Mapping):
        raise TypeError(f"directions must be a mapping, got {type(given).__name__}")
    plain = isinstance(given.get("directions", Tensor()), Tensor)
    saved: Mapping[str, Any] = {"directions": given} if plain else given
    average, odd = saved["directions"], saved.get("odd_batches")
    batches, alpha = saved.get("num_batches", 0), saved.get("alpha")
    if isinstance(batches, bool) or not isinstance(batches, int) or batches < 0:
        raise TypeError(f"num_batches must be an integer >= 0, got {batches!r}")
    if alpha is not None:
        check_alpha(alpha)
    for key, tensors in (("directions", average), ("odd_batches", odd)):
        if not isinstance(tensors, Mapping):
            if key == "odd_batches" and odd is None:
                continue
            raise TypeError(f"{key} must be tensors by name, got {type(tensors).__name__}")
        for name, d in tensors.items():
            if not isinstance(d, Tensor) or not d.is_floating_point():
                raise TypeError(f"{key} of {name!r} must be a floating-point tensor")
    if odd is not None and {n: d.shape for n, d in odd.items()} != {
        n: d.shape for n, d in average.items()
    }:
        raise ValueError("odd_batches and directions must have the same names and shapes")
    return Direction(average, odd, batches), alpha


def _noise(name: str, shape: torch.Size, seed: int) -> Tensor:
    """Draw normal noise that depends on the tensor's name, not on which tensors came before it.

    Shards are edited one by one: one generator per call would give all of them the same noise.
    """
    generator = torch.Generator().manual_seed(seed_of(name, seed))
    return torch.randn(shape, generator=generator)


def seed_of(name: str, seed: int) -> int:
    """Return a seed for one tensor."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def matching(fresh: Mapping[str, Tensor], t: Target) -> Tensor:
    """Return a fresh model's value of a target."""
    if t.name not in fresh:
        raise ValueError(f"the fresh model has no tensor named {t.name!r}")
    if fresh[t.name].shape != t.parameter.shape:
        raise ValueError(f"fresh {t.name!r} is {tuple(fresh[t.name].shape)}")
    return fresh[t.name]


def with_values(
    state: Mapping[str, Any], targets: Sequence[Target], values: Mapping[str, Tensor]
) -> StateDict:
    """Return a new mapping of the same kind, with rounded values under every name of a target."""
    new: dict[str, Tensor] = {}
    for t in targets:
        if not bool(values[t.name].isfinite().all()):
            raise ValueError(f"new values of {t.name!r} are not finite")
        value = values[t.name].to(t.parameter.dtype)
        new.update(dict.fromkeys((t.name, *t.aliases), value))
    out = type(state)((k, new.get(k, v)) for k, v in state.items())  # type: ignore[call-arg]
    if hasattr(state, "_metadata"):
        out._metadata = state._metadata  # type: ignore[attr-defined]
    return out  # type: ignore[return-value]
