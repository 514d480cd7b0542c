"""How a weight that holds several matrices is cut, declared by a user or found by a layout."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# (dim, sizes), or (dim, sizes, repeats) where runs of these sizes follow each other. Plain numbers,
# because they are stored in groups and so in checkpoints.
Cut = tuple[int, tuple[int, ...]] | tuple[int, tuple[int, ...], int]


def Interleaved(heads: int, sizes: Sequence[int], dim: int = 0) -> Cut:
    """Declare a weight whose matrices are interleaved head by head.

    Along ``dim`` the weight consists of ``heads`` runs, each of ``sizes`` rows. The first rows of
    all runs are one matrix, the next ones another.

    Args:
        heads: Number of runs.
        sizes: Rows that each matrix has in a run.
        dim: Dimension along which they lie (default 0).

    Returns:
        (dim, sizes, heads), for ``param_groups(splits=...)`` or as a group's ``split``.

    Example:
        >>> Interleaved(2, (4, 4, 4))  # GPT-NeoX: q, k and v of head 0, then those of head 1
        (0, (4, 4, 4), 2)
    """
    return dim, tuple(sizes), heads


Split = int | Sequence[Any] | None


def cut_of(split: Any) -> Cut | None:
    """Return a split in tuples, as which it is a key: settings read from a file come in lists."""
    if split is None:
        return None
    dim, sizes, repeats = unpacked(split)
    return (dim, sizes, repeats) if repeats > 1 else (dim, sizes)


def unpacked(split: Sequence[Any]) -> tuple[int, tuple[int, ...], int]:
    """Return (dim, sizes, repeats) of a cut of either length."""
    return split[0], tuple(split[1]), split[2] if len(split) > 2 else 1


def part_sizes(split: Sequence[Any]) -> tuple[int, ...]:
    """Return the length of each part along the cut's dimension.

    Example:
        >>> part_sizes((0, (8, 4))), part_sizes((0, (2, 1), 4))
        ((8, 4), (8, 4))
    """
    _, sizes, repeats = unpacked(split)
    return tuple(n * repeats for n in sizes)


def pieces(x: Tensor, cut: Sequence[Any] | None) -> tuple[Tensor, ...]:
    """Return the matrices of a fused weight, in their order.

    They are views of ``x``, but for a cut with repeats, whose parts are gathered.
    """
    if cut is None:
        return (x,)
    dim, sizes, repeats = unpacked(cut)
    if repeats == 1:
        return x.split(list(sizes), dim)
    dim %= x.ndim
    runs = x.unflatten(dim, (repeats, -1)).split(list(sizes), dim + 1)
    return tuple(run.flatten(dim, dim + 1) for run in runs)


def joined(parts: Sequence[Tensor], cut: Sequence[Any] | None) -> Tensor:
    """Return the whole of which these are the pieces."""
    if cut is None:
        return parts[0]
    dim, _, repeats = unpacked(cut)
    if repeats == 1:
        return torch.cat(list(parts), dim)
    dim %= parts[0].ndim
    runs = [x.unflatten(dim, (repeats, -1)) for x in parts]
    return torch.cat(runs, dim + 1).flatten(dim, dim + 1)


def normalize_split(split: Split, p: Tensor, name: str) -> Cut | None:
    """Turn a user's declaration into a cut.

    Args:
        split: A number of equal parts along dimension 0, sizes along dimension 0, (dim, sizes),
            ``Interleaved(heads, sizes)``, or None.
        p: The parameter.
        name: Its name, for the error message.

    Raises:
        ValueError: If the sizes do not add up to the dimension's length.

    Example:
        >>> import torch
        >>> normalize_split(3, torch.zeros(12, 4), "qkv")
        (0, (4, 4, 4))
    """
    if split is None:
        return None
    if isinstance(split, int):
        if split < 1 or p.shape[0] % split:
            raise ValueError(f"{name} has {p.shape[0]} rows, which is no multiple of {split}")
        return 0, (p.shape[0] // split,) * split
    declared = (0, split) if len(split) < 2 or isinstance(split[1], int) else split
    check_split(declared, f"the split of {name}")
    cut = cut_of(declared)
    check_fit(cut, p, name)
    return cut


def check_split(split: Any, name: str = "split") -> None:
    """Raise unless a split is None or a cut, before any parameter is seen."""
    if split is None:
        return
    try:
        dim, sizes, repeats = unpacked(split)
        ok = len(split) < 4 and isinstance(dim, int) and isinstance(repeats, int) and repeats > 0
        ok = ok and len(sizes) > 0 and all(n > 0 for n in sizes)
    except (TypeError, ValueError, LookupError):
        ok = False
    if not ok:
        raise ValueError(
            f"{name} must be None, (dim, (size, ...)) or (dim, (size, ...), repeats), got {split!r}"
        )


def check_fit(split: Sequence[Any] | None, p: Tensor, name: str) -> None:
    """Raise unless the parts of a cut add up to the length of its dimension."""
    if split is None:
        return
    dim = split[0]
    if not -p.ndim <= dim < p.ndim or sum(part_sizes(split)) != p.shape[dim]:
        raise ValueError(
            f"split {split!r} does not fit {name} of shape {tuple(p.shape)}: "
            "the sizes must add up to that dimension's length"
        )
