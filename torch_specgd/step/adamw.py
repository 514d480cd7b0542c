"""One AdamW step as a function of tensors, in arithmetic as wide as weights and state."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.adamw import adamw

from ..triton_kernels.multi_tensor import ROUND_ONCE, in_blocks, write_back
from ..triton_kernels.random_bits import RandomBits


def adamw_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    averages: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: list[Tensor],
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    maximize: bool = False,
    foreach: bool | None = None,
    capturable: bool = False,
    rounding: RandomBits | None = None,
) -> None:
    """Step weights by torch's AdamW, in place.

    Args:
        params: Weights, plain tensors (of a DTensor this rank's piece).
        grads: Gradients of the same shapes; never changed.
        averages: Running means of the gradients, any floating dtypes.
        squares: Running means of their squares, any floating dtypes.
        steps: Counts of steps, one-element tensors.
        lr: Learning rate, a float or a one-element tensor.
        betas: Weights of the old means.
        eps: The denominator's epsilon.
        weight_decay: Decoupled decay per unit of ``lr``.
        maximize: Ascend instead of descend.
        foreach: See :class:`Muon`.
        capturable: Whether ``steps`` lie on the parameters' device.
        rounding: Source of random bits for state that is rounded to bfloat16.
    """
    dtypes = [
        p.dtype
        if rounding is None and p.dtype == m.dtype == v.dtype
        else _widest(p.dtype, m.dtype, v.dtype, torch.float32 if rounding is not None else p.dtype)
        for p, m, v in zip(params, averages, squares, strict=True)
    ]
    ws, gs, ms, vs = (
        [x if x.dtype == dtype else x.to(dtype) for x, dtype in zip(xs, dtypes, strict=True)]
        for xs in (params, grads, averages, squares)
    )
    # On a CPU torch's fused form is the fastest of its three by far.
    fused = foreach is None and in_blocks(params) and not capturable
    fused = fused and all(dtype in ROUND_ONCE for dtype in dtypes)
    # torch's AdamW refuses foreach=True with a tensor lr outside of capturable.
    choosy = isinstance(lr, Tensor) and not capturable
    adamw(
        ws,
        gs,
        ms,
        vs,
        [],
        steps,
        foreach=False if fused else None if choosy and foreach else foreach,
        fused=fused,
        capturable=capturable,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=maximize,
    )
    if fused:
        increment_version(ws)
    write_back(params, ws, None)
    write_back([*averages, *squares], [*ms, *vs], rounding)


def _widest(*dtypes: torch.dtype) -> torch.dtype:
    return reduce(torch.promote_types, dtypes)
