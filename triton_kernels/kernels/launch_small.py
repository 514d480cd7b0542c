"""Launching the one-launch orthogonalization."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..schedule.named import Schedule
from ..schedule.squares import chain_of_squares
from .configuration import PROGRAM_COLUMNS, Config, architecture, load_table, small_config
from .small import parts_kernel, small_kernel


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
    x: Tensor,
    schedule: Schedule,
    out: Tensor | None = None,
    config: Config | None = None,
    columns: int = PROGRAM_COLUMNS,
) -> Tensor:
    """Run a whole orthogonalization of (b, n, m), n <= 64, in one launch, or two for long rows.

    Args:
        x: (b, n, m), any strides and scale.
        schedule: Steps of degree 3, 5, 9 or 17.
        out: Where the result goes, default a new tensor; same dtype, any strides; or x itself.
        config: Default from the architecture's table.
        columns: A longer matrix is divided among several programs, each of which takes so many
            columns, a multiple of the configuration's.

    Raises:
        ValueError: For more rows than the architecture's table has, or another schedule.
    """
    y = torch.empty_like(x) if out is None else out
    batch, n, m = x.shape
    arch = architecture(x.device)
    config = small_config(arch, n) if config is None else config
    size = config["N"]
    numbers, links = _arguments(schedule)
    parts, columns = (1, 0) if m <= columns else (-(-m // columns), columns)
    common = {
        "COLUMNS": columns, "PRECISION": load_table(arch)["float32_precision"],
        "enable_fp_fusion": True,
    }  # fmt: skip
    scratch, grams = y, None
    if columns:
        grams = x.new_empty(batch, parts, size + 1, size, dtype=torch.float32)
        streaming = {key: config[key] for key in ("N", "BLOCK", "num_warps", "num_stages")}
        parts_kernel[(batch * parts,)](
            x, grams, n, m, parts, *x.stride(), **common, **streaming
        )  # fmt: skip
    if config["K"] < size:
        scratch = x.new_empty(batch * parts, 2, size, size, dtype=torch.float32)
    small_kernel[(batch * parts,)](
        x, y, scratch, grams, numbers, links, n, m, parts, *x.stride(), *y.stride(),
        STEPS=len(links), LINKS=len(numbers) // 3,
        SCHATTEN4=schedule.normalization == "schatten4", **common, **config,
    )  # fmt: skip
    return y
