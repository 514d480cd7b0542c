"""Tables of addresses: one launch over matrices that lie wherever they lie, without a stack."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["AddressTable", "address_table", "kept_table"]

_LINE = 16  # bytes that a GPU loads or copies at once, where the address allows it


class AddressTable(NamedTuple):
    """Where matrices of one shape, dtype and strides lie.

    Attributes:
        addresses: (count,) int64 on the device.
        like: One of the matrices.
        alignment: Bytes that divide all addresses, at most 16: what a kernel may load at once.
    """

    addresses: Tensor
    like: Tensor
    alignment: int


# Kept: a training loop asks for the same table in every step, a copy from the host takes longer
# than the kernel, and a graph capture may not contain one.
@lru_cache(maxsize=256)
def kept_table(values: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Return rows of integers as an int64 tensor on a device.

    Args:
        values: Rows of one length.
        device: Where the table goes.
    """
    return torch.tensor(values, dtype=torch.int64).to(device)


def address_table(tensors: Sequence[Tensor]) -> AddressTable:
    """Write down where matrices lie.

    Args:
        tensors: At least one, all of one shape, strides, dtype and device. They must outlive
            the launch.

    Raises:
        ValueError: For matrices that differ.
    """
    like = tensors[0]
    for t in tensors:
        if (t.shape, t.stride(), t.dtype, t.device) != (
            like.shape, like.stride(), like.dtype, like.device,
        ):  # fmt: skip
            raise ValueError(
                f"matrices of one table need one shape, strides, dtype and device, got "
                f"{tuple(t.shape)}, {t.stride()}, {t.dtype}, {t.device} beside "
                f"{tuple(like.shape)}, {like.stride()}, {like.dtype}, {like.device}"
            )
    addresses = tuple((t.data_ptr(),) for t in tensors)
    alignment = _LINE if all(a % _LINE == 0 for (a,) in addresses) else like.element_size()
    return AddressTable(kept_table(addresses, like.device).flatten(), like, alignment)
