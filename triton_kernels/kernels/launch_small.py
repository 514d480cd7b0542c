"""Launching the one-launch orthogonalization."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..schedule.named import Schedule
from ..schedule.squares import chain_of_squares
from .configuration import Config, architecture, load_table, small_config
from .small import small_kernel


@lru_cache(maxsize=64)
def _arguments(schedule: Schedule) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the numbers of all links of a schedule's steps, and how many links each step has.

    Raises:
        ValueError: For a schedule with a step of degree 7, which is no chain of squares.
    """
    if any(len(step) == 4 for step in schedule.coefficients):
        raise ValueError(
            f"steps must be of degree 3, 5, 9 or 17 in the one-launch kernel, got {schedule}"
        )
    chains = [chain_of_squares(step).around_zero for step in schedule.coefficients]
    numbers = tuple(float(number) for links in chains for link in links for number in link)
    # As floats: Triton would compile integers anew that are one.
    return numbers, tuple(float(len(links)) for links in chains)


def orthogonalize_small(
    x: Tensor, schedule: Schedule, out: Tensor | None = None, config: Config | None = None
) -> Tensor:
    """Run a whole orthogonalization of (b, n, m), n <= 64, in one launch.

    Args:
        x: (b, n, m), any strides and scale.
        schedule: Steps of degree 3, 5, 9 or 17.
        out: Where the result goes, default a new tensor; same dtype, any strides; or x itself.
        config: Default from the architecture's table.

    Raises:
        ValueError: For more rows than the architecture's table has, or another schedule.
    """
    y = torch.empty_like(x) if out is None else out
    batch, n, m = x.shape
    arch = architecture(x.device)
    config = small_config(arch, n) if config is None else config
    size = config["N"]
    numbers, links = _arguments(schedule)
    scratch = y
    if config["K"] < size:
        scratch = torch.empty(batch, 2, size, size, dtype=torch.float32, device=x.device)
    small_kernel[(batch,)](
        x, y, scratch, numbers, links, n, m, *x.stride(), *y.stride(),
        STEPS=len(links), LINKS=len(numbers) // 3,
        SCHATTEN4=schedule.normalization == "schatten4",
        PRECISION=load_table(arch)["float32_precision"], enable_fp_fusion=True, **config,
    )  # fmt: skip
    return y
