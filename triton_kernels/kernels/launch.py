"""Launching the products: grids, strides, tensor descriptors, and the Products they make up."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .apply import apply_kernel
from .configuration import Config, architecture, choose, load_table, symmetric_tiles
from .symmetric import symmetric_kernel

GROUP = 8  # rows of tiles that share columns in L2


class _Launch(NamedTuple):
    """What the shapes, strides and tiles of a product's operands settle.

    Attributes:
        grid: How many programs.
        numbers: The kernel's integers: sizes and strides.
        left: The fields of the first operand's tensor descriptor, but for the tensor; None: its
            tiles are read by their addresses.
        right: Of the second's.
    """

    grid: tuple[int]
    numbers: tuple[int, ...]
    left: dict[str, Any] | None
    right: dict[str, Any] | None


@lru_cache(maxsize=1024)
def _launch(
    kind: str,
    shapes: tuple[torch.Size, ...],
    strides: tuple[tuple[int, ...], ...],
    size: int,
    tile: tuple[int, int, int],
    described: bool,
) -> _Launch:
    """Look at a kind of launch once: a descriptor's own checks alone take as long as one.

    Raises ValueError for strides that the kernels cannot take.

    Args:
        kind: "symmetric" or "apply".
        shapes: (b, rows, columns) of each operand; of one, if they are the same.
        strides: Of each.
        size: Bytes of an element.
        tile: (BLOCK_M, BLOCK_N, BLOCK_K).
        described: Whether tiles are to be read through descriptors.
    """
    shapes, strides = (shapes[0], shapes[-1]), (strides[0], strides[-1])
    (batch, n, k), m = shapes[0], shapes[1][2]
    rows, cols, inner = tile
    if kind == "symmetric":
        tiles = symmetric_tiles(n, rows, cols)
        numbers, blocks = (n, k, *strides[0]), ((rows, inner), (cols, inner))
        if strides[0] != strides[1]:
            raise ValueError(f"b must have a's strides, {strides[0]}, got {strides[1]}")
    else:
        tiles = -(-n // rows) * -(-m // cols)
        numbers, blocks = (n, m, *strides[0], *strides[1]), ((rows, inner), (inner, cols))
    for shape, stride in zip(shapes, strides, strict=True):
        _refuse_long_strides(shape, stride)
    if not described or not all(_readable(stride, size) for stride in strides):
        return _Launch((batch * tiles,), numbers, None, None)
    left, right = (_fields(*one, size) for one in zip(shapes, strides, blocks, strict=True))
    # Strides are in the descriptors; of what a kernel does not read ones cost a launch least.
    return _Launch((batch * tiles,), (*numbers[:2], *(1,) * (len(numbers) - 2)), left, right)


def _readable(strides: tuple[int, ...], size: int) -> bool:
    """Say whether a descriptor can read such a tensor: unit inner stride, rows of 16 bytes."""
    outer, row, inner = strides
    return inner == 1 and not (outer * size % 16 or row * size % 16)


def _fields(
    shape: torch.Size, strides: tuple[int, ...], block: tuple[int, int], size: int
) -> dict[str, Any]:
    dtype = {2: torch.float16, 4: torch.float32}[size]
    like = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    return vars(TensorDescriptor(like, list(shape), list(strides), [1, *block]))


def _refuse_long_strides(shape: torch.Size, strides: tuple[int, ...]) -> None:
    """Refuse strides whose offsets inside a tile of 256 rows do not fit in 32 bits."""
    _, row, column = strides
    if row >= 2**23 or column >= 2**23:
        raise ValueError(
            f"row and column strides must be below 2^23 elements, got strides {strides} for "
            f"shape {tuple(shape)}; pass a contiguous copy"
        )


def _settle(
    kind: str, first: Tensor, second: Tensor, config: Config | None
) -> tuple[Config, _Launch, Any, Any]:
    """Return a configuration that can read the operands, the given one if so, and how it does."""
    if config is None:
        config = _from_table(kind, first, second)
    shapes: tuple[torch.Size, ...] = (first.shape,)
    strides: tuple[tuple[int, ...], ...] = (first.stride(),)
    if second is not first:
        shapes, strides = (*shapes, second.shape), (*strides, second.stride())
    tile = (config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"])
    size, described = first.element_size(), config["DESCRIPTOR"]
    launch = _launch(kind, shapes, strides, size, tile, described)
    if not described:
        return config, launch, first, second
    if launch.left is None or first.data_ptr() % 16 or second.data_ptr() % 16:
        return _settle(kind, first, second, _from_table(kind, first, second))
    left: TensorDescriptor = object.__new__(TensorDescriptor)
    right: TensorDescriptor = object.__new__(TensorDescriptor)
    left.__dict__.update(launch.left, base=first)
    right.__dict__.update(launch.right, base=second)
    return config, launch, left, right


def _from_table(kind: str, first: Tensor, second: Tensor) -> Config:
    """Return the configuration that the architecture's table has for a launch."""
    size, (batch, n, _) = first.element_size(), first.shape
    m = n if kind == "symmetric" else second.shape[2]
    describable = all(
        _readable(t.stride(), size) and t.data_ptr() % 16 == 0 for t in (first, second)
    )
    return choose(load_table(architecture(first.device)), kind, size, batch, n, m, describable)


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
        b: (b, n, k), such that A B^T is symmetric, of A's strides.
        c: (b, n, n), contiguous, or None.
        scalars: alpha, beta, gamma.
        config: Default from the architecture's table.
    """
    config, launch, left, right = _settle("symmetric", a, b, config)
    batch, n, _ = a.shape
    d = torch.empty(batch, n, n, dtype=a.dtype, device=a.device)
    symmetric_kernel[launch.grid](
        left, right, d if c is None else c, d, *scalars, *launch.numbers, HAS_C=c is not None,
        **config,
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
    config, launch, left, right = _settle("apply", q, x, config)
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    strides = out.stride()
    _refuse_long_strides(out.shape, strides)
    apply_kernel[launch.grid](left, right, out, *launch.numbers, *strides, GROUP=GROUP, **config)
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
