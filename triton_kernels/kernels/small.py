"""A whole orthogonalization in one program: for short sides up to 64.

The Gram matrix is accumulated in registers while X streams by once, all steps happen in
float32 inside the program, and X streams by a second time to be multiplied. Hundreds of LoRA
factors are one launch. The steps' coefficients are arguments of the kernel, so that a launch needs
no memory but the matrices'. A long matrix is the work of several programs: a launch before it sums
each part's Gram matrix.
"""

import triton
import triton.language as tl

from .symmetric import _load_tile


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
def parts_kernel(
    x_ptr,  # (b, n, m), n <= N
    parts_ptr,  # (b, parts, N + 1, N) float32
    n,
    m,
    parts,  # of a matrix
    stride_xb,
    stride_xn,
    stride_xm,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,  # of a part, a multiple of BLOCK
    PRECISION: tl.constexpr,
):
    """Write the Gram matrix of a part of one matrix over its largest entry squared, and that."""
    program = tl.program_id(0).to(tl.int64)
    first = program % parts * COLUMNS
    x_base = x_ptr + program // parts * stride_xb + first * stride_xm
    columns = tl.minimum(m - first, COLUMNS).to(tl.int32)
    r, top = _gram_of_stream(x_base, stride_xn, stride_xm, n, columns, N, BLOCK, PRECISION)
    i = tl.arange(0, N)
    base = parts_ptr + program * (N + 1) * N
    tl.store(base + i[:, None] * N + i[None, :], r)
    tl.store(base + N * N, top)


@triton.jit
def _gram_of_parts(base, parts, N: tl.constexpr):
    """Return X X^T / top^2 and top = max |x| from what `parts_kernel` wrote."""
    top = 1.2e-38
    r = tl.zeros((N, N), dtype=tl.float32)
    i = tl.arange(0, N)
    for _ in range(0, parts):
        its = tl.load(base + N * N)
        new = tl.maximum(top, its)
        shrink, its = top / new, its / new
        some = tl.load(base + i[:, None] * N + i[None, :])
        r = r * (shrink * shrink) + some * (its * its)
        top = new
        base += (N + 1) * N
    return r, top


@triton.jit
def _bound(r, eye, SCHATTEN4: tl.constexpr):
    """Return an upper bound of R's largest eigenvalue, 1 for zero."""
    bound = tl.sum(tl.sum(r * eye, 1), 0)
    if SCHATTEN4:
        bound = tl.sqrt(tl.sum(tl.sum(r * r, 1), 0))
    return tl.where(bound == 0.0, 1.0, bound)


@triton.jit
def _pick(numbers, index, first: tl.constexpr, every: tl.constexpr, COUNT: tl.constexpr):
    """Return ``numbers[first + every * index]`` for an index that is known when the kernel runs."""
    value = numbers[first]
    for k in tl.static_range(1, COUNT):
        value = tl.where(index == k, numbers[first + every * k], value)
    return value


@triton.jit
def _product(a, b, base, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    """Return A B of two N x N matrices; where K < N, K of the inner dimension a turn.

    They then pass through memory: operands of a matrix instruction are copied to several warps,
    and whole ones would spill.
    """
    if K == N:
        return tl.dot(a, b, input_precision=PRECISION)
    i = tl.arange(0, N)
    k = tl.arange(0, K)
    whole = i[:, None] * N + i[None, :]
    # Everybody has read what the last product left, before it is written over.
    tl.debug_barrier()
    tl.store(base + whole, a)
    tl.store(base + N * N + whole, b)
    tl.debug_barrier()
    acc = tl.zeros((N, N), dtype=tl.float32)
    for k0 in range(0, N, K):
        left = tl.load(base + i[:, None] * N + (k0 + k)[None, :])
        right = tl.load(base + N * N + (k0 + k)[:, None] * N + i[None, :])
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
    return acc


@triton.jit
def small_kernel(
    x_ptr,  # (b, n, m), n <= N
    y_ptr,  # (b, n, m)
    scratch_ptr,  # (programs, 2, N, N) float32 where K < N, else any pointer
    parts_ptr,  # from `parts_kernel` where COLUMNS > 0, else None
    numbers,  # tuple of floats: alpha, beta, gamma of each link of each step
    links,  # tuple of floats: how many links the chain of each step has
    n,
    m,
    parts,  # programs for one matrix
    stride_xb,
    stride_xn,
    stride_xm,
    stride_yb,
    stride_yn,
    stride_ym,
    N: tl.constexpr,  # n rounded up to a power of two, at least 16
    BLOCK: tl.constexpr,  # columns a turn
    STEPS: tl.constexpr,
    LINKS: tl.constexpr,  # of all steps together
    SCHATTEN4: tl.constexpr,
    K: tl.constexpr,  # of the inner dimension a turn of a product; N: all of it
    COLUMNS: tl.constexpr,  # of a part, 0 for a whole matrix
    PRECISION: tl.constexpr,
):
    """Orthogonalize one matrix, or a part of its columns."""
    program = tl.program_id(0).to(tl.int64)
    scratch = scratch_ptr + program * 2 * N * N
    if COLUMNS > 0:
        batch, first = program // parts, program % parts * COLUMNS
        x_base = x_ptr + batch * stride_xb + first * stride_xm
        y_base = y_ptr + batch * stride_yb + first * stride_ym
        r, top = _gram_of_parts(parts_ptr + batch * parts * (N + 1) * N, parts, N)
        m = tl.minimum(m - first, COLUMNS).to(tl.int32)
    else:
        x_base = x_ptr + program * stride_xb
        y_base = y_ptr + program * stride_yb
        r, top = _gram_of_stream(x_base, stride_xn, stride_xm, n, m, N, BLOCK, PRECISION)
    i = tl.arange(0, N)
    eye = (i[:, None] == i[None, :]).to(tl.float32)
    bound = _bound(r, eye, SCHATTEN4)
    r = r / bound
    q = eye / tl.sqrt(bound)
    link = 0
    for step in range(0, STEPS):
        w = r
        for _ in range(0, _pick(links, step, 0, 1, STEPS).to(tl.int32)):
            w = _pick(numbers, link, 0, 3, LINKS) * _product(w, w, scratch, N, K, PRECISION)
            w += _pick(numbers, link, 1, 3, LINKS) * r
            w += tl.where(i[:, None] == i[None, :], _pick(numbers, link, 2, 3, LINKS), 0.0)
            link += 1
        q = _product(w, q, scratch, N, K, PRECISION)
        if step + 1 < STEPS:
            r = _product(w, r, scratch, N, K, PRECISION)
            r = _product(r, w, scratch, N, K, PRECISION)
            # Commuting factors make R symmetric in exact arithmetic; rounding must not undo it.
            r = 0.5 * (r + tl.trans(r))

    for c0 in range(0, m, BLOCK):
        x = _load_tile(x_base, stride_xn, stride_xm, n, m - c0, N, BLOCK).to(tl.float32)
        x_base += BLOCK * stride_xm
        y = tl.dot(q, x / top, input_precision=PRECISION)
        cols = c0 + tl.arange(0, BLOCK)
        tl.debug_barrier()  # the result may lie over X: everybody has read these columns by now
        keep = (i < n)[:, None] & (cols < m)[None, :]
        offsets = i.to(tl.int64)[:, None] * stride_yn + cols.to(tl.int64)[None, :] * stride_ym
        tl.store(y_base + offsets, y.to(y_base.dtype.element_ty), mask=keep)
