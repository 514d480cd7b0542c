"""The general product of the iteration: ``D = alpha Q X + beta C``, batched.

With C = D = a weight, beta = 1 - lr * weight_decay and alpha = -lr * scale it is the whole
update of the weight, so that the orthogonalized matrix is never written to memory.
"""

import triton
import triton.language as tl

from .symmetric import _load_tile

__all__ = ["apply_kernel"]


@triton.jit
def _swizzle(tile, rows, cols, GROUP: tl.constexpr):
    """Walk the tile grid in bundles of GROUP rows, so that neighbours share tiles in L2."""
    width = GROUP * cols
    first = tile // width * GROUP
    height = tl.minimum(rows - first, GROUP)
    return first + tile % width % height, tile % width // height


@triton.jit
def apply_kernel(
    q_ptr,  # (b, n, n), symmetric
    x_ptr,  # (b, n, m)
    c_ptr,  # (b, n, m), or a table of b addresses; read where HAS_C
    d_ptr,  # (b, n, m), or the table again
    scalars_ptr,  # alpha, beta in float32 on the device: a learning rate needs no recompilation
    type_ptr,  # any pointer of C's element type, where TABLE
    n,
    m,
    stride_qb,
    stride_qn,
    stride_qk,
    stride_xb,
    stride_xn,
    stride_xm,
    stride_cb,
    stride_cn,
    stride_cm,
    stride_db,
    stride_dn,
    stride_dm,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_C: tl.constexpr,
    TABLE: tl.constexpr,  # 0, or c_ptr and d_ptr hold addresses that this many bytes divide
    DESCRIPTOR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute one BLOCK_M x BLOCK_N tile of D."""
    rows = tl.cdiv(n, BLOCK_M)
    cols = tl.cdiv(m, BLOCK_N)
    pid = tl.program_id(0)
    batch = (pid // (rows * cols)).to(tl.int64)
    row, col = _swizzle(pid % (rows * cols), rows, cols, GROUP)
    row0 = row * BLOCK_M
    col0 = col * BLOCK_N
    q_base = q_ptr + batch * stride_qb
    x_base = x_ptr + batch * stride_xb
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if DESCRIPTOR:
        q_tiles = tl.make_tensor_descriptor(q_base, [n, n], [stride_qn, 1], [BLOCK_M, BLOCK_K])
        x_tiles = tl.make_tensor_descriptor(x_base, [n, m], [stride_xn, 1], [BLOCK_K, BLOCK_N])
        for k0 in range(0, n, BLOCK_K):
            q = q_tiles.load([row0, k0])
            x = x_tiles.load([k0, col0])
            acc = tl.dot(q, x, acc, input_precision=PRECISION)
    else:
        q_base += row0.to(tl.int64) * stride_qn
        x_base += col0.to(tl.int64) * stride_xm
        for k0 in range(0, n, BLOCK_K):
            q = _load_tile(q_base, stride_qn, stride_qk, n - row0, n - k0, BLOCK_M, BLOCK_K)
            x = _load_tile(x_base, stride_xn, stride_xm, n - k0, m - col0, BLOCK_K, BLOCK_N)
            acc = tl.dot(q, x, acc, input_precision=PRECISION)
            q_base += BLOCK_K * stride_qk
            x_base += BLOCK_K * stride_xn
    out = acc * tl.load(scalars_ptr)
    if TABLE:
        element: tl.constexpr = type_ptr.dtype
        c_base = tl.multiple_of(tl.load(c_ptr + batch).to(element), TABLE)
        d_base = tl.multiple_of(tl.load(d_ptr + batch).to(element), TABLE)
    else:
        c_base = c_ptr + batch * stride_cb
        d_base = d_ptr + batch * stride_db
    if HAS_C:
        c_base += row0.to(tl.int64) * stride_cn + col0.to(tl.int64) * stride_cm
        old = _load_tile(c_base, stride_cn, stride_cm, n - row0, m - col0, BLOCK_M, BLOCK_N)
        out += tl.load(scalars_ptr + 1) * old.to(tl.float32)
    i = tl.arange(0, BLOCK_M)
    j = tl.arange(0, BLOCK_N)
    keep = (i < n - row0)[:, None] & (j < m - col0)[None, :]
    d_base += row0.to(tl.int64) * stride_dn + col0.to(tl.int64) * stride_dm
    out = out.to(d_base.dtype.element_ty)
    tl.store(d_base + i[:, None] * stride_dn + j[None, :] * stride_dm, out, mask=keep)
