"""A preconditioner on whole matrices, wherever their pieces lie."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from specgd_common.tensors import full, is_dtensor, local

from ..distributed.exchange import cut
from ..distributed.layout import Layout, rewrapped
from ..groups.matrix_view import MatrixView, as_matrices
from ..triton_kernels.iterate.run import as_written
from .batches import CPU_BYTES
from .rule_state import PREFIX, rule_shapes, rule_views


def alike(
    rule: Any, params: Sequence[Tensor], members: Sequence[int], view: MatrixView, max_bytes: int
) -> list[list[int]]:
    """Group places in ``members`` whose parameters are preconditioned in one call.

    They have one shape, the rule has a true attribute ``together``, and what is stacked, state
    included, stays below ``max_bytes`` and 64 MiB. A DTensor, whose pieces are gathered, is alone.

    Args:
        rule: The function.
        params: The parameters.
        members: Positions of some of them.
        view: How each is seen as matrices.
        max_bytes: Bound on what is stacked.

    Example:
        >>> from torch_specgd import Shampoo
        >>> params = [torch.zeros(2, 3), torch.zeros(4, 4), torch.zeros(2, 3)]
        >>> alike(Shampoo(), params, [0, 1, 2], MatrixView(), 10**6)
        [[0, 2], [1]]
        >>> alike(Shampoo(), params, [0, 1, 2], MatrixView(), 1)
        [[0], [2], [1]]
    """
    groups: dict[Any, list[int]] = {}
    for place, i in enumerate(members):
        p = params[i]
        alone = is_dtensor(p) or not getattr(rule, "together", False)
        key = place if alone else (p.shape, p.dtype, p.device)
        groups.setdefault(key, []).append(place)
    result = []
    for places in groups.values():
        p = params[members[places[0]]]
        numbers = 2 * p.numel() + sum(x.numel() for x in rule_shapes(rule, p, view).values())
        count = max(1, min(max_bytes, CPU_BYTES) // (numbers * max(4, p.element_size())))
        result += [places[k : k + count] for k in range(0, len(places), count)]
    return result


def precondition_(
    rule: Any,
    params: Sequence[Tensor],
    updates: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    view: MatrixView,
    step: int,
) -> None:
    """Precondition updates of parameters of one shape in place, by one call of the rule.

    Args:
        rule: The function of (update, gradient, state).
        params: The parameters; of DTensors one, whose pieces are gathered on every rank.
        updates: Of a DTensor this rank's piece.
        gradients: Likewise.
        states: The parameters', changed in place.
        view: How each is seen as matrices.
        step: Number of this step, the first is 1.

    Raises:
        ValueError: If the rule returns another shape than the update's.
    """
    first = params[0]
    layout = Layout.of(first)
    dtype = torch.promote_types(first.dtype, torch.float32)
    us, gs = (
        [full(rewrapped(x, p)).to(dtype) for x, p in zip(xs, params, strict=True)]
        for xs in (updates, gradients)
    )
    if not layout.here:
        return
    names = rule_shapes(rule, first, view)
    kept = [{name: local(state[name]) for name in names} for state in states]
    wide = [{name.removeprefix(PREFIX): x.to(dtype) for name, x in own.items()} for own in kept]
    done = []
    rows = (zip(*map(view.pieces, xs), strict=True) for xs in (us, gs))
    owned = zip(*(rule_views(rule, first.shape, view, own) for own in wide), strict=True)
    for parts, grads, owns in zip(*rows, owned, strict=True):
        x, y = (_together([_matrices(each, view) for each in some]) for some in (parts, grads))
        state = {name: _together([own[name] for own in owns]) for name in owns[0]}
        with as_written(x.device):
            result = rule(x, y, {**state, "step": step})
        if result.shape != x.shape:
            raise ValueError(
                f"precondition must return the update's shape {tuple(x.shape)}, got "
                f"{tuple(result.shape)}"
            )
        _part(state, owns)
        turned = _with_outputs_first(result, view).chunk(len(params))
        done.append([x.reshape(part.shape) for x, part in zip(turned, parts, strict=True)])
    for update, pieces in zip(updates, zip(*done, strict=True), strict=True):
        whole = view.joined(list(pieces))
        for d in layout.divisions():
            whole = whole if d.dim is None else cut(whole, d)[d.index]
        update.copy_(whole)
    for own, changed in zip(kept, wide, strict=True):
        for x, y in zip(own.values(), changed.values(), strict=True):
            if x is not y:
                x.copy_(y)


def _matrices(x: Tensor, view: MatrixView) -> Tensor:
    return _with_outputs_first(as_matrices(x, view), view)


def _with_outputs_first(x: Tensor, view: MatrixView) -> Tensor:
    return x.mT if view.kind == "transposed" else x


def _together(xs: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(xs)) if len(xs) > 1 else xs[0]


def _part(state: Mapping[str, Tensor], owns: Sequence[Mapping[str, Tensor]]) -> None:
    """Write the state of a batch back to each of its parameters."""
    if len(owns) == 1:
        return  # views of it
    for name, whole in state.items():
        torch._foreach_copy_([own[name] for own in owns], list(whole.chunk(len(owns))))
