"""Integers that kernels read from device memory, such as addresses of tensors."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


# Kept: a training loop asks for the same table in every step, a copy from the host takes longer
# than the kernel, and a graph capture may not contain one.
@lru_cache(maxsize=256)
def kept_table(values: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Return rows of integers as an int64 tensor on a device.

    Args:
        values: Rows of one length.
        device: Where the table goes.
    """
    return torch.tensor(values, dtype=torch.int64, device="cpu").to(device)
