"""Several score tables -> the columns of one: below each other, or their mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .columns import COLUMNS, code_labels
from .keys import are_positions

if TYPE_CHECKING:
    from .table import ScoreTable


def joined(tables: Sequence[ScoreTable]) -> dict[str, Any]:
    """Return the columns, peers and meta of several tables below each other."""
    if not tables:
        raise ValueError("concat needs at least one table, got none")
    first, keys, start = tables[0], [], 0
    for table in tables:
        if table.peers.keys() != first.peers.keys():
            raise ValueError(
                f"tables to join must have the same peers, got {list(first.peers)} and "
                f"{list(table.peers)}"
            )
        for name in ("task", "window", "loss_scale"):
            both = [t.meta[name] for t in (first, table) if name in t.meta]
            if len(set(both)) > 1:
                raise ValueError(
                    f"tables to join must have one {name}, got {both[0]} and {both[1]}"
                )
        keys.append(table.key + start if are_positions(table.key) else table.key)
        start += len(table)
    if len({key.dtype.kind in "iu" for key in keys}) > 1:
        raise ValueError("tables to join must all have strings as keys, or all integers")

    def column(of: Callable[[ScoreTable], NDArray]) -> NDArray:
        return np.concatenate([of(table) for table in tables])

    meta = {**first.meta, "examples": start}
    for name in ("nonfinite", "duplicates"):
        meta[name] = sum(table.meta.get(name, 0) for table in tables)
    return {
        "key": np.concatenate(keys),
        "label": _joined_labels(tables, meta),
        **{name: column(attrgetter(name)) for name in COLUMNS[2:]},
        "peers": {name: column(_of_peer(name)) for name in first.peers},
        "meta": meta,
    }


def _of_peer(name: str) -> Callable[[ScoreTable], NDArray]:
    return lambda table: table.peers[name]


def _joined_labels(tables: Sequence[ScoreTable], meta: dict[str, Any]) -> NDArray:
    """Return the labels of several tables; names are numbered anew, over all of them."""
    names = [table.meta.get("label_names") for table in tables]
    if all(of is None for of in names):
        return np.concatenate([table.label for table in tables])
    parts = []
    for table, of in zip(tables, names, strict=True):
        if of is None and (table.label >= 0).any():
            raise ValueError("tables to join must all have names as labels, or all numbers")
        parts.append(np.array([*(of or []), None], dtype=object)[table.label])
    labels, meta["label_names"] = code_labels(np.concatenate(parts))
    return labels


def averaged(tables: Sequence[ScoreTable]) -> dict[str, Any]:
    """Return the columns, peers and meta of the mean of several runs over the same examples."""
    first = tables[0]
    for other in tables[1:]:
        if not (
            np.array_equal(first.key, other.key)
            and np.array_equal(first.label, other.label)
            and first.peers.keys() == other.peers.keys()
        ):
            raise ValueError("tables to average must have equal keys, labels and peers")

    def mean(of: Callable[[ScoreTable], NDArray]) -> NDArray:
        return np.mean([of(table) for table in tables], axis=0)

    return {
        "key": first.key,
        "label": first.label,
        "score": mean(lambda t: t.score),
        "mean_prob": mean(lambda t: t.mean_prob),
        "observed": np.sum([t.observed for t in tables], axis=0),
        "peers": {name: mean(_of_peer(name)) for name in first.peers},
        "meta": {
            **first.meta,
            "runs": len(tables),
            "nonfinite": sum(t.meta.get("nonfinite", 0) for t in tables),
        },
    }
