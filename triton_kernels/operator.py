"""The registered operator: one node in a graph for a whole orthogonalization.

One registration for all of it, because a registered operator costs about 20 microseconds a
call, and because only so does it run, fake and compile the same way with and without a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .apart import Redo, averages_out, direct_apart, rounding
from .exact import smoothed_polar, svd_polar
from .iteration import direct, gram
from .kept_memory import KeptMemory
from .kernels.configuration import Config, architecture, load_table, worth_tiles
from .normalize import Start, begin
from .planning import SMALL, Leg, Plan, arithmetic_dtype, plan
from .precision import full_float32
from .products import Products, TorchProducts, cpu_has_amx
from .schedules import SCHEDULES, Schedule
from .squares import Chain, Step

__all__ = ["orthogonalize_into", "orthogonalize_op", "run_plan"]

_PRECISE_STEPS = 12
_ALL = 2**31
_CHUNK = 2**21  # elements worked on at a time on a CPU
_WORKSPACE = 2**26  # elements at most where every thread has its own matrix
_RING = 4  # n x n results of the direct form that exist at one time, at most
_KEPT = KeptMemory()  # the last call's buffers


def products_for(
    x: Tensor,
    dtype: torch.dtype,
    tiles: Mapping[str, Config] | None = None,
    ring: Tensor | None = None,
) -> Products:
    """Return Triton's products where their tiles fill the GPU, PyTorch's everywhere else."""
    if not x.is_cuda or dtype not in (torch.float16, torch.bfloat16):
        return TorchProducts(ring)
    if not worth_tiles(load_table(architecture(x.device)), x.shape[0], x.shape[-2]):
        return TorchProducts()
    from .kernels.launch import TritonProducts

    return TritonProducts(x.device, tiles)


def _go(
    start: Start,
    leg: Leg,
    ops: Products,
    out: Tensor | None = None,
    spare: Sequence[Tensor] = (),
    redo: Redo | None = None,
) -> Tensor:
    if out is not None and out.device.type == "cpu" and not leg.reads_x_first:
        # Whoever lets X be overwritten copies the result.
        out = None if out.data_ptr() == start.x.data_ptr() else out
    if leg.schedule.long:
        assert isinstance(ops, TorchProducts)  # no GPU's plan has such a leg
        return direct_apart(start, leg.schedule, ops, out, spare, redo)
    if leg.form == "direct":
        return direct(start, leg.schedule, ops, out, spare)
    return gram(start, leg.schedule, ops, leg.restarts, out)


def _members(start: Start, index: Tensor) -> Start:
    return Start(*(None if part is None else part[index] for part in start))  # type: ignore[arg-type]


def _together(n: int, m: int, dtype: torch.dtype) -> int:
    """Return how many (n, m) matrices a CPU works on at a time.

    Small ones all at once: there the calls are what costs. Large ones a few at a time: their
    products and the passes over them then stay in the cache.
    """
    if n <= SMALL:
        return _ALL
    size = max(1, _CHUNK // (n * m))
    if dtype == torch.bfloat16 and cpu_has_amx():
        # A matrix for each thread: oneDNN runs two products of 768 rows on two threads in the
        # time of one, since it splits a single one so small badly.
        threads = min(torch.get_num_threads(), max(1, _WORKSPACE // (n * m)))
        size = -(-size // threads) * threads
    return size


def run_plan(x: Tensor, chosen: Plan, out: Tensor, ops: Products | None = None) -> None:
    """Run a plan on (b, n, m), n <= m: a matrix takes the first leg that reaches far enough.

    Args:
        x: The batch.
        chosen: The plan.
        out: Where the result goes, (b, n, m) of any dtype and strides.
        ops: The products, default those for x's device.
    """
    if chosen.one_launch:
        from .kernels.launch_small import orthogonalize_small

        orthogonalize_small(x, chosen.legs[-1].schedule, out, chosen.configs().get("small"))
        return
    on_cpu = x.device.type == "cpu"
    size = _together(x.shape[-2], x.shape[-1], chosen.dtype) if on_cpu else x.shape[0]
    kept = on_cpu and all(leg.form == "direct" for leg in chosen.legs)
    room = _Room(x, min(size, x.shape[0]), chosen.dtype) if kept else None
    if ops is None:
        ops = products_for(x, chosen.dtype, chosen.configs(), room.ring if room else None)
    for part, place in zip(x.split(size), out.split(size), strict=True):
        same = ops.casts or place.dtype == chosen.dtype
        spare = [] if room is None else [buffer[: len(part)] for buffer in room.buffers]
        y = _run_legs(part, chosen, ops, place if same else None, spare)
        if y is not place:
            place.copy_(y)
    if room is not None:
        _KEPT.give(room.memory)


class _Room:
    """Two buffers for `size` matrices like x's and a ring of n x n ones, in memory that is kept.

    A tall X stays as it lies: a transposing copy would cost more than its slower Gram matrices.
    """

    def __init__(self, x: Tensor, size: int, dtype: torch.dtype) -> None:
        n, m = x.shape[-2:]
        tall = x.stride(-1) != 1
        large, small = 2 * size * n * m, _RING * size * n * n
        self.memory = _KEPT.take((large + small) * dtype.itemsize)
        flat = self.memory[: (large + small) * dtype.itemsize].view(dtype)
        buffers = flat[:large].view(2, size, *((m, n) if tall else (n, m))).unbind()
        self.buffers = [b.mT for b in buffers] if tall else list(buffers)
        self.ring = flat[large:].view(_RING, size, n, n)


def _run_legs(
    x: Tensor, chosen: Plan, ops: Products, out: Tensor | None, spare: Sequence[Tensor]
) -> Tensor:
    """Return the result, in `out` if that is given and all matrices take the same leg."""
    legs = chosen.legs
    # The first leg's bound is the tighter one, and serves a schedule made for a looser one too.
    bound = legs[0].schedule.normalization
    start = begin(x, chosen.dtype, bound, ops, spare[0] if spare else None)
    taken = _taken(start, legs)
    if len(set(taken)) == 1:
        return _go(start, legs[taken[0]], ops, out, spare, _redo(x, chosen))
    y = torch.empty_like(start.x)
    index = torch.tensor(taken, device="cpu")
    # All taken out before one runs: its products go where the start's lie.
    parts = [(k, index == k, _members(start, index == k)) for k in set(taken)]
    for k, at, members in parts:
        y[at] = _go(members, legs[k], ops, redo=_redo(x[at], chosen))
    return y


def _taken(start: Start, legs: Sequence[Leg]) -> list[int]:
    """Return for each matrix the first leg that reaches far enough and is safe; else the last."""
    last = len(legs) - 1
    if last == 0:
        return [0] * len(start.x)
    assert start.flatness is not None  # only a CPU's plan has several
    flat = start.flatness[:, None] >= torch.tensor([leg.flatness for leg in legs], device="cpu")
    long = [k for k, leg in enumerate(legs) if leg.schedule.long]
    if long and bool(flat[:, long].any()):
        found = rounding(start.r)
        for k in long:
            flat[:, k] &= averages_out(found, legs[k].schedule)
    # A NaN is nowhere above.
    flat[:, last] = True
    return [int(k) for k in flat.int().argmax(dim=1)]


def _redo(x: Tensor, chosen: Plan) -> Redo | None:
    """Return what takes members of x through the last leg, if there is another one before it."""
    if len(chosen.legs) == 1:
        return None
    plain = replace(chosen, legs=chosen.legs[-1:])
    return lambda lost: _run_legs(x[lost], plain, TorchProducts(), None, ())


def _torch_muon(x: Tensor, schedule: Schedule, eps: float, dtype: torch.dtype) -> Tensor:
    """Do what torch.optim.Muon does, batched: the norm in `dtype`, clamped at eps."""
    x = x.to(dtype)
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=eps)
    for a, b, c in schedule.coefficients:
        r = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(r, r, r, beta=b, alpha=c), x, beta=a)
    return x


def _iterate(
    x: Tensor,
    method: str,
    schedule: Schedule | None,
    accuracy: str,
    eps: float,
    dtype: torch.dtype | None,
    restarts: list[int] | None,
    tiles: str,
    out: Tensor,
) -> None:
    """Run an iterative method on (b, n, m), n <= m, and write the result to `out`."""
    wide = torch.promote_types(dtype or x.dtype, torch.float32)
    if method == "torch_muon":
        assert schedule is not None
        out.copy_(_torch_muon(x, schedule, eps, dtype or torch.bfloat16))
        return
    if method == "precise":
        # The tail of the table is Taylor's quintic, which converges to the last digit.
        steps = SCHEDULES["polar_express_8"].steps
        steps += (steps[-1],) * (_PRECISE_STEPS - len(steps))
        long = Schedule("precise", steps, 1.02, 1e-4)
        ops = TorchProducts()
        out.copy_(direct(begin(x, wide, long.normalization, ops), long, ops))
        return
    forms = {"newton_schulz": "direct", "gram": "gram"}
    form = forms.get(method)
    own = dtype
    if form == "gram" and own is None:
        own = wide
    if form == "direct" and own is None:
        own = arithmetic_dtype(x.dtype, x.shape[-2], x.device.type, True)
        own = wide if schedule is not None and schedule.long else own
    chosen = plan(
        tuple(x.shape[-2:]), x.shape[0], x.dtype, x.device, accuracy, schedule=schedule,
        form=form, arithmetic=own, restarts=restarts, tiles=json.loads(tiles) if tiles else None,
    )  # fmt: skip
    run_plan(x, chosen, out)


def _laid_out(like: Tensor, shape: torch.Size, tall: bool) -> Tensor:
    """Return an empty result: row-major, or on a GPU the transpose of row-major if it is tall."""
    if tall and like.device.type != "cpu":
        return like.new_empty(*shape[:-2], shape[-1], shape[-2]).mT
    return like.new_empty(shape)


def _write(
    out: Tensor,
    x: Tensor,
    method: str,
    coefficients: list[float],
    widths: list[int],
    safety: float,
    normalization: str,
    name: str,
    form: str,
    accuracy: str,
    eps: float,
    dtype: torch.dtype | None,
    smoothing: float,
    tolerance: float | None,
    restarts: list[int] | None = None,
    tiles: str = "",
) -> None:
    if x.numel() == 0:
        return
    batch, place = x.reshape(-1, *x.shape[-2:]), out.view(-1, *x.shape[-2:])
    if method in ("svd", "smoothed"):
        batch = batch.to(torch.promote_types(dtype or x.dtype, torch.float32))
        exact = method == "svd"
        place.copy_(svd_polar(batch, tolerance) if exact else smoothed_polar(batch, smoothing))
        return
    schedule = unflatten(name, coefficients, widths, safety, normalization)
    if x.shape[-2] > x.shape[-1]:
        batch, place = batch.mT, place.mT
    _iterate(batch, form or method, schedule, accuracy, eps, dtype, restarts, tiles, place)


def orthogonalize_into(out: Tensor, x: Tensor, *arguments: Any) -> None:
    """Run the operator and write the result to `out`.

    Args:
        out: Of x's shape, dtype and device, with leading dimensions that can be viewed as one. On
            a CPU it may be x itself.
        x: The input.
        *arguments: The operator's others, see its schema.
    """
    with full_float32(x.device):
        _write(out, x, *arguments)


def _new(x: Tensor, *arguments: Any) -> Tensor:
    out = _laid_out(x, x.shape, x.shape[-2] > x.shape[-1])
    orthogonalize_into(out, x, *arguments)
    return out


def flatten(schedule: Schedule | None) -> tuple[list[float], list[int], float, str, str]:
    """Return a schedule as the plain arguments that an operator can take."""
    if schedule is None:
        return [], [], 1.0, "frobenius", ""
    pairs = [(step, _numbers(step)) for step in schedule.steps]
    return (
        [c for _, row in pairs for c in row],
        # Of a chain's numbers with a minus sign.
        [-len(row) if isinstance(step, Chain) else len(row) for step, row in pairs],
        schedule.safety,
        schedule.normalization,
        schedule.name,
    )


def _numbers(step: Step | Chain) -> tuple[float, ...]:
    if isinstance(step, Chain):
        return (step.centre, *(number for link in step.links for number in link))
    return step


def _chain(numbers: tuple[float, ...]) -> Chain:
    centre, *rest = numbers
    return Chain(centre, tuple(zip(rest[::3], rest[1::3], rest[2::3], strict=True)))


def unflatten(
    name: str, coefficients: list[float], widths: list[int], safety: float, normalization: str
) -> Schedule | None:
    """Undo `flatten`."""
    if not widths:
        return None
    steps: list[Step | Chain] = []
    at = 0
    for width in widths:
        row = tuple(coefficients[at : at + abs(width)])
        steps.append(row if width > 0 else _chain(row))
        at += abs(width)
    return Schedule(name, tuple(steps), safety, 1e-3, normalization)


orthogonalize_op = torch.library.custom_op(
    "torch_specgd::orthogonalize",
    _new,
    mutates_args=(),
    schema=(
        "(Tensor x, str method, float[] coefficients, int[] widths, float safety, "
        "str normalization, str name, str form, str accuracy, float eps, ScalarType? dtype, "
        "float smoothing, float? tolerance, int[]? restarts=None, str tiles='') -> Tensor"
    ),
)


@orthogonalize_op.register_fake
def _fake(x: Tensor, *args: object) -> Tensor:
    return _laid_out(x, x.shape, bool(x.shape[-2] > x.shape[-1]))
