"""Launching the products: grids, strides, tables of addresses, and the Products they make up."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
from torch import Tensor

from .addresses import AddressTable
from .apply import apply_kernel
from .configuration import Config, architecture, choose, load_table, symmetric_tiles
from .symmetric import symmetric_kernel

__all__ = ["TritonProducts", "apply", "gram_of_table", "symmetric"]

GROUP = 8  # rows of tiles that share columns in L2


def _precision(table: dict, dtype: torch.dtype) -> str:
    return table["float32_precision"] if dtype == torch.float32 else "ieee"


def _describable(*tensors: Tensor) -> bool:
    """Whether tensor descriptors can read these: unit inner stride, 16-byte rows and bases."""
    return all(
        t.stride(-1) == 1
        and all(s * t.element_size() % 16 == 0 for s in t.stride()[:-1])
        and t.data_ptr() % 16 == 0
        for t in tensors
    )


def _refuse_long_strides(*tensors: Tensor) -> None:
    """Offsets inside a tile of at most 256 rows are 32-bit; everything beyond is 64-bit."""
    for t in tensors:
        if max(t.stride()[-2:]) >= 2**23:
            raise ValueError(
                f"the kernels take row and column strides below 2^23 elements, got strides "
                f"{t.stride()} for shape {tuple(t.shape)}; pass a contiguous copy"
            )


def _scratch(size: int, alignment: int, stream: int | None) -> Tensor:
    return torch.empty(size, dtype=torch.int8, device="cuda")


def _settle(
    table: dict, kind: str, m: int, first: Tensor, second: Tensor, config: dict | None
) -> dict:
    """Choose a configuration, and give tensor descriptors their memory where they are used."""
    _refuse_long_strides(first, second)
    batch, n, _ = first.shape
    describable = _describable(first, second)
    if config is None or (config["DESCRIPTOR"] and not describable):
        config = choose(table, kind, first.element_size(), batch, n, m, describable)
    if config["DESCRIPTOR"]:
        triton.set_allocator(_scratch)
    return config


def symmetric(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    scalars: tuple[float, float, float] = (1.0, 0.0, 0.0),
    out_dtype: torch.dtype | None = None,
    config: dict | None = None,
) -> Tensor:
    """Return ``alpha A B^T + beta C + gamma I``.

    Args:
        a: (b, n, k), any strides.
        b: (b, n, k), such that A B^T is symmetric.
        c: (b, n, n), or None.
        scalars: alpha, beta, gamma.
        out_dtype: Default a's.
        config: Default from the architecture's table.
    """
    batch, n, k = a.shape
    table = load_table(architecture(a.device))
    config = _settle(table, "symmetric", n, a, b, config)
    d = torch.empty(batch, n, n, dtype=out_dtype or a.dtype, device=a.device)
    tiles = symmetric_tiles(n, config["BLOCK_M"], config["BLOCK_N"])
    old = d if c is None else c
    symmetric_kernel[(batch * tiles,)](
        a, b, old, d, *scalars, n, k, tiles,
        *a.stride(), *b.stride(), *old.stride(), *d.stride(),
        HAS_C=c is not None, TABLE=0, PRECISION=_precision(table, a.dtype), **config,
    )  # fmt: skip
    return d


def gram_of_table(matrices: AddressTable) -> Tensor:
    """Return the Gram matrices of unstacked (n, k) matrices, (count, n, n).

    Args:
        matrices: From `address_table`.
    """
    count, like = len(matrices.addresses), matrices.like
    _refuse_long_strides(like)
    n, k = like.shape
    table = load_table(architecture(like.device))
    config = choose(table, "symmetric", like.element_size(), count, n, n, False)
    d = torch.empty(count, n, n, dtype=like.dtype, device=like.device)
    tiles = symmetric_tiles(n, config["BLOCK_M"], config["BLOCK_N"])
    symmetric_kernel[(count * tiles,)](
        matrices.addresses, matrices.addresses, d, d, 1.0, 0.0, 0.0, n, k, tiles,
        0, *like.stride(), 0, *like.stride(), *d.stride(), *d.stride(),
        HAS_C=False, TABLE=matrices.alignment,
        PRECISION=_precision(table, like.dtype), **config,
    )  # fmt: skip
    return d


def apply(
    q: Tensor,
    x: Tensor,
    scalars: Tensor,
    c: Tensor | None = None,
    out: Tensor | AddressTable | None = None,
    config: dict | None = None,
) -> Tensor | AddressTable:
    """Return ``alpha Q X + beta C``; with C = out = a weight this is its whole update.

    Args:
        q: (b, n, n), symmetric.
        x: (b, n, m), any strides.
        scalars: (2,) float32 on the device: alpha and beta.
        c: (b, n, m), or None for no second term.
        out: Where to write, default a new tensor. May be `c`. A table of b unstacked (n, m)
            matrices is C as well, and updated in place.
        config: Default from the architecture's table.

    Returns:
        `out`.
    """
    batch, n, m = x.shape
    table = load_table(architecture(x.device))
    config = _settle(table, "apply", m, q, x, config)
    if out is None:
        out = torch.empty_like(x)
    tiles = triton.cdiv(n, config["BLOCK_M"]) * triton.cdiv(m, config["BLOCK_N"])
    if isinstance(out, AddressTable):
        places, like, alignment = (out.addresses, out.addresses), out.like, out.alignment
        strides = (0, *like.stride()) * 2
    else:
        like, old, alignment = out, out if c is None else c, 0
        places, strides = (old, out), (*old.stride(), *out.stride())
    _refuse_long_strides(like)
    apply_kernel[(batch * tiles,)](
        q, x, *places, scalars, like, n, m, *q.stride(), *x.stride(), *strides,
        GROUP=GROUP, HAS_C=alignment > 0 or c is not None, TABLE=alignment,
        PRECISION=_precision(table, x.dtype), **config,
    )  # fmt: skip
    return out


class TritonProducts:
    """The products of the iteration through the kernels."""

    casts = True

    def __init__(self, device: torch.device, tiles: Mapping[str, Config] | None = None) -> None:
        self._ones = torch.ones(2, dtype=torch.float32, device=device)
        tiles = tiles or {}
        self._symmetric, self._apply = tiles.get("symmetric"), tiles.get("apply")

    def gram(self, x: Tensor, gamma: float = 0.0) -> Tensor:
        """Return ``X X^T + gamma I``."""
        return symmetric(x, x, None, (1.0, 0.0, gamma), config=self._symmetric)

    def symmetric(
        self, a: Tensor, b: Tensor, c: Tensor | None = None, alpha: float = 1.0, beta: float = 0.0,
        gamma: float = 0.0, spare: bool = False,
    ) -> Tensor:  # fmt: skip
        """Return ``alpha A B + beta C + gamma I``, never in C's place: tiles mirror each other."""
        return symmetric(a, b, c, (alpha, beta, gamma), config=self._symmetric)

    def apply(self, q: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return ``Q X``."""
        result = apply(q, x, self._ones, out=out, config=self._apply)
        assert isinstance(result, Tensor)
        return result
