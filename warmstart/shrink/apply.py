"""Write new weights and everything that goes along with them: all of it, or nothing.

Products are computed before the first weight is written, and the old values stay at hand until
the last step has succeeded, so that an exception anywhere leaves every weight bit-identical.
Weights are written in place: storage, strides and Parameter objects stay, and with them the
optimizer's references, DDP's buckets and tied views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from specgd_common.tensors import local

from ..targets.find import Target
from ..targets.parameters import unwrap
from .factors import accumulation_dtype
from .optimizer_state import (
    Along,
    along_changes,
    check_optimizer,
    reset_state,
    scaled_copy,
    state_changes,
)
from .per_parameter import local_factor
from .report import ShrinkReport


@contextmanager
def replaced(
    parameters: Mapping[str, Tensor], values: MutableMapping[str, Tensor]
) -> Iterator[None]:
    """Write ``values`` into ``parameters``; put the old values back if the body raises.

    The value tensors hold the old values afterwards: swapping needs no memory beyond one parameter.

    Args:
        parameters: What is written, in place.
        values: Same names and shapes, in a dtype that holds the parameters' values exactly.
    """
    backups: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name, parameter in parameters.items():
                old = parameter.detach().clone()
                backups[name] = old
                parameter.copy_(values[name])
                values[name].copy_(old)
                backups[name] = values[name]
        yield
    except BaseException:
        with torch.no_grad():
            for name, old in backups.items():
                parameters[name].copy_(old)
        raise


def products(
    targets: Sequence[Target],
    factors: Mapping[str, Tensor],
    scratch: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return factor times weight (this rank's part), computed in float32 or float64.

    Args:
        targets: What is multiplied; not changed here.
        factors: By target name; broadcast against the target's view.
        scratch: Buffers shaped like the parameters that may be overwritten (the direction's, say);
            None allocates them.

    Raises:
        ValueError: If a factor is not finite.
    """
    own: dict[str, Tensor] = {}
    for t in targets:
        if not bool(factors[t.name].isfinite().all()):
            raise ValueError(f"factors of {t.name!r} {tuple(t.parameter.shape)} are not finite")
        own[t.name] = local_factor(t.parameter, factors[t.name])
    out: dict[str, Tensor] = {}
    with torch.no_grad():
        for t in targets:
            w = local(t.parameter.detach())
            buffer = None if scratch is None else local(scratch[t.name])
            if buffer is None:
                buffer = torch.empty_like(w, dtype=accumulation_dtype(w))
            torch.mul(t.view(w), own[t.name], out=t.view(buffer))
            out[t.name] = buffer
    return out


def apply_factors(targets: Sequence[Target], factors: Mapping[str, Tensor]) -> None:
    """Multiply each target by its factors, in place; all or nothing.

    Example:
        >>> import torch
        >>> from warmstart import apply_factors, find_targets
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> targets, _ = find_targets(layer)
        >>> before = layer.weight.detach().clone()
        >>> apply_factors(targets, {"weight": torch.tensor([[0.5], [1.0]])})
        >>> torch.equal(layer.weight[0], before[0] / 2)
        True
    """
    weights = {t.name: local(t.parameter.detach()) for t in targets}
    with replaced(weights, products(targets, factors)):
        pass


def commit(
    model: nn.Module,
    targets: Sequence[Target],
    report: ShrinkReport,
    *,
    values: MutableMapping[str, Tensor] | None = None,
    scratch: Mapping[str, Tensor] | None = None,
    inplace: bool = True,
    dry_run: bool = False,
    optimizer: Any = None,
    optimizer_state: str = "keep",
    along: Along | Sequence[Along] | None = None,
    recalibrate: Callable[[], Mapping[str, Tensor]] | None = None,
) -> ShrinkReport:
    """Carry out what a report announces: weights, optimizer state, copies, running statistics.

    Args:
        model: The module that ``targets`` belong to.
        targets: What changes.
        report: With ``factors`` to multiply by, unless ``values`` are given.
        values: New values by target name, in the accumulation dtype.
        scratch: See ``products``.
        inplace: False if ``model`` is a copy that the report hands out.
        dry_run: Check the arguments, change nothing.
        optimizer: Whose state goes along.
        optimizer_state: ``"keep"``, ``"reset"`` or ``"scale"``, for touched parameters only.
        along: Copies of the model that change in the same way (EMA weights, float32 masters).
        recalibrate: Called with the new weights in place; new values of buffers by name.

    Returns:
        ``report``.
    """
    if not inplace and (optimizer is not None or along is not None):
        raise ValueError("optimizer and along belong to the original model; use inplace=True")
    changes: list[tuple[str, Tensor, Tensor]] = []
    if optimizer is not None or along is not None or optimizer_state != "keep":
        check_optimizer(optimizer, optimizer_state, targets)
        if values is not None and optimizer_state == "scale":
            raise ValueError(
                f'{report.method} has no factors to scale by: "keep" or "reset" the state'
            )
        changes = _changes_along(targets, report, values, optimizer, optimizer_state, along)
    report.model = None if inplace else unwrap(model)
    report.applied = not dry_run
    if dry_run:
        return report
    new = (
        _checked(values) if values is not None else products(targets, report.factors or {}, scratch)
    )
    weights = {t.name: local(t.parameter.detach()) for t in targets}
    # Two transactions, one inside the other: if the inner one fails, both are rolled back.
    with (
        replaced(weights, new),
        replaced({n: x for n, x, _ in changes}, {n: v for n, _, v in changes}),
    ):
        statistics = dict(recalibrate()) if recalibrate is not None else {}
        buffers = {n: unwrap(model).get_buffer(n) for n in statistics}
        with replaced(buffers, statistics):
            pass
        if optimizer_state == "reset":
            reset_state(optimizer, targets)
    return report


def _checked(values: MutableMapping[str, Tensor]) -> dict[str, Tensor]:
    for name, value in values.items():
        if not bool(local(value).isfinite().all()):
            raise ValueError(f"new values of {name!r} {tuple(value.shape)} are not finite")
    return {name: local(value) for name, value in values.items()}


def _changes_along(
    targets: Sequence[Target],
    report: ShrinkReport,
    values: Mapping[str, Tensor] | None,
    optimizer: Any,
    optimizer_state: str,
    along: Along | Sequence[Along] | None,
) -> list[tuple[str, Tensor, Tensor]]:
    """Return optimizer tensors and copies with their new values, before anything is written."""

    def new(t: Target, x: Tensor, power: int) -> Tensor:
        if values is not None:
            return local(values[t.name]).clone()
        factors = report.factors or {}
        return scaled_copy(x, local_factor(t.parameter, factors[t.name]), power, t)

    with torch.no_grad():
        return [
            *state_changes(optimizer, optimizer_state, targets, new),
            *along_changes(along, targets, new),
        ]
