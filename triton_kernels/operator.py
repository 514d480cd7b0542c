"""The registered operator: one node in a graph for a whole orthogonalization.

Registration costs about 20 microseconds a call, so there is one for all of it and none for a
product; and only so does it run, fake and compile the same way with and without a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .iterate.run import run
from .planning.plan import Request, frozen
from .schedule.named import Schedule

PLANNED: tuple[list[float], list[int], float, str] = ([], [], 1.0, "frobenius")
"""A schedule's arguments where the plan chooses it."""


def plain(request: Request) -> tuple[Any, ...]:
    """Return a request as arguments of the operator, which takes no schedules and no mappings."""
    method, schedule, *rest, restarts, tiles = request
    own = PLANNED if schedule is None else flatten(schedule)
    text = json.dumps({kind: dict(config) for kind, config in tiles}) if tiles else ""
    weights = [] if schedule is None else list(schedule.weights)
    return (method, *own, *rest, None if restarts is None else list(restarts), text, weights)


def flatten(schedule: Schedule) -> tuple[list[float], list[int], float, str]:
    """Return all steps' coefficients in one list, how many each has, safety, normalization."""
    steps = schedule.steps
    numbers = [c for step in steps for c in step]
    return numbers, [len(step) for step in steps], schedule.safety, schedule.normalization


@lru_cache(maxsize=64)
def _schedule(
    coefficients: tuple[float, ...], widths: tuple[int, ...], safety: float, normalization: str,
    weights: tuple[float, ...],
) -> Schedule:  # fmt: skip
    """Undo `flatten`."""
    ends = [sum(widths[: k + 1]) for k in range(len(widths))]
    steps = tuple(coefficients[end - width : end] for end, width in zip(ends, widths, strict=True))
    return Schedule("given", steps, safety, 1e-3, normalization, weights=weights)


def _new(
    x: Tensor, method: str, coefficients: list[float], widths: list[int], safety: float,
    normalization: str, accuracy: str, eps: float, dtype: torch.dtype | None, smoothing: float,
    tolerance: float | None, restarts: list[int] | None = None, tiles: str = "",
    weights: Sequence[float] = (),
) -> Tensor:  # fmt: skip
    steps = None
    if widths:
        steps = _schedule(tuple(coefficients), tuple(widths), safety, normalization, tuple(weights))
    request = Request(
        method, steps, accuracy, eps, dtype, smoothing, tolerance,
        None if restarts is None else tuple(restarts), frozen(json.loads(tiles)) if tiles else (),
    )  # fmt: skip
    out = empty_result(x)
    run(x, out, request)
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
        "float? tolerance, int[]? restarts=None, str tiles='', float[] weights=[]) -> Tensor"
    ),
)
orthogonalize_op.register_fake(empty_result)


@orthogonalize_op.register_vmap
def _batched(info: Any, in_dims: tuple[int | None, ...], x: Tensor, *request: Any) -> Any:
    assert in_dims[0] is not None  # nothing else is a tensor
    return orthogonalize_op(x.movedim(in_dims[0], 0), *request), 0
