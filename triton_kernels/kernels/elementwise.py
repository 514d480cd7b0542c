"""Multi-tensor elementwise kernels: one launch for all parameters of an optimizer step.

A tensor is a (rows, cols) view with any strides, cut into chunks of BLOCK elements. A program finds
the tensor of its chunk by bisection in a table with a row for each, which holds 64-bit addresses:
nothing is copied together. Tensors that are contiguous and of even size have a launch of their own,
in which a thread loads 16 bytes at once and divides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configuration import architecture, load_table
from .owned import Owned

LINE = tl.constexpr(16)  # bytes that a thread loads at once, and elements that fill whole ones
HEAD = tl.constexpr(3)  # columns of a table before the first address


@triton.jit
def _row(table_ptr, chunk, tensors, bits, WIDTH: tl.constexpr):
    """Return the row of the tensor that a chunk belongs to: the last that begins no later."""
    t = tl.full((), 0, tl.int32)
    for k in range(0, bits):
        probe = t + (1 << (bits - 1 - k))
        begins = tl.load(table_ptr + probe * WIDTH, mask=probe < tensors, other=0)
        t = tl.where((probe < tensors) & (begins <= chunk), probe, t)
    return table_ptr + t.to(tl.int64) * WIDTH


@triton.jit
def _pointers(row, which: tl.constexpr, i, cols, element: tl.constexpr, LINES: tl.constexpr):
    """Return where the elements i of a row's tensor in one list lie."""
    base = tl.load(row + HEAD + 3 * which).to(element)
    if LINES:
        return tl.multiple_of(base, LINE) + i
    strides = row + HEAD + 3 * which + 1
    return base + i // cols * tl.load(strides) + i % cols * tl.load(strides + 1)


@triton.jit
def _elements(row, chunk, BLOCK: tl.constexpr, LINES: tl.constexpr):
    """Return the indices of the elements of a chunk, and which exist."""
    count = tl.load(row + 1)
    if LINES:
        count = tl.multiple_of(count, LINE)
    # The product shows the compiler that a chunk begins at a multiple of BLOCK.
    i = (chunk - tl.load(row)) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    return i, i < count


@triton.jit
def momentum_kernel(
    table_ptr,  # of gradients, buffers and results, see `owned.Table`
    mu,  # float, or where READ a pointer to one
    tensors,
    bits,  # of the number of tensors
    grad_type,  # any pointer of the gradients' element type; likewise below
    buffer_type,
    out_type,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    READ: tl.constexpr,
    BLOCK: tl.constexpr,
    LINES: tl.constexpr,  # whether all tensors fill whole lines
):
    """B <- B + (1 - mu)(G - B); out = B, or G + mu (B - G) with Nesterov; G is left alone."""
    chunk = tl.program_id(0).to(tl.int64)
    row = _row(table_ptr, chunk, tensors, bits, 12)
    if READ:
        mu = tl.load(mu).to(tl.float32)
    i, keep = _elements(row, chunk, BLOCK, LINES)
    cols = tl.load(row + 2)
    g_at = _pointers(row, 0, i, cols, grad_type.dtype, LINES)
    b_at = _pointers(row, 1, i, cols, buffer_type.dtype, LINES)
    o_at = _pointers(row, 2, i, cols, out_type.dtype, LINES)
    g = tl.load(g_at, mask=keep, other=0.0).to(tl.float32)
    if MAXIMIZE:
        g = -g
    old = tl.load(b_at, mask=keep, other=0.0).to(tl.float32)
    new = old + (1.0 - mu) * (g - old)
    tl.store(b_at, new.to(b_at.dtype.element_ty), mask=keep)
    if NESTEROV:
        new = g + mu * (new - g)
    tl.store(o_at, new.to(o_at.dtype.element_ty), mask=keep)


@triton.jit
def update_kernel(
    table_ptr,  # of weights and directions, and the scale s of each
    lr,  # float, or where READ a pointer to one
    weight_decay,
    tensors,
    bits,
    weight_type,
    direction_type,
    READ: tl.constexpr,
    BLOCK: tl.constexpr,
    LINES: tl.constexpr,
):
    """W <- (1 - lr weight_decay) W - lr s O."""
    chunk = tl.program_id(0).to(tl.int64)
    row = _row(table_ptr, chunk, tensors, bits, 10)
    if READ:
        lr = tl.load(lr).to(tl.float32)
    rate = lr * tl.load(row + 9).to(tl.int32).to(tl.float32, bitcast=True)
    decay = 1.0 - lr * weight_decay
    i, keep = _elements(row, chunk, BLOCK, LINES)
    cols = tl.load(row + 2)
    w_at = _pointers(row, 0, i, cols, weight_type.dtype, LINES)
    o_at = _pointers(row, 1, i, cols, direction_type.dtype, LINES)
    w = tl.load(w_at, mask=keep, other=0.0).to(tl.float32)
    o = tl.load(o_at, mask=keep, other=0.0).to(tl.float32)
    tl.store(w_at, (decay * w - rate * o).to(w_at.dtype.element_ty), mask=keep)


def momentum(
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    outs: Sequence[Tensor],
    mu: float | Tensor,
    nesterov: bool = True,
    maximize: bool = False,
    owned: Owned | None = None,
) -> None:
    """Update momentum buffers and write the operands of the iteration, all in one launch.

    ``B <- B + (1 - mu)(G - B)``; the operand is B, or ``G + mu (B - G)`` with Nesterov.

    Args:
        grads: G, matrices or contiguous, left alone.
        buffers: B, updated in place.
        outs: Where the operands go, in their own dtype.
        mu: Momentum, in [0, 1).
        nesterov: Default True.
        maximize: Take -G for G (default False).
        owned: Whose tables; default those of the first buffer.
    """
    config = _config(grads[0])
    owned = owned or Owned.by(buffers[0])
    for table in owned.tables((grads, buffers, outs), config["BLOCK"]):
        momentum_kernel[(table.chunks,)](
            table.memory, _number(mu, grads[0].device), table.tensors, table.tensors.bit_length(),
            grads[0], buffers[0], outs[0], NESTEROV=nesterov, MAXIMIZE=maximize,
            READ=_read(mu), LINES=table.lines, **config,
        )  # fmt: skip


def update(
    weights: Sequence[Tensor],
    directions: Sequence[Tensor],
    scales: Sequence[float],
    lr: float | Tensor,
    weight_decay: float = 0.0,
    owned: Owned | None = None,
) -> None:
    """Set ``W <- (1 - lr weight_decay) W - lr s O`` for all weights in one launch.

    Args:
        weights: W, matrices or contiguous, updated in place.
        directions: O, the orthogonalized matrices.
        scales: s of each.
        lr: Learning rate.
        weight_decay: Per unit of `lr`.
        owned: Whose tables; default those of the first weight.
    """
    config = _config(weights[0])
    owned = owned or Owned.by(weights[0])
    for table in owned.tables((weights, directions), config["BLOCK"], scales):
        update_kernel[(table.chunks,)](
            table.memory, _number(lr, weights[0].device), float(weight_decay), table.tensors,
            table.tensors.bit_length(), weights[0], directions[0], READ=_read(lr),
            LINES=table.lines, **config,
        )  # fmt: skip


def _config(like: Tensor) -> dict[str, Any]:
    return load_table(architecture(like.device))["elementwise"] | {"enable_fp_fusion": True}


def _read(value: float | Tensor) -> bool:
    """Say whether a kernel reads a number from memory: on a GPU a host would wait for it."""
    return isinstance(value, Tensor) and value.device.type != "cpu"


def _number(value: float | Tensor, device: torch.device) -> float | Tensor:
    return value.to(device) if _read(value) else float(value)  # type: ignore[union-attr]
