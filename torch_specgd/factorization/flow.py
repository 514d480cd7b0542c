"""Gradient flow and spectral gradient flow, integrated with step control per seed."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..triton_kernels import orthogonalize
from .model import check_factors, gradients, loss
from .problem import Problem
from .trajectory import Trajectory, pack, unpack

Field = Callable[[Tensor], Tensor]
Done = Callable[[Tensor], Tensor]


def gradient_flow(
    factors: Sequence[Tensor],
    problem: Problem,
    times: Sequence[float] | Tensor,
    *,
    stop_loss: float = 0.0,
    rtol: float = 1e-6,
    atol: float = 1e-10,
    max_steps: int = 100_000,
) -> Trajectory:
    """Integrate dW_l/dt = -grad_{W_l} loss.

    Args:
        factors: Start [W_1, ..., W_L], each (S, d_l, d_{l-1}).
        problem: Target, mask and penalty.
        times: When to take snapshots, ascending from the start's time; the first is the start.
        stop_loss: A seed rests once its loss is at most this (default 0: never).
        rtol: Relative tolerance of a step, entry by entry.
        atol: Absolute tolerance of a step.
        max_steps: Bound on attempted steps.

    Returns:
        Snapshots at ``times``, float64.

    Raises:
        ValueError: On factors that do not multiply to the target's shape, or unordered times.
        RuntimeError: If max_steps does not suffice, or the flow leaves the finite numbers.

    Source:
        Bogacki and Shampine 1989, the 3(2) pair; each seed has its own step size.

    Example:
        >>> start = [torch.full((1, 1, 1), 0.1, dtype=torch.float64)] * 2
        >>> run = gradient_flow(start, Problem(torch.tensor([[4.0]])), [0.0, 50.0])
        >>> run.products[-1].round(decimals=4)
        tensor([[[4.]]], dtype=torch.float64)
    """
    return _flow(
        factors, problem, times, None, stop_loss, rtol, atol, min_step=0.0, max_steps=max_steps
    )


def spectral_gradient_flow(
    factors: Sequence[Tensor],
    problem: Problem,
    times: Sequence[float] | Tensor,
    *,
    smoothing: float = 1e-2,
    stop_loss: float = 0.0,
    rtol: float = 1e-4,
    atol: float = 1e-7,
    min_step: float | None = None,
    max_steps: int = 100_000,
) -> Trajectory:
    """Integrate dW_l/dt = -T(grad_{W_l} loss), T the polar factor or its smoothed form.

    T_beta(G) = G (G^T G + beta^2 I)^(-1/2) maps singular values s to s / sqrt(s^2 + beta^2).

    Args:
        factors: Start [W_1, ..., W_L], each (S, d_l, d_{l-1}).
        problem: Target, mask and penalty.
        times: When to take snapshots, ascending; the first is the start.
        smoothing: beta, in units of the gradient (default 1e-2). 0 takes the exact polar factor,
            which jumps wherever a singular value passes zero; see ``min_step``.
        stop_loss: A seed rests once its loss is at most this (default 0: never).
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance of a step.
        min_step: Steps are never shorter, whatever the error (default 0 with smoothing, 1e-3
            without: at a jump no step is short enough, and the flow chatters at this width).
        max_steps: Bound on attempted steps.

    Returns:
        Snapshots at ``times``, float64.

    Raises:
        ValueError: On factors that do not multiply to the target's shape, unordered times, or
            negative smoothing.
        RuntimeError: If max_steps does not suffice, or the flow leaves the finite numbers.

    Source:
        Kang et al., arXiv 2602.06385 (they analyse the smoothed operator).

    Example:
        >>> start = [torch.full((1, 1, 1), 0.1, dtype=torch.float64)] * 2
        >>> run = spectral_gradient_flow(start, Problem(torch.tensor([[4.0]])), [0.0, 0.9])
        >>> run.products[-1].round(decimals=3)  # (0.1 + 0.9)^2: the square root grows at rate 1
        tensor([[[1.]]], dtype=torch.float64)
    """
    if not smoothing >= 0.0:
        raise ValueError(f"smoothing must be at least 0, got {smoothing}")
    if min_step is None:
        min_step = 0.0 if smoothing > 0 else 1e-3
    return _flow(factors, problem, times, smoothing, stop_loss, rtol, atol, min_step, max_steps)


def _flow(
    factors: Sequence[Tensor],
    problem: Problem,
    times: Sequence[float] | Tensor,
    smoothing: float | None,
    stop_loss: float,
    rtol: float,
    atol: float,
    min_step: float,
    max_steps: int,
) -> Trajectory:
    start = [w.detach().double() for w in factors]
    check_factors(start)
    whole = (start[-1].shape[-2], start[0].shape[-1])
    if whole != tuple(problem.target.shape[-2:]):
        raise ValueError(
            f"the factors multiply to {whole}, but target is {tuple(problem.target.shape[-2:])}"
        )
    at = torch.as_tensor(times, dtype=torch.float64, device=start[0].device)
    if at.ndim != 1 or len(at) < 2 or not bool((at.diff() > 0).all()):
        raise ValueError(f"times must be at least two ascending numbers, but are {times!r}")
    shapes = [w.shape[1:] for w in start]

    def field(y: Tensor) -> Tensor:
        grads = gradients(unpack(y, shapes), problem)
        if smoothing is not None:
            method = "smoothed" if smoothing > 0 else "svd"
            grads = [orthogonalize(g, method=method, smoothing=smoothing or 1.0) for g in grads]
        return -pack(grads)

    def done(y: Tensor) -> Tensor:
        return loss(unpack(y, shapes), problem) <= stop_loss

    rows, steps, converged = integrate(
        field, pack(start), at, done=done, rtol=rtol, atol=atol, min_step=min_step,
        max_steps=max_steps,
    )  # fmt: skip
    snapshots = unpack(rows, shapes)
    losses = torch.stack([loss([w[k] for w in snapshots], problem) for k in range(len(at))])
    return Trajectory(at, snapshots, losses, steps, converged)


def integrate(
    field: Field,
    start: Tensor,
    times: Tensor,
    *,
    done: Done,
    rtol: float,
    atol: float,
    min_step: float,
    max_steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve dy/dt = field(y) for a batch of independent rows by the Bogacki-Shampine pair.

    Args:
        field: Maps (S, P) to (S, P), row by row.
        start: (S, P).
        times: (K,) ascending; the first belongs to ``start``.
        done: Maps (S, P) to (S,) bool; such rows rest.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        min_step: Shortest step; accepted whatever its error.
        max_steps: Bound on attempts.

    Returns:
        Snapshots (K, S, P), accepted steps (S,), and which rows rest at the end (S,).

    Raises:
        RuntimeError: If max_steps does not suffice, or a state is not finite.
    """
    y, k1 = start, field(start)
    t = times[0].expand(len(y)).clone()
    # One percent of the time in which the start would change by its own size.
    h = (0.01 * (y.norm(dim=1) + atol) / (k1.norm(dim=1) + atol)).clamp(min=min_step)
    steps = torch.zeros(len(y), dtype=torch.int64, device=y.device)
    attempts = 0
    snapshots = [y]
    for end in times[1:]:
        while bool((active := (t < end) & ~done(y)).any()):
            if attempts == max_steps:
                raise RuntimeError(
                    f"max_steps={max_steps} steps reached time {float(t.min()):.6g} of "
                    f"{float(times[-1]):.6g}; raise max_steps, loosen rtol, or set stop_loss"
                )
            attempts += 1
            step = torch.minimum(h, end - t) * active
            new, k4, error = _bogacki_shampine(field, y, k1, step)
            ratio = _error_ratio(error, y, new, step[:, None] * k1, rtol, atol)
            accept = active & ((ratio <= 1.0) | (step <= min_step))
            if not bool(torch.isfinite(new[accept]).all()):
                raise RuntimeError("the flow left the finite numbers; tighten rtol or min_step")
            t = torch.where(accept, torch.where(h >= end - t, end, t + step), t)
            y, k1 = torch.where(accept[:, None], new, y), torch.where(accept[:, None], k4, k1)
            steps += accept
            proposal = _next_step(step, ratio, h, accept).clamp(min=min_step)
            h = torch.where(active, proposal, h)
        snapshots.append(y)
    return torch.stack(snapshots), steps, done(y)


def _error_ratio(
    error: Tensor, y: Tensor, new: Tensor, move: Tensor, rtol: float, atol: float
) -> Tensor:
    scale = atol + rtol * torch.maximum(y.abs(), new.abs())
    ratio = (error / scale).square().mean(1).sqrt()
    # Near a rest point every error passes the tolerance, and steps would grow until they bounce
    # around it; an error of at most a tenth of the move keeps them contracting.
    return torch.maximum(ratio, 10 * error.norm(dim=1) / move.norm(dim=1).clamp(min=1e-300))


def _next_step(step: Tensor, ratio: Tensor, planned: Tensor, accept: Tensor) -> Tensor:
    growth = (0.9 * ratio.clamp(min=1e-9) ** (-1 / 3)).nan_to_num(0.2).clamp(0.2, 5.0)
    proposal = step * growth
    # A step cut short by a snapshot says nothing against the longer one that was planned.
    cut = accept & (step < planned)
    return torch.where(cut, torch.maximum(proposal, planned), proposal)


def _bogacki_shampine(
    field: Field, y: Tensor, k1: Tensor, step: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    h = step[:, None]
    k2 = field(y + h * (0.5 * k1))
    k3 = field(y + h * (0.75 * k2))
    new = y + h * (2 / 9 * k1 + 1 / 3 * k2 + 4 / 9 * k3)
    k4 = field(new)
    error = h * (-5 / 72 * k1 + 1 / 12 * k2 + 1 / 9 * k3 - 1 / 8 * k4)
    return new, k4, error
