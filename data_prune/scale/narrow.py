"""A record batch of a score table -> the few columns that a selection looks at."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..score.arrow import arrays_of, is_text, to_array
from ..score.columns import Arrays, code_labels
from ..score.keys import keys_like, unique_keys
from ..score.parquet import label_names, open_parquet, whole_column, with_ids
from ..select.noise import example_ids
from ..select.survey import FORCED, GROUP, WEIGHT, Columns, inside
from ..select.topk import Fold
from ..select.wishes import check_weights, group_ids

NOTHING = np.empty(0, dtype=np.uint64)


@dataclass(frozen=True)
class Narrow:
    """What is read of every batch, alike on all workers.

    Attributes:
        names: Columns of the table.
        labels: Names that labels stand for, in order; None for integers.
        groups: Column of what stays together; None for none.
        classes: Column whose values get a share each; None for the labels.
        class_names: Names that its values stand for, in order; None for integers.
        weights: Column that weighs the draw; None for none.
        keep: Identities of examples that stay, ascending.
        drop: Identities of examples that go, ascending.
        lists: "keep" and "drop" -> the keys that were given.
    """

    names: list[str]
    labels: list[str] | None = None
    groups: str | None = None
    classes: str | None = None
    class_names: list[str] | None = None
    weights: str | None = None
    keep: NDArray[np.uint64] = field(default_factory=lambda: NOTHING)
    drop: NDArray[np.uint64] = field(default_factory=lambda: NOTHING)
    lists: dict[str, NDArray] = field(default_factory=dict)

    @classmethod
    def of_files(cls, files: list[Path], names: list[str], wishes: dict[str, Any]) -> Narrow:
        """Return what to read of these files.

        Raises:
            TypeError: If a wish is given as an array, or a key is of another kind than the files'.
            ValueError: For ``within``, or an example to keep that is to be dropped.
        """
        if "within" in wishes:
            raise ValueError("within is for a table in memory; drop= takes keys")
        for name in ("groups", "classes", "weights"):
            if not isinstance(wishes.get(name, ""), str):
                kind = type(wishes[name]).__name__
                raise TypeError(f"{name} must be the name of a column of the files, got {kind}")
        with open_parquet(files[0]) as reader:
            text = is_text(reader.schema_arrow.field("key").type)
        lists = {
            name: keys_like(unique_keys(wishes[name]), not text, name)
            for name in ("keep", "drop")
            if len(wishes.get(name, ()))
        }
        ids = {name: np.unique(example_ids(keys)) for name, keys in lists.items()}
        both = np.intersect1d(ids.get("keep", NOTHING), ids.get("drop", NOTHING))
        if len(both):
            twice = first_of(lists["keep"][inside(example_ids(lists["keep"]), both)])
            raise ValueError(f"keep names {twice}, which drop leaves out")
        classes = wishes.get("classes")
        return cls(
            names,
            label_names(files),
            wishes.get("groups"),
            classes,
            None if classes is None else label_names(files, classes),
            wishes.get("weights"),
            **ids,
            lists=lists,
        )

    @property
    def more(self) -> list[str]:
        """Return the columns that are read besides those of the table."""
        return [name for name in (self.groups, self.classes, self.weights) if name is not None]

    @property
    def forced(self) -> bool:
        """Say whether some examples are not free to stay or go."""
        return len(self.keep) + len(self.drop) > 0

    def of(self, batch: Any, where: Path, arrays: Arrays | None = None) -> Columns:
        """Return the columns of a batch.

        Args:
            batch: A record batch with all that is read.
            where: Its file, for messages.
            arrays: The table's columns of it, where they are known already.
        """
        if arrays is None:
            arrays = arrays_of(batch, self.names, where, self.labels)
        columns = with_ids(arrays, self.names)
        if self.groups is not None:
            columns[GROUP] = group_ids(self._values(batch, self.groups, where))
        if self.classes is not None:
            values = to_array(batch.column(self.classes))
            columns["label"] = code_labels(values, self.class_names)[0]
            if columns["label"].dtype.kind not in "iu":
                raise TypeError(
                    f"{where}: classes must be integers or names, got dtype {values.dtype}"
                )
        if self.weights is not None:
            columns[WEIGHT] = check_weights(self._values(batch, self.weights, where))
        if self.forced:
            kept, dropped = (inside(columns["id"], ids) for ids in (self.keep, self.drop))
            columns[FORCED] = kept.astype(np.int8) - dropped.astype(np.int8)
        return columns

    def _values(self, batch: Any, name: str, where: Path) -> NDArray:
        return whole_column(batch.column(name), name, where)


def first_of(keys: NDArray) -> str:
    """Return the first of some keys as a message shows it, and how many more there are."""
    return repr(keys[:1].tolist()[0]) + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


def check_lists(fold: Fold, narrow: Narrow, source: Path) -> None:
    """Refuse lists of keys of which some are in no file."""
    for name, sign in (("keep", 1), ("drop", -1)):
        keys = narrow.lists.get(name)
        if keys is None:
            continue

        def of_list(columns: Columns, sign: int = sign) -> list[NDArray[np.uint64]]:
            return [columns["id"][columns[FORCED] == sign]]

        found = np.sort(np.concatenate(fold(of_list, operator.add)))
        lost = keys[~inside(example_ids(keys), found)]
        if len(lost):
            raise ValueError(f"{name} must be in {source}, got {first_of(lost)}")
