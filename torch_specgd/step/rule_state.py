"""The state of a preconditioner: whole on every rank, flat, one matrix's entries after the other's.

A weight may consist of matrices of several shapes (fused ones, stacks), so that no other form fits
all of them. The names are the rule's own, behind a prefix.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import Size, Tensor

from specgd_common.tensors import is_dtensor, local

from ..checks import PRECONDITION
from ..groups.matrix_view import MatrixView, batch_shape, matrix_shape
from .precondition import BY_NAME

PREFIX = PRECONDITION


def rule_of(precondition: Any) -> Any:
    """Return the function that a setting means, or None."""
    return BY_NAME[precondition] if isinstance(precondition, str) else precondition


def rule_shapes(precondition: Any, p: Tensor, view: MatrixView) -> dict[str, Size]:
    """Return the shape of each entry of a parameter's state.

    Args:
        precondition: The setting, which is not None.
        p: The parameter.
        view: How it is seen as matrices.

    Example:
        >>> rule_shapes("shampoo", torch.zeros(5, 3, 2), MatrixView())["precondition_right"]
        torch.Size([20])
    """
    total: dict[str, int] = {}
    for batch, shapes in _of_pieces(rule_of(precondition), p.shape, view):
        for name, shape in shapes.items():
            total[PREFIX + name] = total.get(PREFIX + name, 0) + batch * prod(shape)
    return {name: Size((n,)) for name, n in total.items()}


def start(precondition: Any, p: Tensor, view: MatrixView, state: dict[str, Any]) -> None:
    """Add what a parameter's state does not have yet: zeros, and identities where the rule says.

    An entry of another shape is an earlier rule's, and starts anew.
    """
    rule = rule_of(precondition)
    shapes = rule_shapes(precondition, p, view)
    dtype = torch.promote_types(p.dtype, torch.float32)
    device = local(p).device
    there = {name: state[name].shape for name in shapes if name in state}
    for name in [name for name, shape in shapes.items() if there.get(name) != shape]:
        parts = []
        for batch, own in _of_pieces(rule, p.shape, view):
            shape = own.get(name.removeprefix(PREFIX))
            if shape is None:
                continue
            one = torch.zeros(shape, dtype=dtype, device=device)
            if name.removeprefix(PREFIX) in getattr(rule, "identities", ()):
                one = torch.eye(shape[0], dtype=dtype, device=device)
            parts.append(one.flatten().repeat(batch))
        state[name] = _replicated(torch.cat(parts), p)


def _replicated(x: Tensor, p: Tensor) -> Tensor:
    if not is_dtensor(p):
        return x
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(x, p.device_mesh, [Replicate()] * p.device_mesh.ndim, run_check=False)


def rule_views(
    rule: Any, shape: Size, view: MatrixView, state: Mapping[str, Tensor]
) -> Iterator[dict[str, Tensor]]:
    """Yield each piece's state as views of the whole, (B, *shape) by the rule's own names.

    Args:
        rule: The function.
        shape: Of the whole parameter.
        view: How it is seen as matrices.
        state: Flat tensors by the rule's own names.
    """
    at = dict.fromkeys(state, 0)
    for batch, shapes in _of_pieces(rule, shape, view):
        views = {}
        for name, own in shapes.items():
            count = batch * prod(own)
            views[name] = state[name].narrow(0, at[name], count).view(batch, *own)
            at[name] += count
        yield views


def _of_pieces(
    rule: Any, shape: Size, view: MatrixView
) -> Iterator[tuple[int, Mapping[str, tuple[int, ...]]]]:
    """Yield (B, shape of each tensor of a matrix's state) of each piece."""
    for piece in view.part_shapes(shape):
        shapes = rule.shapes(*matrix_shape(piece, view)) if hasattr(rule, "shapes") else {}
        yield batch_shape(piece, view)[0], shapes
