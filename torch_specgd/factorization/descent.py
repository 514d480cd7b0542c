"""Any torch optimizer on a factorization, with the flow's bookkeeping."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .model import check_factors, gradients, loss
from .problem import Problem
from .trajectory import Trajectory


def descend(
    factors: Sequence[Tensor],
    problem: Problem,
    make_optimizer: Callable[[list[Parameter]], Optimizer],
    steps: int,
    *,
    record_every: int = 1,
    make_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
) -> Trajectory:
    """Run an optimizer on the factors and takes a snapshot every few steps.

    Args:
        factors: Start [W_1, ..., W_L], each (S, d_l, d_{l-1}). With one seed the parameters are
            matrices, else stacks of S matrices, which spectral optimizers treat one by one.
        problem: Target, mask and penalty.
        make_optimizer: Builds the optimizer from the list of parameters [W_1, ..., W_L].
        steps: Number of steps.
        record_every: Steps between snapshots (default 1); the last step is always recorded.
        make_scheduler: Builds a learning-rate scheduler, stepped after every step.

    Returns:
        Snapshots whose times are step numbers; the first is the start.

    Raises:
        ValueError: On factors that do not fit, or steps or record_every below 1.

    Example:
        >>> from torch_specgd import SpecGD
        >>> start = [torch.full((1, 1, 1), 0.1, dtype=torch.float64)] * 2
        >>> run = descend(start, Problem(torch.tensor([[4.0]])), lambda p: SpecGD(p, lr=0.1), 9)
        >>> run.products[-1].round(decimals=6)
        tensor([[[1.]]], dtype=torch.float64)
    """
    check_factors(factors)
    if steps < 1 or record_every < 1:
        raise ValueError(
            f"steps and record_every must be at least 1, but are {steps}, {record_every}"
        )
    seeds = factors[0].shape[0]
    params = [Parameter((w[0] if seeds == 1 else w).detach().double().clone()) for w in factors]
    optimizer = make_optimizer(params)
    scheduler = make_scheduler(optimizer) if make_scheduler is not None else None

    def state() -> list[Tensor]:
        return [p.detach().reshape(seeds, *p.shape[-2:]) for p in params]

    times, snapshots = [0], [[w.clone() for w in state()]]
    for step in range(1, steps + 1):
        for p, g in zip(params, gradients(state(), problem), strict=True):
            p.grad = g.reshape(p.shape)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        if step % record_every == 0 or step == steps:
            times.append(step)
            snapshots.append([w.clone() for w in state()])
    stacked = [torch.stack(layer) for layer in zip(*snapshots, strict=True)]
    return Trajectory(
        torch.tensor(times, dtype=torch.float64),
        stacked,
        torch.stack([loss(s, problem) for s in snapshots]),
        torch.full((seeds,), steps),
        torch.zeros(seeds, dtype=torch.bool),
    )
