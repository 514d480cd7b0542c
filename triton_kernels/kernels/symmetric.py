"""Symmetric products: one triangle of tiles is computed, the other is its mirror image.

``D = alpha A B^T + beta C + gamma I`` for (b, n, k) A and B. With A = B = X it is the Gram
matrix; with commuting symmetric A and B (for which A B^T = A B is symmetric) it is every
small product of the iteration, each link of a chain of squares with its polynomial fused.
"""

import triton
import triton.language as tl


@triton.jit
def _triangle(tile, RATIO: tl.constexpr):
    """Return (row block, column block) of a linear index over the lower triangle.

    Row blocks come in bundles of RATIO, as high together as a column block is wide, so the
    bundles form a square grid whose lower triangle is counted through.
    """
    u = tile // RATIO
    p = ((tl.sqrt(8.0 * u.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    # The float root may be off by one beyond 2^22 tiles; integers settle it.
    p = tl.where(p * (p + 1) // 2 > u, p - 1, p)
    p = tl.where((p + 1) * (p + 2) // 2 <= u, p + 1, p)
    return p * RATIO + tile % RATIO, u - p * (p + 1) // 2


@triton.jit
def _load_tile(start, stride_r, stride_c, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Load a ROWS x COLS tile from `start` on, zero beyond the `rows` x `cols` that are left.

    The caller moves `start` in 64 bits; inside a tile 32 bits are enough.
    """
    r = tl.arange(0, ROWS)
    c = tl.arange(0, COLS)
    mask = (r < rows)[:, None] & (c < cols)[None, :]
    return tl.load(start + r[:, None] * stride_r + c[None, :] * stride_c, mask=mask, other=0.0)


@triton.jit
def _store_mirrored(out, base, row0, col0, n, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Store the part of a tile on or below the diagonal, and its mirror image above.

    Every element is written once, so the result is symmetric bit by bit and free of races.
    """
    i = tl.arange(0, ROWS)
    j = tl.arange(0, COLS)
    r = row0 + i
    c = col0 + j
    value = out.to(base.dtype.element_ty)
    row64 = row0.to(tl.int64)
    col64 = col0.to(tl.int64)
    keep = (r[:, None] >= c[None, :]) & (r < n)[:, None]
    start = base + row64 * n + col64
    tl.store(start + i[:, None] * n + j[None, :], value, mask=keep)
    mirror = (r[None, :] > c[:, None]) & (r < n)[None, :]
    start = base + col64 * n + row64
    tl.store(start + j[:, None] * n + i[None, :], tl.trans(value), mask=mirror)


@triton.jit
def _epilogue(
    acc, c_base, d_base, alpha, beta, gamma, n, row0, col0,
    ROWS: tl.constexpr, COLS: tl.constexpr, HAS_C: tl.constexpr,
):  # fmt: skip
    """Turn an accumulator into a stored tile."""
    r = (row0 + tl.arange(0, ROWS))[:, None]
    c = (col0 + tl.arange(0, COLS))[None, :]
    out = alpha * acc + tl.where(r == c, gamma, 0.0)
    if HAS_C:
        start = c_base + row0.to(tl.int64) * n + col0
        old = _load_tile(start, n, 1, n - row0, n - col0, ROWS, COLS)
        out += beta * old.to(tl.float32)
    _store_mirrored(out, d_base, row0, col0, n, ROWS, COLS)


@triton.jit
def _halves(acc, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Split a tile into its left and right half."""
    return tl.split(tl.permute(tl.reshape(acc, (ROWS, 2, COLS // 2)), (0, 2, 1)))


@triton.jit
def symmetric_kernel(
    a,  # (b, n, k): a pointer, or a tensor descriptor where DESCRIPTOR
    b,  # (b, n, k), likewise, of A's strides
    c_ptr,  # (b, n, n), contiguous, read where HAS_C
    d_ptr,  # (b, n, n), contiguous
    alpha,
    beta,
    gamma,
    n,
    k,
    stride_xb,  # of A and B
    stride_xn,
    stride_xk,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_C: tl.constexpr,
    DESCRIPTOR: tl.constexpr,  # tiles of A and B through tensor descriptors (TMA)
    STRIPS: tl.constexpr,  # 1 or 2: how many parts of a tile the epilogue stores one by one
    PRECISION: tl.constexpr,
):
    """Compute one tile of the lower triangle and mirror it."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(n, BLOCK_N)
    tiles = BLOCK_N // BLOCK_M * (blocks * (blocks + 1) // 2)
    batch = (pid // tiles).to(tl.int64)
    i, j = _triangle(pid % tiles, BLOCK_N // BLOCK_M)
    row0 = i * BLOCK_M
    col0 = j * BLOCK_N
    if row0 < n:
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        if DESCRIPTOR:
            for k0 in range(0, k, BLOCK_K):
                left = a.load([pid // tiles, row0, k0]).reshape(BLOCK_M, BLOCK_K)
                right = b.load([pid // tiles, col0, k0]).reshape(BLOCK_N, BLOCK_K)
                acc = tl.dot(left, right.T, acc, input_precision=PRECISION)
        else:
            a += batch * stride_xb + row0.to(tl.int64) * stride_xn
            b += batch * stride_xb + col0.to(tl.int64) * stride_xn
            for k0 in range(0, k, BLOCK_K):
                left = _load_tile(a, stride_xn, stride_xk, n - row0, k - k0, BLOCK_M, BLOCK_K)
                right = _load_tile(b, stride_xn, stride_xk, n - col0, k - k0, BLOCK_N, BLOCK_K)
                acc = tl.dot(left, tl.trans(right), acc, input_precision=PRECISION)
                a += BLOCK_K * stride_xk
                b += BLOCK_K * stride_xk
        c_base = c_ptr + batch * n * n
        d_base = d_ptr + batch * n * n
        if STRIPS == 2:
            # Where a whole tile with its addend and its mirror image would spill.
            half: tl.constexpr = BLOCK_N // 2
            one, two = _halves(acc, BLOCK_M, BLOCK_N)
            _epilogue(one, c_base, d_base, alpha, beta, gamma, n, row0, col0, BLOCK_M, half, HAS_C)
            col0 += half
            _epilogue(two, c_base, d_base, alpha, beta, gamma, n, row0, col0, BLOCK_M, half, HAS_C)
        else:
            _epilogue(
                acc, c_base, d_base, alpha, beta, gamma, n, row0, col0, BLOCK_M, BLOCK_N, HAS_C
            )
