"""Launching the one-launch orthogonalization, for a stack of matrices or a table of addresses."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..schedule.named import Schedule
from ..schedule.squares import chain_of_squares
from .addresses import AddressTable
from .configuration import Config, architecture, load_table, small_config
from .small import small_kernel, small_scratch_kernel

__all__ = ["orthogonalize_small", "orthogonalize_small_table"]

REGISTER_LIMIT = 32  # rows at most for all of it in registers


@lru_cache(maxsize=64)
def _steps_table(schedule: Schedule, device: torch.device) -> Tensor:
    """Return the links of every step; kept, because a graph capture may not copy to the device.

    Raises:
        ValueError: For a schedule with a step of degree 7, which is no chain of squares.
    """
    if any(len(step) == 4 for step in schedule.coefficients):
        raise ValueError(
            f"the one-launch kernel takes steps of degree 3, 5, 9 and 17, got {schedule}"
        )
    table = torch.zeros(len(schedule), 10)
    for row, step in zip(table, schedule.coefficients, strict=True):
        links = chain_of_squares(step).around_zero()
        numbers = [len(links), *(number for link in links for number in link)]
        row[: len(numbers)] = torch.tensor(numbers)
    return table.to(device)


def orthogonalize_small(
    x: Tensor, schedule: Schedule, out: Tensor | None = None, config: Config | None = None
) -> Tensor:
    """Run a whole orthogonalization of (b, n, m), n <= 64 (128 where it fits), in one launch.

    Args:
        x: (b, n, m), any strides and scale.
        schedule: Steps of degree 3, 5, 9 or 17.
        out: Where the result goes, default a new tensor; same dtype, any strides.
        config: Default from the architecture's table.

    Raises:
        ValueError: For more rows than the architecture's table has, or another schedule.
    """
    y = torch.empty_like(x) if out is None else out
    _launch(x, y, x, y, schedule, 0, config)
    return y


def orthogonalize_small_table(x: AddressTable, schedule: Schedule, out: AddressTable) -> None:
    """Do the same for matrices (n, m) that lie wherever they lie.

    Args:
        x: The matrices.
        schedule: As above.
        out: As many places for the results, of the same dtype.
    """
    count = len(x.addresses)
    like = (x.like.expand(count, *x.like.shape), out.like.expand(count, *out.like.shape))
    _launch(x.addresses, out.addresses, *like, schedule, min(x.alignment, out.alignment))


def _launch(
    x: Tensor,
    y: Tensor,
    x_like: Tensor,
    y_like: Tensor,
    schedule: Schedule,
    table: int,
    config: Config | None = None,
) -> None:
    batch, n, m = x_like.shape
    arch = architecture(x.device)
    config = small_config(arch, n) if config is None else config
    size = config["N"]
    steps = _steps_table(schedule, x.device)
    in_registers = size <= REGISTER_LIMIT
    scratch = steps  # unused in registers
    if not in_registers:
        scratch = torch.empty(batch, 4, size, size, dtype=torch.float32, device=x.device)
    (small_kernel if in_registers else small_scratch_kernel)[(batch,)](
        x, y, scratch, x_like, steps, n, m, len(schedule), *x_like.stride(), *y_like.stride(),
        SCHATTEN4=schedule.normalization == "schatten4", TABLE=table,
        PRECISION=load_table(arch)["float32_precision"], enable_fp_fusion=True, **config,
    )  # fmt: skip
