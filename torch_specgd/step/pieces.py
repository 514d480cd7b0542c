"""Orthogonalizes tensors that lie wherever they lie: ranks' pieces, split ones, compiled steps'."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..distributed.layout import Layout
from ..distributed.orthogonalize import orthogonalize_distributed
from ..groups.matrix_view import MatrixView
from ..triton_kernels import orthogonalize, orthogonalize_together
from .batches import seen


def orthogonalize_all(
    updates: Sequence[Tensor],
    views: Sequence[str | MatrixView],
    options: dict[str, Any],
    scale: Callable[[int, int], float] | None = None,
    layouts: Sequence[Layout] = (),
    share_work: bool = False,
) -> list[Tensor]:
    """Orthogonalize tensors of any shapes, all matrices of one shape in one batch.

    Args:
        updates: Tensors of two or more dimensions.
        views: How each is seen as matrices (see ``MatrixView``).
        options: Of the engine's ``orthogonalize``.
        scale: Factor by (outputs, inputs) of a matrix, applied to the pieces of split tensors
            only: their pieces differ in shape, where whole tensors have one factor each.
        layouts: How each is spread over ranks; none where all of them are whole.
        share_work: See :class:`~torch_specgd.Muon`.

    Returns:
        A tensor of each update's shape and dtype, in the same order.
    """
    if layouts:

        def of_whole(xs: list[Tensor], members: list[int]) -> list[Tensor]:
            return orthogonalize_all(xs, [views[i] for i in members], options, scale)

        return orthogonalize_distributed(updates, layouts, views, of_whole, share_work=share_work)
    # The compiler traces what is cached, and warns.
    kind = seen.__wrapped__ if torch.compiler.is_compiling() else seen
    kinds = [kind(u.shape, v) for u, v in zip(updates, views, strict=True)]
    parts = [
        (u,) if k.view.split is None else k.view.pieces(u)
        for u, k in zip(updates, kinds, strict=True)
    ]
    flat = [(x, kind(x.shape, k.view)) for xs, k in zip(parts, kinds, strict=True) for x in xs]
    done = iter(_by_shape([x.reshape(k.batch) for x, k in flat], options))
    result = []
    for u, xs, k in zip(updates, parts, kinds, strict=True):
        if k.view.split is None:
            result.append(next(done).reshape(u.shape))
            continue
        outputs = [next(done).reshape(x.shape) for x in xs]
        if scale is not None:
            factors = [scale(*kind(x.shape, k.view).logical) for x in xs]
            outputs = [o * factor for o, factor in zip(outputs, factors, strict=True)]
        result.append(k.view.joined(outputs))
    return result


def _by_shape(matrices: Sequence[Tensor], options: dict[str, Any]) -> list[Tensor]:
    """Return the result of each (B, m, n), in their order; those of one (m, n) in one batch."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, x in enumerate(matrices):
        alike.setdefault((x.shape[-2:], x.dtype, x.device), []).append(i)
    joined = [[matrices[i] for i in members] for members in alike.values()]
    xs = [torch.cat(some) if len(some) > 1 else some[0] for some in joined]
    if torch.compiler.is_compiling():
        # Tall results come transposed: one pass over all beats strided reads later.
        outs = [orthogonalize(x, **options).contiguous() for x in xs]
    else:
        outs = [x.new_empty(x.shape) for x in xs]
        orthogonalize_together(xs, outs, **options)
    result = list(matrices)
    for members, some, o in zip(alike.values(), joined, outs, strict=True):
        for i, part in zip(members, o.split([len(x) for x in some]), strict=True):
            result[i] = part
    return result
