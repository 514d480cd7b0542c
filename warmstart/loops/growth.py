"""What a model was trained on and what has arrived since, told by names and counts of examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

# A part of the data set -> its number of examples, in the order in which the data set holds them.
Parts = Mapping[str, int]
# The one part of a data set of which only the length is known.
ALL = "examples"


def parts_of(told: Any) -> dict[str, int]:
    """Return a manifest as parts: a length, names with counts, or one name for each example.

    Args:
        told: ``50_000``, ``{"january": 30_000, "february": 20_000}`` or ``["a.png", "b.png"]``, in
            the order of the data set.

    Raises:
        TypeError: For anything else.
        ValueError: For counts below zero and names that occur twice.

    Example:
        >>> parts_of(3), parts_of(["a.png", "b.png"])
        ({'examples': 3}, {'a.png': 1, 'b.png': 1})
    """
    if isinstance(told, int) and not isinstance(told, bool):
        told = {ALL: told}
    elif isinstance(told, Sequence) and not isinstance(told, str):
        names = [str(name) for name in told]
        if len(set(names)) < len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise ValueError(f"names of a manifest must differ, got {twice!r} twice")
        told = dict.fromkeys(names, 1)
    if not isinstance(told, Mapping):
        raise TypeError(
            "a manifest must be a number of examples, a mapping from names to numbers or a "
            f"sequence of names, got {type(told).__name__}"
        )
    for name, count in told.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ValueError(f"counts of a manifest must be integers >= 0, got {name!r}: {count!r}")
    return {str(name): count for name, count in told.items()}


def positions(seen: Parts, now: Parts) -> tuple[list[int], list[int]]:
    """Return the positions in a data set of the examples that were seen, and of the others.

    A part that has grown has its new examples at its end.

    Example:
        >>> positions({"a": 2, "b": 1}, {"a": 3, "b": 1, "c": 1})
        ([0, 1, 3], [2, 4])
    """
    old, new = [], []
    start = 0
    for name, count in now.items():
        known = min(seen.get(name, 0), count)
        old.append(range(start, start + known))
        new.append(range(start + known, start + count))
        start += count
    return list(chain(*old)), list(chain(*new))


def joined(seen: Parts, now: Parts) -> dict[str, int]:
    """Return what a model has seen after training on ``now``: what has left stays seen.

    Example:
        >>> joined({"a": 2, "b": 5}, {"a": 3})
        {'a': 3, 'b': 5}
    """
    names = dict.fromkeys([*seen, *now])
    return {name: max(seen.get(name, 0), now.get(name, 0)) for name in names}
