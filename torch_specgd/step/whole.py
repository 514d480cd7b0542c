"""A preconditioner on whole matrices, wherever their pieces lie."""

from typing import Any

import torch
from torch import Tensor

from specgd_common.tensors import full, local

from ..distributed.exchange import cut
from ..distributed.layout import Layout, rewrapped
from ..groups.matrix_view import MatrixView, as_matrices
from ..triton_kernels.iterate.run import as_written
from .rule_state import PREFIX, rule_shapes, rule_views


def precondition_(
    rule: Any,
    p: Tensor,
    update: Tensor,
    gradient: Tensor,
    state: dict[str, Any],
    view: MatrixView,
    step: int,
) -> None:
    """Precondition one parameter's update in place; its pieces are gathered on every rank.

    Args:
        rule: The function of (update, gradient, state).
        p: The parameter, a DTensor or not.
        update: Of a DTensor this rank's piece.
        gradient: Likewise.
        state: The parameter's, changed in place.
        view: How it is seen as matrices.
        step: Number of this step, the first is 1.

    Raises:
        ValueError: If the rule returns another shape than the update's.
    """
    layout = Layout.of(p)
    dtype = torch.promote_types(p.dtype, torch.float32)
    u, g = (full(rewrapped(x, p)).to(dtype) for x in (update, gradient))
    if not layout.here:
        return
    kept = {name: local(state[name]) for name in rule_shapes(rule, p, view)}
    wide = {name.removeprefix(PREFIX): x.to(dtype) for name, x in kept.items()}
    done = []
    views = rule_views(rule, p.shape, view, wide)
    for part, grad, own in zip(view.pieces(u), view.pieces(g), views, strict=True):
        x, y = (_with_outputs_first(as_matrices(each, view), view) for each in (part, grad))
        with as_written(x.device):
            result = rule(x, y, {**own, "step": step})
        if result.shape != x.shape:
            raise ValueError(
                f"precondition must return the update's shape {tuple(x.shape)}, got "
                f"{tuple(result.shape)}"
            )
        done.append(_with_outputs_first(result, view).reshape(part.shape))
    whole = view.joined(done)
    for d in layout.divisions():
        whole = whole if d.dim is None else cut(whole, d)[d.index]
    update.copy_(whole)
    for x, y in zip(kept.values(), wide.values(), strict=True):
        if x is not y:
            x.copy_(y)


def _with_outputs_first(x: Tensor, view: MatrixView) -> Tensor:
    return x.mT if view.kind == "transposed" else x
