"""Multi-tensor elementwise kernels: one launch for all parameters of an optimizer step.

A tensor is a (rows, cols) view with any strides. The work list has one entry a chunk of at
most BLOCK elements: the tensor it belongs to and its number there; addresses are 64-bit
integers in device memory, so nothing is copied together. Where all tensors are contiguous
and their sizes even enough, a thread loads 16 bytes at once and divides nothing.
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

LINE = tl.constexpr(16)  # bytes that a thread loads at once, and elements that fill whole ones


@triton.jit
def _elements(shape_ptr, t, number, BLOCK: tl.constexpr, FLAT: tl.constexpr):
    """Return the indices of the elements of one chunk of tensor t, and which exist."""
    count = tl.load(shape_ptr + 2 * t) * tl.load(shape_ptr + 2 * t + 1)
    if FLAT:
        count = tl.multiple_of(count, LINE)
    # The product shows the compiler that a chunk begins at a multiple of BLOCK.
    i = number * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    return i, i < count


@triton.jit
def _pointers(address_ptr, strides_ptr, shape_ptr, t, i, element: tl.constexpr, FLAT: tl.constexpr):
    """Return where the elements i of tensor t lie."""
    base = tl.load(address_ptr + t).to(element)
    if FLAT:
        at = i
        base = tl.multiple_of(base, LINE)
    else:
        cols = tl.load(shape_ptr + 2 * t + 1)
        at = i // cols * tl.load(strides_ptr + 2 * t) + i % cols * tl.load(strides_ptr + 2 * t + 1)
    return base + at


@triton.jit
def momentum_kernel(
    work_ptr,  # (chunks, 2) int64: tensor, number of the chunk within it
    shape_ptr,  # (tensors, 2) int64: rows, cols
    grad_ptr,  # (tensors,) int64 addresses
    grad_strides_ptr,  # (tensors, 2) int64
    momentum_ptr,  # (tensors,) int64 addresses
    momentum_strides_ptr,
    out_ptr,  # (tensors,) int64 addresses: operands of the iteration
    out_strides_ptr,
    scalars_ptr,  # (1,) float32: mu
    grad_type,  # any pointer of the gradients' element type; likewise below
    momentum_type,
    out_type,
    NESTEROV: tl.constexpr,
    BLOCK: tl.constexpr,
    FLAT: tl.constexpr,  # all tensors contiguous, sizes and addresses multiples of LINE
):
    """M <- M + (1 - mu)(G - M); out = M, or G + mu (M - G) with Nesterov; G is left alone."""
    chunk = tl.program_id(0).to(tl.int64)
    t = tl.load(work_ptr + 2 * chunk)
    i, keep = _elements(shape_ptr, t, tl.load(work_ptr + 2 * chunk + 1), BLOCK, FLAT)
    mu = tl.load(scalars_ptr)
    g_at = _pointers(grad_ptr, grad_strides_ptr, shape_ptr, t, i, grad_type.dtype, FLAT)
    m_at = _pointers(momentum_ptr, momentum_strides_ptr, shape_ptr, t, i, momentum_type.dtype, FLAT)
    o_at = _pointers(out_ptr, out_strides_ptr, shape_ptr, t, i, out_type.dtype, FLAT)
    grad = tl.load(g_at, mask=keep, other=0.0).to(tl.float32)
    old = tl.load(m_at, mask=keep, other=0.0).to(tl.float32)
    new = old + (1.0 - mu) * (grad - old)
    tl.store(m_at, new.to(m_at.dtype.element_ty), mask=keep)
    if NESTEROV:
        new = grad + mu * (new - grad)
    tl.store(o_at, new.to(o_at.dtype.element_ty), mask=keep)


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
    FLAT: tl.constexpr,
):
    """W <- (1 - lr weight_decay) W - lr scale O."""
    chunk = tl.program_id(0).to(tl.int64)
    t = tl.load(work_ptr + 2 * chunk)
    i, keep = _elements(shape_ptr, t, tl.load(work_ptr + 2 * chunk + 1), BLOCK, FLAT)
    w_at = _pointers(weight_ptr, weight_strides_ptr, shape_ptr, t, i, weight_type.dtype, FLAT)
    o_at = _pointers(
        direction_ptr, direction_strides_ptr, shape_ptr, t, i, direction_type.dtype, FLAT
    )
    weight = tl.load(w_at, mask=keep, other=0.0).to(tl.float32)
    o = tl.load(o_at, mask=keep, other=0.0).to(tl.float32)
    new = tl.load(scalars_ptr + 2 * t) * weight - tl.load(scalars_ptr + 2 * t + 1) * o
    tl.store(w_at, new.to(w_at.dtype.element_ty), mask=keep)


def _flat(*lists: Sequence[Tensor]) -> bool:
    """Whether whole lines can be loaded at once: contiguous, and all multiples of a line."""
    return all(
        t.is_contiguous() and t.numel() % LINE.value == 0 and t.data_ptr() % LINE.value == 0
        for tensors in lists
        for t in tensors
    )


def _work_list(shapes: Sequence[tuple[int, int]], block: int) -> Tensor:
    """Return (tensor, number within it) of every chunk of `block` elements."""
    return torch.tensor(
        [(t, i) for t, (r, c) in enumerate(shapes) for i in range(-(-r * c // block))],
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
) -> None:
    """Update momentum buffers and write the operands of the iteration, all in one launch.

    ``M <- M + (1 - mu)(G - M)``; the operand is M, or ``G + mu (M - G)`` with Nesterov.

    Args:
        grads: 2-D views, any strides, left alone.
        buffers: Momentum, updated in place.
        outs: Where the operands go, in their own dtype.
        mu: Momentum, in [0, 1).
        nesterov: Default True.
    """
    config = _elementwise(grads[0])
    work, shapes = _work(grads, config["BLOCK"])
    momentum_kernel[(len(work),)](
        work, shapes, *_tables(grads), *_tables(buffers), *_tables(outs),
        _one_number(mu, grads[0].device),
        grads[0], buffers[0], outs[0], NESTEROV=nesterov, FLAT=_flat(grads, buffers, outs),
        **config,
    )  # fmt: skip


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
        weights[0], directions[0], FLAT=_flat(weights, directions), **config,
    )  # fmt: skip
