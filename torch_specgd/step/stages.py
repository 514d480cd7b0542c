"""What Muon's options do between momentum, polar factor and weight: one stage each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Size, Tensor

from specgd_common.cuts import cut_of

from ..distributed.layout import local_like, rewrapped, without_partial_sums
from ..groups.matrix_view import MatrixView, input_dims
from ..triton_kernels.kernels.owned import capturing
from .rule_state import rule_of, rule_shapes, start
from .second_moment import BETA, SECOND_MOMENTS, normalize
from .whole import alike, precondition_

Before = Callable[[Sequence[int], Sequence[Tensor], Sequence[Tensor]], None]
"""Changes updates in place, by (positions of the parameters, updates, gradients)."""
After = Callable[[Sequence[int], Sequence[Tensor]], list[Tensor]]
"""Returns updates, by (positions of the parameters, polar factors)."""

STAGES = ("precondition", "second_moment", "neuron_beta")  # settings that ask for one


def second_moment_of(group: Mapping[str, Any]) -> str | None:
    """Return "neuron", "element" or None: a coefficient alone means NorMuon's."""
    kind = group["second_moment"]
    return "neuron" if kind is None and group["neuron_beta"] is not None else kind


def stages_of(
    group: dict[str, Any],
    params: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    view: MatrixView,
) -> tuple[list[Before], list[After]]:
    """Return what a group's settings put before and after the polar factor of one step.

    Args:
        group: The group; its steps are counted here.
        params: Its matrices.
        states: Their state.
        view: How each is seen as matrices.

    Raises:
        RuntimeError: If a preconditioner's step is captured in a CUDA graph.
    """
    before: list[Before] = []
    after: list[After] = []
    rule, kind = rule_of(group["precondition"]), second_moment_of(group)
    if rule is not None:
        if capturing(params[0].device):
            raise RuntimeError(
                f"precondition must be None while a CUDA graph is captured, got "
                f"{group['precondition']!r}: its replays would never refresh what it divides by"
            )
        group["precondition_step"] += 1
        max_bytes = 1 if group["foreach"] is False else group["max_batch_bytes"]

        def precondition(
            members: Sequence[int], updates: Sequence[Tensor], grads: Sequence[Tensor]
        ) -> None:
            for places in alike(rule, params, members, view, max_bytes):
                some = [members[k] for k in places]
                precondition_(
                    rule,
                    [params[i] for i in some],
                    [updates[k] for k in places],
                    [-grads[k] if group["maximize"] else grads[k] for k in places],
                    [states[i] for i in some],
                    view,
                    group["precondition_step"],
                )

        before.append(precondition)
    if kind is not None:
        beta = BETA if group["neuron_beta"] is None else group["neuron_beta"]
        moments = [state[SECOND_MOMENTS[kind]] for state in states]
        after.append(second_moment(params, moments, beta, [view] * len(params), kind))
    return before, after


def second_moment(
    params: Sequence[Tensor],
    moments: Sequence[Tensor],
    beta: float,
    views: Sequence[str | MatrixView],
    kind: str,
) -> After:
    """Return the stage that divides by a running root mean square, "neuron" or "element"."""

    def divide(members: Sequence[int], updates: Sequence[Tensor]) -> list[Tensor]:
        result = []
        for i, o in zip(members, updates, strict=True):
            dims = input_dims(params[i], views[i]) if kind == "neuron" else ()
            # A DTensor knows what to sum over ranks.
            divided = normalize(rewrapped(o, params[i]), moments[i], beta, dims)
            result.append(local_like(divided, params[i]))
        return result

    return divide


def stage_shapes(group: Mapping[str, Any], p: Tensor) -> dict[str, Size]:
    """Return the shape of each entry that the stages may have in a matrix's state."""
    view = _view(group)
    dims = input_dims(p, view)
    neurons = Size(1 if i in dims else n for i, n in enumerate(p.shape))
    shapes = {SECOND_MOMENTS["neuron"]: neurons, SECOND_MOMENTS["element"]: p.shape}
    rule = group["precondition"]
    return shapes if rule is None else {**shapes, **rule_shapes(rule, p, view)}


def start_stages(group: Mapping[str, Any], p: Tensor, state: dict[str, Any]) -> None:
    """Add the state of a matrix's stages where it is not there yet."""
    view = _view(group)
    if group["precondition"] is not None:
        start(group["precondition"], p, view, state)
    kind = second_moment_of(group)
    if kind is None or SECOND_MOMENTS[kind] in state:
        return
    zeros = torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
    if kind == "neuron":
        zeros = without_partial_sums(zeros.sum(input_dims(p, view), keepdim=True))
    state[SECOND_MOMENTS[kind]] = zeros


def _view(group: Mapping[str, Any]) -> MatrixView:
    return MatrixView(group["matrix_view"], cut_of(group["split"]))
