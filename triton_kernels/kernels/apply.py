"""The general product of the iteration: ``D = Q X``, batched, written in any dtype."""

import triton
import triton.language as tl

from .symmetric import _load_tile


@triton.jit
def _swizzle(tile, rows, cols, GROUP: tl.constexpr):
    """Walk the tile grid in bundles of GROUP rows, so that neighbours share tiles in L2."""
    width = GROUP * cols
    first = tile // width * GROUP
    height = tl.minimum(rows - first, GROUP)
    return first + tile % width % height, tile % width // height


@triton.jit
def apply_kernel(
    q,  # (b, n, n), symmetric: a pointer, or a tensor descriptor where DESCRIPTOR
    x,  # (b, n, m), likewise
    d_ptr,  # (b, n, m)
    n,
    m,
    stride_qb,
    stride_qn,
    stride_qk,
    stride_xb,
    stride_xn,
    stride_xm,
    stride_db,
    stride_dn,
    stride_dm,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    DESCRIPTOR: tl.constexpr,  # tiles of Q and X through tensor descriptors (TMA)
    PRECISION: tl.constexpr,
):
    """Compute one BLOCK_M x BLOCK_N tile of D."""
    rows = tl.cdiv(n, BLOCK_M)
    cols = tl.cdiv(m, BLOCK_N)
    pid = tl.program_id(0)
    member = pid // (rows * cols)
    batch = member.to(tl.int64)
    row, col = _swizzle(pid % (rows * cols), rows, cols, GROUP)
    row0 = row * BLOCK_M
    col0 = col * BLOCK_N
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if DESCRIPTOR:
        for k0 in range(0, n, BLOCK_K):
            left = q.load([member, row0, k0]).reshape(BLOCK_M, BLOCK_K)
            right = x.load([member, k0, col0]).reshape(BLOCK_K, BLOCK_N)
            acc = tl.dot(left, right, acc, input_precision=PRECISION)
    else:
        q += batch * stride_qb + row0.to(tl.int64) * stride_qn
        x += batch * stride_xb + col0.to(tl.int64) * stride_xm
        for k0 in range(0, n, BLOCK_K):
            left = _load_tile(q, stride_qn, stride_qk, n - row0, n - k0, BLOCK_M, BLOCK_K)
            right = _load_tile(x, stride_xn, stride_xm, n - k0, m - col0, BLOCK_K, BLOCK_N)
            acc = tl.dot(left, right, acc, input_precision=PRECISION)
            q += BLOCK_K * stride_qk
            x += BLOCK_K * stride_xn
    i = tl.arange(0, BLOCK_M)
    j = tl.arange(0, BLOCK_N)
    keep = (i < n - row0)[:, None] & (j < m - col0)[None, :]
    d = d_ptr + batch * stride_db + row0.to(tl.int64) * stride_dn + col0.to(tl.int64) * stride_dm
    out = acc.to(d_ptr.dtype.element_ty)
    tl.store(d + i[:, None] * stride_dn + j[None, :] * stride_dm, out, mask=keep)
