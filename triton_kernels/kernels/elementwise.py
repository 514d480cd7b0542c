"""Multi-tensor elementwise kernels: one launch for all parameters of an optimizer step.

A tensor is a (rows, cols) view with any strides. The work list has one entry a chunk of at
most BLOCK elements: the tensor it belongs to and the chunk's first element; addresses are
64-bit integers in device memory, so nothing is copied together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .addresses import kept_table
from .configuration import architecture, load_table

__all__ = ["momentum", "momentum_kernel", "update", "update_kernel"]


@triton.jit
def _place(shape_ptr, t, first, BLOCK: tl.constexpr):
    """Return row, column and validity of the BLOCK elements of tensor t from `first` on."""
    rows = tl.load(shape_ptr + 2 * t)
    cols = tl.load(shape_ptr + 2 * t + 1)
    i = first + tl.arange(0, BLOCK).to(tl.int64)
    return i // cols, i % cols, i < rows * cols


@triton.jit
def momentum_kernel(
    work_ptr,  # (chunks, 2) int64: tensor, first element
    shape_ptr,  # (tensors, 2) int64: rows, cols
    grad_ptr,  # (tensors,) int64 addresses
    grad_strides_ptr,  # (tensors, 2) int64
    momentum_ptr,  # (tensors,) int64 addresses
    momentum_strides_ptr,
    out_ptr,  # (tensors,) int64 addresses: operands of the iteration
    out_strides_ptr,
    partial_ptr,  # (chunks,) float32: sum of squares of what was written
    scalars_ptr,  # (1,) float32: mu
    grad_type,  # any pointer of the gradients' element type; likewise below
    momentum_type,
    out_type,
    NESTEROV: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """M <- M + (1 - mu)(G - M); out = M, or G + mu (M - G) with Nesterov; G is left alone."""
    chunk = tl.program_id(0).to(tl.int64)
    t = tl.load(work_ptr + 2 * chunk)
    r, c, keep = _place(shape_ptr, t, tl.load(work_ptr + 2 * chunk + 1), BLOCK)
    mu = tl.load(scalars_ptr)

    g_at = r * tl.load(grad_strides_ptr + 2 * t) + c * tl.load(grad_strides_ptr + 2 * t + 1)
    m_at = r * tl.load(momentum_strides_ptr + 2 * t) + c * tl.load(momentum_strides_ptr + 2 * t + 1)
    o_at = r * tl.load(out_strides_ptr + 2 * t) + c * tl.load(out_strides_ptr + 2 * t + 1)
    g_element: tl.constexpr = grad_type.dtype
    m_element: tl.constexpr = momentum_type.dtype
    o_element: tl.constexpr = out_type.dtype
    grad = tl.load(tl.load(grad_ptr + t).to(g_element) + g_at, mask=keep, other=0.0).to(tl.float32)
    m_base = tl.load(momentum_ptr + t).to(m_element)
    old = tl.load(m_base + m_at, mask=keep, other=0.0).to(tl.float32)
    new = old + (1.0 - mu) * (grad - old)
    tl.store(m_base + m_at, new.to(m_base.dtype.element_ty), mask=keep)
    if NESTEROV:
        new = grad + mu * (new - grad)
    o_base = tl.load(out_ptr + t).to(o_element)
    tl.store(o_base + o_at, new.to(o_base.dtype.element_ty), mask=keep)
    tl.store(partial_ptr + chunk, tl.sum(tl.where(keep, new * new, 0.0), 0))


@triton.jit
def update_kernel(
    work_ptr,
    shape_ptr,
    weight_ptr,
    weight_strides_ptr,
    direction_ptr,  # (tensors,) int64 addresses: orthogonalized matrices
    direction_strides_ptr,
    scalars_ptr,  # (tensors, 2) float32: 1 - lr * weight_decay, lr * scale
    weight_type,
    direction_type,
    BLOCK: tl.constexpr,
):
    """W <- (1 - lr weight_decay) W - lr scale O."""
    chunk = tl.program_id(0).to(tl.int64)
    t = tl.load(work_ptr + 2 * chunk)
    r, c, keep = _place(shape_ptr, t, tl.load(work_ptr + 2 * chunk + 1), BLOCK)
    w_at = r * tl.load(weight_strides_ptr + 2 * t) + c * tl.load(weight_strides_ptr + 2 * t + 1)
    o_at = r * tl.load(direction_strides_ptr + 2 * t)
    o_at += c * tl.load(direction_strides_ptr + 2 * t + 1)
    w_element: tl.constexpr = weight_type.dtype
    o_element: tl.constexpr = direction_type.dtype
    w_base = tl.load(weight_ptr + t).to(w_element)
    weight = tl.load(w_base + w_at, mask=keep, other=0.0).to(tl.float32)
    o_base = tl.load(direction_ptr + t).to(o_element)
    o = tl.load(o_base + o_at, mask=keep, other=0.0).to(tl.float32)
    new = tl.load(scalars_ptr + 2 * t) * weight - tl.load(scalars_ptr + 2 * t + 1) * o
    tl.store(w_base + w_at, new.to(w_base.dtype.element_ty), mask=keep)


def _work_list(shapes: Sequence[tuple[int, int]], block: int) -> Tensor:
    """Return (tensor, first element) of every chunk of `block` elements."""
    return torch.tensor(
        [(t, first) for t, (r, c) in enumerate(shapes) for first in range(0, r * c, block)],
        dtype=torch.int64,
    ).reshape(-1, 2)


@lru_cache(maxsize=256)
def _kept_work(shapes: tuple[tuple[int, int], ...], block: int, device: torch.device) -> Tensor:
    return _work_list(shapes, block).to(device)


def _tables(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    device = tensors[0].device
    addresses = tuple((t.data_ptr(),) for t in tensors)
    return kept_table(addresses, device), kept_table(tuple(t.stride() for t in tensors), device)


def _elementwise(like: Tensor) -> dict:
    table = load_table(architecture(like.device))
    return table["elementwise"] | {"enable_fp_fusion": True}


def _work(tensors: Sequence[Tensor], block: int) -> tuple[Tensor, Tensor]:
    device = tensors[0].device
    shapes = tuple((t.shape[0], t.shape[1]) for t in tensors)
    return _kept_work(shapes, block, device), kept_table(shapes, device)


def _one_number(value: float | Tensor, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(device, torch.float32).reshape(1)
    return torch.full((1,), value, dtype=torch.float32, device=device)  # no copy from the host


def momentum(
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    outs: Sequence[Tensor],
    mu: float | Tensor,
    nesterov: bool = True,
) -> Tensor:
    """Update momentum buffers and write the operands of the iteration, all in one launch.

    ``M <- M + (1 - mu)(G - M)``; the operand is M, or ``G + mu (M - G)`` with Nesterov.

    Args:
        grads: 2-D views, any strides, left alone.
        buffers: Momentum, updated in place.
        outs: Where the operands go, in their own dtype.
        mu: Momentum, in [0, 1).
        nesterov: Default True.

    Returns:
        (tensors,) float32, the squared Frobenius norm of each operand.
    """
    config = _elementwise(grads[0])
    work, shapes = _work(grads, config["BLOCK"])
    device = grads[0].device
    partial = torch.empty(len(work), dtype=torch.float32, device=device)
    momentum_kernel[(len(work),)](
        work, shapes, *_tables(grads), *_tables(buffers), *_tables(outs), partial,
        _one_number(mu, device),
        grads[0], buffers[0], outs[0], NESTEROV=nesterov, **config,
    )  # fmt: skip
    chunks = tuple((-(-t.numel() // config["BLOCK"]),) for t in grads)
    # In a fixed order, where an index_add_ on a GPU adds in any; unsafe: without a look at chunks.
    return torch.segment_reduce(
        partial, "sum", lengths=kept_table(chunks, device).flatten(), unsafe=True
    )


def update(
    weights: Sequence[Tensor], directions: Sequence[Tensor], decay: Tensor, rate: Tensor
) -> None:
    """Set ``W <- decay W - rate O`` for all weights in one launch.

    Args:
        weights: 2-D views, any strides, updated in place.
        directions: The orthogonalized matrices.
        decay: (tensors,) ``1 - lr * weight_decay``.
        rate: (tensors,) ``lr * scale``.
    """
    config = _elementwise(weights[0])
    work, shapes = _work(weights, config["BLOCK"])
    scalars = torch.stack((decay, rate), dim=1).to(weights[0].device, torch.float32).contiguous()
    update_kernel[(len(work),)](
        work, shapes, *_tables(weights), *_tables(directions), scalars,
        weights[0], directions[0], **config,
    )  # fmt: skip
