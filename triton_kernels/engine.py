"""The engine's entry: what is asked for is checked, resolved and run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .iterate.run import as_written, run, run_together
from .kernels.configuration import architecture
from .operator import orthogonalize_op, plain
from .planning.choose import ACCURACIES, SMALL
from .planning.choose import plan as choose_plan
from .planning.plan import Plan, Request
from .schedule.named import Schedule, ScheduleLike, is_triple, resolve_schedule

METHODS = ("auto", "newton_schulz", "gram", "precise", "svd", "smoothed")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _check(x: Tensor, method: str, eps: float, smoothing: float, tolerance: float | None) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise TypeError(f"x must be a dense (strided) tensor, got layout {x.layout}")
    if not x.is_floating_point() or x.dtype.itemsize < 2:
        raise TypeError(f"x must have a real floating dtype of at least 16 bits, got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"x must have at least 2 dimensions, got shape {tuple(x.shape)}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps must be positive and finite, got {eps}")
    if not (math.isfinite(smoothing) and smoothing > 0):
        raise ValueError(f"smoothing must be positive and finite, got {smoothing}")
    if tolerance is not None and not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be in [0, 1), got {tolerance}")


def _request(
    x: Tensor,
    method: str = "auto",
    schedule: ScheduleLike = None,
    steps: int | None = None,
    eps: float = 1e-7,
    dtype: torch.dtype | None = None,
    smoothing: float = 1e-2,
    tolerance: float | None = None,
    accuracy: str = "default",
    plan: Plan | None = None,
) -> Request:
    """Return what the arguments of `orthogonalize` ask for, once they are known to be good."""
    _check(x, method, eps, smoothing, tolerance)
    if accuracy not in ACCURACIES:
        raise ValueError(f"accuracy must be one of {ACCURACIES}, got {accuracy!r}")
    if dtype is not None and dtype not in _DTYPES:
        raise TypeError(f"dtype must be a floating dtype of 16 to 64 bits, got {dtype}")
    if plan is not None:
        method = "gram" if plan.form == "gram" else "newton_schulz"
        own = x.is_cuda and plan.tiles and plan.tiles_for(x.shape, architecture(x.device))
        return Request(
            method, plan.schedule, accuracy, eps, plan.dtype, smoothing, tolerance,
            plan.restarts, plan.tiles if own else (),
        )  # fmt: skip
    taken = None
    if schedule is not None or steps is not None or method in ("newton_schulz", "gram"):
        taken = resolve_schedule(schedule, steps)
        if method == "auto":
            method = "newton_schulz"
        if method != "gram" and is_triple(schedule):
            method = "torch_muon"
    return Request(method, taken, accuracy, eps, dtype, smoothing, tolerance)


def check_out(out: Tensor, x: Tensor) -> None:
    """Raise ValueError unless `orthogonalize` can write the result for x to `out`."""
    kinds = [(tuple(t.shape), t.dtype, t.device) for t in (out, x)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"out must have x's shape, dtype and device, {kinds[1]}, got {kinds[0]}")
    if not out.is_contiguous() or torch.compiler.is_compiling():
        raise ValueError(f"out must be row-major, and outside torch.compile, got {out.stride()}")
    if x is out or not x.numel():
        return
    # Compared by offsets in one storage: tensors without data have no addresses.
    aliases: bool = torch._C._is_alias_of(x, out)  # type: ignore[attr-defined]  # not in its stubs
    if not aliases:
        return
    far = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    first, start = int(x.storage_offset()), int(out.storage_offset())
    if first < start + out.numel() and start <= first + far:
        raise ValueError("out shares memory with x; pass x itself, or memory of its own")


def orthogonalize(
    x: Tensor,
    *,
    method: str = "auto",
    schedule: ScheduleLike = None,
    steps: int | None = None,
    eps: float = 1e-7,
    dtype: torch.dtype | None = None,
    smoothing: float = 1e-2,
    tolerance: float | None = None,
    accuracy: str = "default",
    plan: Plan | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""Replace every singular value of a matrix by one, or nearly so.

    .. math:: X = U \Sigma V^T \;\mapsto\; U V^T

    Args:
        x: (..., m, n), any real floating dtype of at least 16 bits, any strides; leading
            dimensions are a batch. Never changed, unless it is `out` as well.
        method: "auto" follows `plan()`: the cheapest schedule and form that reaches at least
            as far as five Polar Express steps. "newton_schulz" runs the direct form, "gram"
            the form on the Gram matrix, "precise" iterates until singular values are within
            1e-3 of one (condition numbers up to 1e4), "svd" is the exact compact polar factor
            and "smoothed" maps s to ``s / sqrt(s^2 + smoothing^2)``.
        schedule: None (the plan's for "auto", else five Polar Express steps with safety factor
            1.02), a name in `SCHEDULES`, coefficients, or a `Schedule`. One bare (a, b, c)
            triple reproduces torch.optim.Muon: bfloat16, norm clamped at `eps`.
        steps: Number of steps, default the schedule's own.
        eps: Floor of the norm for a bare triple, default 1e-7. All else needs no floor: it
            normalizes 1e-30 as well as 1e30.
        dtype: Arithmetic of the iteration; default see `planning.arithmetic_dtype`.
        smoothing: Unit of the singular values, default 1e-2; only for "smoothed".
        tolerance: Relative size below which "svd" takes a singular value for zero, default
            ``max(m, n) * eps``.
        accuracy: "default", "fast" or "high", see `plan()`; only for "auto".
        plan: A `Plan` whose schedule, form and dtype to follow instead of all of these, and whose
            tiles if it was made for x's shape and GPU.
        out: Where the result goes instead of a new tensor: row-major, with x's shape, dtype and
            device; it may be x itself, which is then overwritten. Not inside torch.compile.

    Returns:
        (..., m, n) in x's dtype; a new tensor, row-major, or on a GPU for m > n the transpose
        of row-major (what the computation leaves; a copy would cost a pass).

    Raises:
        TypeError: For integer, complex, sparse or 8-bit input.
        ValueError: For fewer than two dimensions, values outside the accepted ones, or an `out`
            that cannot take the result.

    Source:
        Jordan et al., Muon; Polar Express (arXiv 2505.16932).

    Example:
        >>> import torch
        >>> q = orthogonalize(torch.randn(3, 8, 32), method="precise")
        >>> torch.allclose(q @ q.mT, torch.eye(8).expand(3, 8, 8), atol=2e-3)
        True
    """
    options: dict[str, Any] = {
        "method": method, "schedule": schedule, "steps": steps, "eps": eps, "dtype": dtype,
        "smoothing": smoothing, "tolerance": tolerance, "accuracy": accuracy, "plan": plan,
    }  # fmt: skip
    if out is None:
        request = _request(x, **options)
        return orthogonalize_op(x.detach(), *plain(request))
    orthogonalize_together([x], [out], **options)
    return out


def orthogonalize_together(xs: Sequence[Tensor], outs: Sequence[Tensor], **options: Any) -> None:
    """Do ``orthogonalize(x, out=out, **options)`` for several batches.

    On a CPU batches of small matrices with one shorter side, such as LoRA factors of one rank,
    share one iteration on their Gram matrices: a few dozen products so small that calls take the
    time.

    Args:
        xs: (b, m, n) each.
        outs: Where the results go, of the same shapes, see `orthogonalize`; each its own x, or
            memory that none of xs has a part in.
        **options: Of `orthogonalize`.

    Example:
        >>> a, b = torch.randn(3, 8, 20), torch.randn(2, 30, 8)
        >>> results = [torch.empty_like(a), torch.empty_like(b)]
        >>> orthogonalize_together([a, b], results)
        >>> torch.allclose(results[1], orthogonalize(b), atol=1e-5)
        True
    """
    asked = []
    for x, out in zip(xs, outs, strict=True):
        asked.append((x, out, _request(x, **options)))
        check_out(out, x)
    for x, out, request in _without_those_that_share(asked) if len(asked) > 1 else asked:
        if type(x.detach()) is Tensor:
            run(x.detach(), out.detach(), request)
        else:
            # Subclasses, such as tensors without data, implement the operator, not what it does.
            out.copy_(orthogonalize_op(x.detach(), *plain(request)))


Asked = tuple[Tensor, Tensor, Request]


def _without_those_that_share(asked: Sequence[Asked]) -> list[Asked]:
    """Run what can share an iteration, and return the rest."""
    alike: dict[Any, list[Asked]] = {}
    for one in asked:
        x, _, request = one
        schedule = _shared_schedule(*one)
        alike.setdefault((schedule, min(x.shape[-2:]), request.accuracy), []).append(one)
    rest: list[Asked] = []
    for (schedule, *_), some in alike.items():
        if schedule is None or len(some) == 1:
            rest += some
            continue
        with as_written(some[0][0].device):
            run_together([(x, out) for x, out, _ in some], schedule)
    return rest


def _shared_schedule(x: Tensor, out: Tensor, request: Request) -> Schedule | None:
    """Return the schedule of a batch whose iteration needs nothing but its Gram matrices."""
    own = request.method, request.schedule, request.dtype or x.dtype
    if own != ("auto", None, torch.float32) or x.dtype != torch.float32:
        return None
    # Subclasses, such as tensors without data, implement the operator, and not what it does.
    plain = type(x) is type(out) is Tensor and x.device.type == "cpu" and x.ndim == 3
    if not plain or not 0 < min(x.shape) <= min(x.shape[-2:]) <= SMALL:
        return None
    if out.data_ptr() == x.data_ptr():
        return None  # the Gram form reads X when it writes the result
    chosen = choose_plan(tuple(x.shape[-2:]), len(x), accuracy=request.accuracy)
    return chosen.schedule if chosen.form == "gram" and not chosen.restarts else None
