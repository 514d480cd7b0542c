"""Recycling: hidden units that do nothing are born again, and nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from specgd_common.tensors import is_dtensor

from ..direction.undisturbed import Loss, default_loss, to_device, undisturbed
from ..shrink.apply import replaced
from ..shrink.per_parameter import add_value, whole
from ..shrink.report import ParameterRow, ShrinkReport
from ..targets.find import Skipped, Target, find_targets, matches
from ..targets.parameters import unwrap
from .hidden_units import Units, follow_units
from .idle_units import CRITERIA, OLD, ages_of, idle_units, unit_scores
from .initial_values import Initial, initial_values


def recycle_units(
    model: nn.Module,
    data: Iterable[Any],
    loss_fn: Loss = cross_entropy,
    *,
    criterion: str = "dormant",
    tau: float = 0.025,
    share: float | None = None,
    layers: str | Sequence[str] | None = None,
    max_batches: int = 10,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    maturity: int = 0,
    ages: dict[str, Tensor] | None = None,
    fresh: Initial = None,
    seed: int = 0,
    optimizer: Any = None,
    inplace: bool = True,
    dry_run: bool = False,
) -> ShrinkReport:
    """Draw the incoming weights of idle hidden units anew and zero their outgoing ones.

        score_i = E|a_i| / mean_j E|a_j|        recycled where score_i <= tau

    Hidden units are followed through one forward pass: outputs of linear layers and convolutions,
    also those that are stored (in, out), through normalization, activation, pooling and flattening,
    also gated ones, to the layers that read them. Units that anything else reads (a residual sum)
    or that a tied weight makes are left alone, and named.

    Args:
        model: Any module; changed in place. Not for sharded models.
        data: Batches, ``(input, target)`` or dicts with labels.
        loss_fn: ``loss_fn(output, target)``, for the gradient's criterion.
        criterion: ``"dormant"``: by activation (ReDo). ``"gradient"``: by the loss's gradient with
            respect to the activation (GraMa). ``"utility"``: by activation times outgoing weights
            (continual backpropagation); needs ``share``.
        tau: Threshold on the score, >= 0; ReDo takes 0.025 to 0.1.
        share: Recycle this share of each layer's units, the lowest ones, in place of ``tau``.
        layers: Shell patterns of weights whose units may be recycled; None: all.
        max_batches: Use the first so many.
        forward: ``forward(model, batch) -> loss`` for batches or losses of any other kind.
        maturity: Units that were born fewer than so many calls ago are left alone: their outgoing
            weights start at zero, so that they score low whatever they may become.
        ages: A dictionary of yours for ``maturity``, kept (and saved) between calls: weight ->
            calls since each unit's birth. It is filled and updated here; units that no call has
            given birth to count as mature.
        fresh: Where fresh values come from, see ``initial_values``.
        seed: Of the draw.
        optimizer: Whose moments are cleared: of the touched rows, columns and normalizations.
        inplace: False changes a copy, found in ``report.model``.
        dry_run: Report only.

    Returns:
        A ``ShrinkReport`` without factors; its notes tell how many units of which layer.

    Raises:
        ValueError: For values out of range, empty data, or a model without such units.
        TypeError: For sharded models.

    Source: Sokar et al. 2023 (arXiv 2302.12902); Liu et al. 2025 (arXiv 2505.24061); Dohare et al.
    2024 (Nature 632).

    Example:
        >>> import torch
        >>> from warmstart import recycle_units
        >>> nn = torch.nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with torch.no_grad():
        ...     _ = model[0].weight[:3].zero_(), model[0].bias[:3].fill_(-1.0)
        >>> report = recycle_units(model, [(torch.randn(16, 4), torch.randint(2, (16,)))])
        >>> report.notes
        ['recycled 3 of 8 units of 0.weight']
    """
    _check(criterion, tau, share, max_batches)
    if maturity < 0 or (maturity and ages is None):
        raise ValueError(f"maturity must be >= 0 and needs ages= to count in, got {maturity}")
    model = model if inplace else copy.deepcopy(model)
    module = unwrap(model)
    if any(is_dtensor(p) for p in module.parameters()):
        raise TypeError("recycle_units takes models on one device; gather the sharded one first")
    run = forward or (lambda m, batch: default_loss(m, batch, loss_fn))
    batches = [to_device(b, module) for b in islice(data, max_batches)]
    if not batches:
        raise ValueError("data is empty: no batch to judge units by")
    found, skipped = _selected(module, batches, run, layers)
    scores = unit_scores(module, found, batches, run, criterion)
    old = [ages_of(u, score, ages or {}) for u, score in zip(found, scores, strict=True)]
    masks = [
        idle_units(score, tau, share, age >= maturity)
        for score, age in zip(scores, old, strict=True)
    ]
    values, rows = _new_values(module, found, masks, fresh, seed)
    buffers = _new_statistics(module, found, masks)
    settings = {"criterion": criterion, "tau": tau, "share": share, "seed": seed}
    settings |= {"maturity": maturity} if maturity else {}
    notes = [
        f"recycled {int(m.sum())} of {m.numel()} units of {' and '.join(u.sources)}"
        for u, m in zip(found, masks, strict=True)
        if m.any()
    ]
    report = ShrinkReport("recycle_units", settings, rows, skipped, notes or ["no idle unit"])
    report.model, report.applied = None if inplace else module, not dry_run
    if dry_run:
        return report
    parameters = dict(module.named_parameters())
    moments = _new_moments(parameters, optimizer, found, masks)
    with (
        replaced({n: parameters[n].detach() for n in values}, values),
        replaced({n: x for n, x, _ in moments}, {n: v for n, _, v in moments}),
        replaced({n: module.get_buffer(n) for n in buffers}, buffers),
    ):
        pass
    if ages is not None:
        for u, m, age in zip(found, masks, old, strict=True):
            ages[u.sources[0]] = torch.where(m, 0, age + 1).clamp_max(OLD)
    return report


def _check(criterion: str, tau: float, share: float | None, max_batches: int) -> None:
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {CRITERIA}, got {criterion!r}")
    if not 0.0 <= tau < float("inf"):
        raise ValueError(f"tau must be finite and >= 0, got {tau}")
    if share is not None and not 0.0 < share < 1.0:
        raise ValueError(f"share must be in (0, 1), got {share}")
    if criterion == "utility" and share is None:
        raise ValueError('criterion "utility" ranks units: give the share= to recycle')
    if max_batches < 1:
        raise ValueError(f"max_batches must be >= 1, got {max_batches}")


def _selected(
    module: nn.Module, batches: list[Any], run: Callable[..., Any], layers: Any
) -> tuple[list[Units], list[Skipped]]:
    """Return the units that may be recycled, and the weights whose units may not."""
    with undisturbed(module, "eval"), torch.no_grad():
        followed, _ = follow_units(module, partial(run, module, batches[0]))
    nothing = torch.empty(0)
    found, skipped = [], []
    for units in followed:
        if units.usable and (layers is None or matches(layers, units.sources, nothing)):
            found.append(units)
        elif units.readers or units.leaks:
            why = "not chosen" if units.usable else "its units are read by other things as well"
            skipped += [Skipped(n, why) for n in units.sources]
    if not found:
        raise ValueError(
            f"no hidden units of {type(module).__name__} can be recycled: a layer, an activation "
            "and a layer that alone reads it are needed"
        )
    return found, skipped


def _new_values(
    module: nn.Module, found: list[Units], masks: list[Tensor], fresh: Initial, seed: int
) -> tuple[dict[str, Tensor], list[ParameterRow]]:
    """Return new weights: fresh incoming rows, zero outgoing columns, neutral normalization."""
    targets = {t.name: t for t in find_targets(module, include="*")[0]}
    parameters = dict(module.named_parameters())
    born = [u for u, m in zip(found, masks, strict=True) if m.any()]
    incoming = [n for u in born for n in u.sources + u.biases]
    drawn = initial_values(module, incoming, fresh, seed) if incoming else {}
    values: dict[str, Tensor] = {}

    def value(name: str) -> Tensor:
        return values.setdefault(name, whole(parameters[name]))

    for u, m in zip(found, masks, strict=True):
        if not m.any():
            continue
        for n in u.sources + u.biases:
            v = value(n)
            u.outputs(v, n)[m] = u.outputs(drawn[n].to(v), n)[m]
        for name in _norm_parameters(u, parameters, len(m)):
            value(name)[m] = 1.0 if name.endswith("weight") else 0.0
        for n, columns in u.readers.items():
            u.inputs(value(n), n)[m.repeat_interleave(columns)] = 0.0
    rows = [add_value(_target(targets, n, parameters[n]), v, {}) for n, v in values.items()]
    return values, rows


def _norm_parameters(u: Units, parameters: Mapping[str, Tensor], units: int) -> list[str]:
    """Return the names of gains and shifts of the normalizations that units pass."""
    names = [f"{norm}.{a}".lstrip(".") for norm in u.norms for a in ("weight", "bias")]
    return [n for n in names if n in parameters and len(parameters[n]) == units]


def _target(targets: dict[str, Target], name: str, parameter: Tensor) -> Target:
    known = targets.get(name)
    return known or Target(name, parameter, f"Tensor.{name.rpartition('.')[2]}", "tensor", ())


def _new_statistics(
    module: nn.Module, found: list[Units], masks: list[Tensor]
) -> dict[str, Tensor]:
    """Return running statistics that belong to no unit that there was."""
    buffers = dict(module.named_buffers())
    out: dict[str, Tensor] = {}
    for u, m in zip(found, masks, strict=True):
        for norm in u.norms if m.any() else []:
            for attribute, neutral in (("running_mean", 0.0), ("running_var", 1.0)):
                name = f"{norm}.{attribute}".lstrip(".")
                if name in buffers and len(buffers[name]) == len(m):
                    out[name] = buffers[name].clone()
                    out[name][m] = neutral
    return out


def _new_moments(
    parameters: Mapping[str, Tensor], optimizer: Any, found: list[Units], masks: list[Tensor]
) -> list[tuple[str, Tensor, Tensor]]:
    """Return the optimizer's tensors with zeros where rows and columns are new.

    A unit that is born with the moments of the one before it takes its first steps in a direction
    that nobody has measured for it.
    """
    if optimizer is None:
        return []
    if not hasattr(optimizer, "state") or not hasattr(optimizer, "param_groups"):
        raise TypeError(f"optimizer must be a torch optimizer, got {type(optimizer).__name__}")
    out: dict[str, tuple[str, Tensor, Tensor]] = {}
    for u, m in zip(found, masks, strict=True):
        made = [*u.sources, *u.biases, *_norm_parameters(u, parameters, len(m))]
        touched = [(n, m, u.outputs) for n in made]
        touched += [(n, m.repeat_interleave(c), u.inputs) for n, c in u.readers.items()]
        for n, mask, view in touched if m.any() else []:
            p = parameters[n]
            for key, x in optimizer.state.get(p, {}).items():
                if isinstance(x, Tensor) and x.shape == p.shape and x.is_floating_point():
                    label = f"{key} of {n}"
                    new = out[label][2] if label in out else x.clone()
                    view(new, n)[mask] = 0.0
                    out[label] = (label, x, new)
    return list(out.values())
