"""Launching the products: grids, strides, tensor descriptors, and the Products they make up."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .apply import apply_kernel
from .configuration import Config, architecture, choose, load_table, symmetric_tiles
from .symmetric import symmetric_kernel

GROUP = 8  # rows of tiles that share columns in L2


def _describable(t: Tensor) -> bool:
    """Say whether a tensor descriptor can read this: unit inner stride, 16-byte rows and base."""
    outer, row, inner = t.stride()
    size = t.element_size()
    return inner == 1 and not (outer * size % 16 or row * size % 16 or t.data_ptr() % 16)


def _refuse_long_strides(t: Tensor) -> None:
    """Refuse strides whose offsets inside a tile of 256 rows do not fit in 32 bits."""
    _, row, column = t.stride()
    if row >= 2**23 or column >= 2**23:
        raise ValueError(
            f"row and column strides must be below 2^23 elements, got strides {t.stride()} for "
            f"shape {tuple(t.shape)}; pass a contiguous copy"
        )


def _settle(kind: str, m: int, first: Tensor, second: Tensor, config: Config | None) -> Config:
    """Return the configuration of a launch: the given one, where it can read the operands."""
    _refuse_long_strides(first)
    if second is not first:
        _refuse_long_strides(second)
    if config is not None and not config["DESCRIPTOR"]:
        return config
    describable = _describable(first) and (second is first or _describable(second))
    if config is not None and describable:
        return config
    table = load_table(architecture(first.device))
    batch, n, _ = first.shape
    return choose(table, kind, first.element_size(), batch, n, m, describable)


def _tiles(x: Tensor, rows: int, cols: int, config: Config) -> Tensor | TensorDescriptor:
    """Return how a kernel reads x in tiles: through a descriptor, or by its address."""
    if not config["DESCRIPTOR"]:
        return x
    shape, strides = x.shape, x.stride()
    checked = _checked(shape, strides, x.element_size(), rows, cols)
    described: TensorDescriptor = object.__new__(TensorDescriptor)
    described.__dict__.update(checked, base=x)
    return described


@lru_cache(maxsize=1024)
def _checked(
    shape: torch.Size, strides: tuple[int, ...], size: int, rows: int, cols: int
) -> dict[str, Any]:
    """Return the fields of a tensor descriptor; its own checks take as long as a launch of it."""
    like = torch.empty_strided(
        shape, strides, dtype={2: torch.float16, 4: torch.float32}[size], device="meta"
    )
    return vars(TensorDescriptor(like, list(shape), list(strides), [1, rows, cols]))


def symmetric(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    scalars: tuple[float, float, float] = (1.0, 0.0, 0.0),
    config: Config | None = None,
) -> Tensor:
    """Return ``alpha A B^T + beta C + gamma I``.

    Args:
        a: (b, n, k), any strides.
        b: (b, n, k), such that A B^T is symmetric.
        c: (b, n, n), contiguous, or None.
        scalars: alpha, beta, gamma.
        config: Default from the architecture's table.
    """
    batch, n, k = a.shape
    config = _settle("symmetric", n, a, b, config)
    block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    d = torch.empty(batch, n, n, dtype=a.dtype, device=a.device)
    tiles = symmetric_tiles(n, block_m, block_n)
    left = _tiles(a, block_m, block_k, config)
    right = left if b is a and block_m == block_n else _tiles(b, block_n, block_k, config)
    symmetric_kernel[(batch * tiles,)](
        left, right, d if c is None else c, d, *scalars, n, k, tiles, *a.stride(), *b.stride(),
        HAS_C=c is not None, **config,
    )  # fmt: skip
    return d


def apply(q: Tensor, x: Tensor, out: Tensor | None = None, config: Config | None = None) -> Tensor:
    """Return ``Q X``.

    Args:
        q: (b, n, n), symmetric.
        x: (b, n, m), any strides.
        out: Where to write, of any dtype and strides, default a new tensor.
        config: Default from the architecture's table.
    """
    batch, n, m = x.shape
    config = _settle("apply", m, q, x, config)
    block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    if out is None:
        out = torch.empty(batch, n, m, dtype=x.dtype, device=x.device)
    _refuse_long_strides(out)
    tiles = -(-n // block_m) * -(-m // block_n)
    apply_kernel[(batch * tiles,)](
        _tiles(q, block_m, block_k, config), _tiles(x, block_k, block_n, config), out, n, m,
        *q.stride(), *x.stride(), *out.stride(), GROUP=GROUP, **config,
    )  # fmt: skip
    return out


class TritonProducts:
    """The products of the iteration through the kernels.

    Args:
        tiles: Configurations of "symmetric" and "apply", default the table's for each product.
    """

    casts = True

    def __init__(self, tiles: Mapping[str, Config] | None = None) -> None:
        tiles = tiles or {}
        self._symmetric, self._apply = tiles.get("symmetric"), tiles.get("apply")

    def gram(self, x: Tensor, gamma: float = 0.0) -> Tensor:
        """Return ``X X^T + gamma I``."""
        return symmetric(x, x, None, (1.0, 0.0, gamma), self._symmetric)

    def symmetric(
        self, a: Tensor, b: Tensor, c: Tensor | None = None, alpha: float = 1.0, beta: float = 0.0,
        gamma: float = 0.0, spare: bool = False,
    ) -> Tensor:  # fmt: skip
        """Return ``alpha A B + beta C + gamma I``, never in C's place: tiles mirror each other."""
        return symmetric(a, b, c, (alpha, beta, gamma), self._symmetric)

    def apply(self, q: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return ``Q X``."""
        return apply(q, x, out, self._apply)
