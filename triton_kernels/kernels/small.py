"""A whole orthogonalization in one program: for short sides up to 128.

The Gram matrix is accumulated in registers while X streams by once, all steps happen in
float32 inside the program, and X streams by a second time to be multiplied. Hundreds of LoRA
factors are one launch. Up to 32 rows all matrices stay in registers; above, they would spill
(operands of a matrix instruction are copied to several warps), so that `small_scratch_kernel`
keeps them in a scratch of 16 to 64 KiB each that never leaves the cache.
"""

import triton
import triton.language as tl

from .symmetric import _load_tile

__all__ = ["small_kernel", "small_scratch_kernel"]


@triton.jit
def _gram_of_stream(
    x_base, stride_xn, stride_xm, n, m, N: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return X X^T / top^2 and top = max |x|, reading X once.

    The running maximum rescales what was summed so far, so that 1e30 and 1e-30 neither
    overflow nor vanish.
    """
    top = 1.2e-38
    r = tl.zeros((N, N), dtype=tl.float32)
    for c0 in range(0, m, BLOCK):
        x = _load_tile(x_base, stride_xn, stride_xm, n, m - c0, N, BLOCK).to(tl.float32)
        x_base += BLOCK * stride_xm
        new = tl.maximum(top, tl.max(tl.abs(x)))
        shrink = top / new
        x = x / new
        r = r * (shrink * shrink) + tl.dot(x, tl.trans(x), input_precision=PRECISION)
        top = new
    return r, top


@triton.jit
def _bound(r, eye, SCHATTEN4: tl.constexpr):
    """Return an upper bound of R's largest eigenvalue, 1 for zero."""
    bound = tl.sum(tl.sum(r * eye, 1), 0)
    if SCHATTEN4:
        bound = tl.sqrt(tl.sum(tl.sum(r * r, 1), 0))
    return tl.where(bound == 0.0, 1.0, bound)


@triton.jit
def small_kernel(
    x_ptr,  # (b, n, m), n <= N, or a table of b addresses
    y_ptr,  # (b, n, m), or a table
    scratch_ptr,  # unused here, see `small_scratch_kernel`
    type_ptr,  # any pointer of X's element type, where TABLE
    steps_ptr,  # (steps, 10) float32: how many links, and alpha, beta, gamma of up to three
    n,
    m,
    steps,
    stride_xb,
    stride_xn,
    stride_xm,
    stride_yb,
    stride_yn,
    stride_ym,
    N: tl.constexpr,  # n rounded up to a power of two, at least 16
    BLOCK: tl.constexpr,  # columns a turn
    SCHATTEN4: tl.constexpr,
    TABLE: tl.constexpr,  # 0, or x_ptr and y_ptr hold addresses that this many bytes divide
    PRECISION: tl.constexpr,
):
    """Orthogonalize one matrix, everything in registers."""
    batch = tl.program_id(0).to(tl.int64)
    if TABLE:
        element: tl.constexpr = type_ptr.dtype
        x_base = tl.multiple_of(tl.load(x_ptr + batch).to(element), TABLE)
        y_base = tl.multiple_of(tl.load(y_ptr + batch).to(element), TABLE)
    else:
        x_base = x_ptr + batch * stride_xb
        y_base = y_ptr + batch * stride_yb
    r, top = _gram_of_stream(x_base, stride_xn, stride_xm, n, m, N, BLOCK, PRECISION)
    i = tl.arange(0, N)
    eye = (i[:, None] == i[None, :]).to(tl.float32)
    bound = _bound(r, eye, SCHATTEN4)
    r = r / bound
    q = eye
    for k in range(0, steps):
        c = steps_ptr + k * 10
        w = r
        for _ in range(0, tl.load(c).to(tl.int32)):
            w = tl.load(c + 1) * tl.dot(w, w, input_precision=PRECISION)
            w += tl.load(c + 2) * r + tl.load(c + 3) * eye
            c += 3
        q = tl.dot(w, q, input_precision=PRECISION)
        if k + 1 < steps:
            r = tl.dot(w, r, input_precision=PRECISION)
            r = tl.dot(r, w, input_precision=PRECISION)
            # Commuting factors make R symmetric in exact arithmetic; rounding must not undo it.
            r = 0.5 * (r + tl.trans(r))
    q = q / tl.sqrt(bound)

    for c0 in range(0, m, BLOCK):
        x = _load_tile(x_base, stride_xn, stride_xm, n, m - c0, N, BLOCK).to(tl.float32)
        x_base += BLOCK * stride_xm
        y = tl.dot(q, x / top, input_precision=PRECISION)
        cols = c0 + tl.arange(0, BLOCK)
        keep = (i < n)[:, None] & (cols < m)[None, :]
        offsets = i.to(tl.int64)[:, None] * stride_yn + cols.to(tl.int64)[None, :] * stride_ym
        tl.store(y_base + offsets, y.to(y_base.dtype.element_ty), mask=keep)


@triton.jit
def _cached(base, N: tl.constexpr):
    i = tl.arange(0, N)
    return base + i[:, None] * N + i[None, :]


@triton.jit
def _put(base, value, N: tl.constexpr):
    """Store an N x N matrix once everybody has read the old one, before anybody reads the new."""
    tl.debug_barrier()
    tl.store(_cached(base, N), value)
    tl.debug_barrier()


@triton.jit
def _cached_product(a_base, b_base, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    """Return A B of two cached N x N matrices, K of the inner dimension at a time."""
    acc = tl.zeros((N, N), dtype=tl.float32)
    i = tl.arange(0, N)
    k = tl.arange(0, K)
    for k0 in range(0, N, K):
        a = tl.load(a_base + i[:, None] * N + (k0 + k)[None, :])
        b = tl.load(b_base + (k0 + k)[:, None] * N + i[None, :])
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def small_scratch_kernel(
    x_ptr,
    y_ptr,
    scratch_ptr,  # (b, 4, N, N) float32
    type_ptr,
    steps_ptr,
    n,
    m,
    steps,
    stride_xb,
    stride_xn,
    stride_xm,
    stride_yb,
    stride_yn,
    stride_ym,
    N: tl.constexpr,
    BLOCK: tl.constexpr,  # columns a turn, and the inner piece of a product
    SCHATTEN4: tl.constexpr,
    TABLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Orthogonalize one matrix, its n x n matrices in a cached scratch."""
    batch = tl.program_id(0).to(tl.int64)
    if TABLE:
        element: tl.constexpr = type_ptr.dtype
        x_base = tl.multiple_of(tl.load(x_ptr + batch).to(element), TABLE)
        y_base = tl.multiple_of(tl.load(y_ptr + batch).to(element), TABLE)
    else:
        x_base = x_ptr + batch * stride_xb
        y_base = y_ptr + batch * stride_yb
    r_base = scratch_ptr + batch * 4 * N * N
    v_base = r_base + N * N
    w_base = v_base + N * N
    q_base = w_base + N * N

    r, top = _gram_of_stream(x_base, stride_xn, stride_xm, n, m, N, BLOCK, PRECISION)
    i = tl.arange(0, N)
    eye = (i[:, None] == i[None, :]).to(tl.float32)
    bound = _bound(r, eye, SCHATTEN4)
    _put(r_base, r / bound, N)
    _put(q_base, eye / tl.sqrt(bound), N)
    for step in range(0, steps):
        c = steps_ptr + step * 10
        _put(w_base, tl.load(_cached(r_base, N)), N)
        for _ in range(0, tl.load(c).to(tl.int32)):
            w = tl.load(c + 1) * _cached_product(w_base, w_base, N, BLOCK, PRECISION)
            eye = (i[:, None] == i[None, :]).to(tl.float32)
            w += tl.load(c + 2) * tl.load(_cached(r_base, N)) + tl.load(c + 3) * eye
            _put(w_base, w, N)
            c += 3
        _put(q_base, _cached_product(w_base, q_base, N, BLOCK, PRECISION), N)
        if step + 1 < steps:
            _put(v_base, _cached_product(w_base, r_base, N, BLOCK, PRECISION), N)
            r = _cached_product(v_base, w_base, N, BLOCK, PRECISION)
            _put(r_base, 0.5 * (r + tl.trans(r)), N)

    for c0 in range(0, m, BLOCK):
        y = tl.zeros((N, BLOCK), dtype=tl.float32)
        for k0 in range(0, N, BLOCK):
            k = k0 + tl.arange(0, BLOCK)
            q = tl.load(q_base + i[:, None] * N + k[None, :])
            x_start = x_base + k0 * stride_xn
            x = _load_tile(x_start, stride_xn, stride_xm, n - k0, m - c0, BLOCK, BLOCK)
            y = tl.dot(q, x.to(tl.float32) / top, y, input_precision=PRECISION)
        x_base += BLOCK * stride_xm
        cols = c0 + tl.arange(0, BLOCK)
        keep = (i < n)[:, None] & (cols < m)[None, :]
        offsets = i.to(tl.int64)[:, None] * stride_yn + cols.to(tl.int64)[None, :] * stride_ym
        tl.store(y_base + offsets, y.to(y_base.dtype.element_ty), mask=keep)
