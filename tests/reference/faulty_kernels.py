"""Kernels that touch what is not theirs, to see that `accesses` says so."""

import triton
import triton.language as tl


@triton.jit
def beyond_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """Load one element too many."""
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < n + 1), mask=i < n)


@triton.jit
def twice_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """Store most elements from two programs."""
    i = tl.arange(0, BLOCK) + tl.program_id(0)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < n), mask=i < n)


@triton.jit
def shift_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """Load an element that the next program stores."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + i, tl.load(x_ptr + i + 1, mask=i + 1 < n), mask=i < n)
