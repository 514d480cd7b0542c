"""The collectives of one division: pieces to their owners, results back to the pieces.

Each function is a generator that launches one collective, yields while it is in flight, and
returns its outcome when resumed, so that the caller computes something else meanwhile. All ranks
of a group go through the same matrices in the same order, whatever the lengths of their pieces.
"""

from collections.abc import Generator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .layout import Division

Pieces = dict[int, Tensor]
InFlight = Generator[None, None, Pieces]
Shape = tuple[int, ...]


def to_owners(
    pieces: Pieces, d: Division, whole: Mapping[int, Shape], owner: Mapping[int, int], like: Tensor
) -> InFlight:
    """Bring the pieces of each matrix to its owner and puts them together there.

    Args:
        pieces: This rank's piece of each matrix.
        d: What divides them.
        whole: Shape of each matrix before the division.
        owner: Owner of each matrix, a coordinate of the division.
        like: Any tensor of the dtype and on the device of the pieces.

    Returns:
        The matrices that this rank owns, undivided.
    """
    if d.dim is None:
        return {i: x for i, x in pieces.items() if owner[i] == d.index}
    ids = [[i for i in pieces if owner[i] == r] for r in range(d.size)]
    mine = ids[d.index]
    received = yield from _all_to_all(
        [[pieces[i] for i in theirs] for theirs in ids],
        [[_piece_shape(whole[i], d, r) for i in mine] for r in range(d.size)],
        d,
        like,
    )
    return {i: _join(list(parts), d) for i, *parts in zip(mine, *received, strict=True)}


def from_owners(
    results: Pieces, d: Division, whole: Mapping[int, Shape], owner: Mapping[int, int], like: Tensor
) -> InFlight:
    """Undo `to_owners`: each owner hands out the pieces of what it has computed.

    Args:
        results: The matrices that this rank owns, undivided.
        d: What divides them.
        whole: Shape before the division of each matrix, whoever owns it.
        owner: Owner of each matrix, a coordinate of the division.
        like: Any tensor of the dtype and on the device of the results.

    Returns:
        This rank's piece of each matrix.
    """
    ids = [[i for i in whole if owner[i] == r] for r in range(d.size)]
    if d.dim is None:
        shapes = [[whole[i] for i in theirs] for theirs in ids]
        received = yield from _all_gather(list(results.values()), shapes, d, like)
    else:
        pieces = [cut(x, d) for x in results.values()]
        received = yield from _all_to_all(
            [[parts[r] for parts in pieces] for r in range(d.size)],
            [[_piece_shape(whole[i], d, d.index) for i in theirs] for theirs in ids],
            d,
            like,
        )
    owned = zip(ids, received, strict=True)
    found = {i: x for theirs, parts in owned for i, x in zip(theirs, parts, strict=True)}
    return {i: found[i] for i in whole}


def _piece_shape(whole: Shape, d: Division, rank: int) -> Shape:
    assert d.dim is not None
    return (*whole[: d.dim], d.lengths(whole[d.dim])[rank], *whole[d.dim + 1 :])


def _join(parts: list[Tensor], d: Division) -> Tensor:
    assert d.dim is not None
    joined = torch.cat(parts, d.dim)
    order = d.order(joined.shape[d.dim])
    if order is None:
        return joined
    return torch.empty_like(joined).index_copy_(
        d.dim, torch.tensor(order, device=joined.device), joined
    )


def cut(x: Tensor, d: Division) -> tuple[Tensor, ...]:
    """Cut a tensor into the pieces of all ranks of a division that has a dimension."""
    assert d.dim is not None
    order = d.order(x.shape[d.dim])
    if order is not None:
        x = x.index_select(d.dim, torch.tensor(order, device=x.device))
    return x.split(d.lengths(x.shape[d.dim]), d.dim)


def _all_to_all(
    sent: Sequence[Sequence[Tensor]], shapes: Sequence[Sequence[Shape]], d: Division, like: Tensor
) -> Generator[None, None, list[list[Tensor]]]:
    """Send a list of tensors to every rank; ``shapes`` says what comes from each of them."""
    outgoing = [_flat(tensors, like) for tensors in sent]
    sizes = [sum(map(_numel, theirs)) for theirs in shapes]
    buffer = like.new_empty(sum(sizes))
    flat = torch.cat(outgoing)
    splits = [x.numel() for x in outgoing]
    work = dist.all_to_all_single(buffer, flat, sizes, splits, group=d.group, async_op=True)
    yield
    work.wait()
    return [_shaped(x, theirs) for x, theirs in zip(buffer.split(sizes), shapes, strict=True)]


def _all_gather(
    sent: Sequence[Tensor], shapes: Sequence[Sequence[Shape]], d: Division, like: Tensor
) -> Generator[None, None, list[list[Tensor]]]:
    """Show a list of tensors to every rank; ``shapes`` says what comes from each of them."""
    sizes = [sum(map(_numel, theirs)) for theirs in shapes]
    # Padded to the largest: gloo refuses to gather tensors of different lengths.
    buffer = like.new_empty(d.size * max(sizes))
    flat = like.new_zeros(max(sizes))
    flat[: sizes[d.index]] = _flat(sent, like)
    work = all_gather_flat(buffer, flat, d.group)
    yield
    work.wait()
    parts = buffer.view(d.size, -1)
    return [_shaped(x[:n], s) for x, n, s in zip(parts, sizes, shapes, strict=True)]


def all_gather_flat(buffer: Tensor, flat: Tensor, group: "dist.ProcessGroup") -> "dist.Work":
    """Launch the gathering of each rank's ``flat`` into ``buffer``, one after the other."""
    # torch 2.13 gave it this name, and warns of the old one, which older versions need.
    launch = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    return launch(buffer, flat, group=group, async_op=True)


def _flat(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.cat([x.reshape(-1) for x in tensors]) if tensors else like.new_empty(0)


def _numel(shape: Shape) -> int:
    return torch.Size(shape).numel()


def _shaped(flat: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    parts = flat.split([_numel(s) for s in shapes]) if shapes else ()
    return [x.view(s) for x, s in zip(parts, shapes, strict=True)]
