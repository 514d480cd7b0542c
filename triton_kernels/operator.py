"""The registered operator: one node in a graph for a whole orthogonalization.

Registration costs about 20 microseconds a call, so there is one for all of it and none for a
product; and only so does it run, fake and compile the same way with and without a GPU.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .iterate.arithmetic import as_written
from .iterate.exact import smoothed_polar, svd_polar
from .iterate.run import precise, run_plan, torch_muon
from .kernels.configuration import architecture
from .planning.choose import arithmetic_dtype, plan
from .schedule.named import Schedule

_FORMS = {"newton_schulz": "direct", "gram": "gram"}


class Request(NamedTuple):
    """What is asked of the engine, as the plain arguments that an operator can take.

    Attributes:
        method: One of `METHODS`, or "torch_muon" for a bare triple of coefficients.
        coefficients: Of all steps, one after the other.
        widths: How many of them each step has; none: the plan's own schedule.
        safety: Of the schedule, likewise below.
        normalization: See `Schedule`.
        accuracy: See `orthogonalize`, likewise below.
        eps: Floor of the norm.
        dtype: Arithmetic of the iteration.
        smoothing: Unit of the singular values.
        tolerance: Relative size of a singular value that counts as zero.
        restarts: Of the Gram form, default those that it needs.
        tiles: JSON of the kernels' configurations, "" for the plan's own.
    """

    method: str
    coefficients: list[float]
    widths: list[int]
    safety: float
    normalization: str
    accuracy: str
    eps: float
    dtype: torch.dtype | None
    smoothing: float
    tolerance: float | None
    restarts: list[int] | None = None
    tiles: str = ""


PLANNED: tuple[list[float], list[int], float, str] = ([], [], 1.0, "frobenius")
"""A request's arguments where the plan chooses the schedule."""


def flatten(schedule: Schedule) -> tuple[list[float], list[int], float, str]:
    """Return a schedule as the plain arguments of a `Request`."""
    steps = schedule.steps
    numbers = [c for step in steps for c in step]
    return numbers, [len(step) for step in steps], schedule.safety, schedule.normalization


@lru_cache(maxsize=64)
def _schedule(
    coefficients: tuple[float, ...], widths: tuple[int, ...], safety: float, normalization: str
) -> Schedule:
    """Undo `flatten`."""
    ends = [sum(widths[: k + 1]) for k in range(len(widths))]
    steps = tuple(coefficients[end - width : end] for end, width in zip(ends, widths, strict=True))
    return Schedule("given", steps, safety, 1e-3, normalization)


def run(x: Tensor, out: Tensor, request: Request) -> None:
    """Write to `out` what is asked for.

    Args:
        x: (..., m, n).
        out: Of x's shape, dtype and device, with leading dimensions that can be viewed as one. It
            may be x itself.
        request: What to do.
    """
    if x.numel() == 0:
        return
    batch, place = x.reshape(-1, *x.shape[-2:]), out.view(-1, *out.shape[-2:])
    method, dtype = request.method, request.dtype
    wide = torch.promote_types(dtype or x.dtype, torch.float32)
    with as_written(x.device):
        if method == "svd":
            place.copy_(svd_polar(batch.to(wide), request.tolerance))
            return
        if method == "smoothed":
            place.copy_(smoothed_polar(batch.to(wide), request.smoothing))
            return
        if x.shape[-2] > x.shape[-1]:
            batch, place = batch.mT, place.mT
        if method == "precise":
            place.copy_(precise(batch, wide))
            return
        steps = None
        if request.widths:
            numbers, widths = tuple(request.coefficients), tuple(request.widths)
            steps = _schedule(numbers, widths, request.safety, request.normalization)
        if method == "torch_muon":
            assert steps is not None
            place.copy_(torch_muon(batch, steps, request.eps, dtype or torch.bfloat16))
            return
        if dtype is None and method == "gram":
            dtype = wide
        elif dtype is None and method == "newton_schulz":
            arch = architecture(x.device)
            dtype = arithmetic_dtype(x.dtype, batch.shape[-2], x.device.type, True, arch)
        chosen = plan(
            batch.shape[1:], len(batch), x.dtype, x.device, request.accuracy, schedule=steps,
            form=_FORMS.get(method), arithmetic=dtype, restarts=request.restarts,
            tiles=json.loads(request.tiles) if request.tiles else None,
        )  # fmt: skip
        run_plan(batch, chosen, place)


def _new(x: Tensor, *request: Any) -> Tensor:
    out = empty_result(x)
    run(x, out, Request(*request))
    return out


def empty_result(x: Tensor, *_: object) -> Tensor:
    """Return an uninitialized result: row-major, on a GPU the transpose of that if X is tall.

    There the computation leaves tall results so, and a copy would cost a pass over memory.
    """
    if x.device.type != "cpu" and x.shape[-2] > x.shape[-1]:
        return x.new_empty(*x.shape[:-2], x.shape[-1], x.shape[-2]).mT
    return x.new_empty(x.shape)


orthogonalize_op = torch.library.custom_op(
    "torch_specgd::orthogonalize",
    _new,
    mutates_args=(),
    schema=(
        "(Tensor x, str method, float[] coefficients, int[] widths, float safety, "
        "str normalization, str accuracy, float eps, ScalarType? dtype, float smoothing, "
        "float? tolerance, int[]? restarts=None, str tiles='') -> Tensor"
    ),
)
orthogonalize_op.register_fake(empty_result)


@orthogonalize_op.register_vmap
def _batched(info: Any, in_dims: tuple[int | None, ...], x: Tensor, *request: Any) -> Any:
    assert in_dims[0] is not None  # nothing else is a tensor
    return orthogonalize_op(x.movedim(in_dims[0], 0), *request), 0
