"""A record batch of a score table -> the few columns that a selection looks at."""

from __future__ import annotations

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
from ..select.survey import Columns, inside
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
    """

    names: list[str]
    labels: list[str] | None = None
    groups: str | None = None
    classes: str | None = None
    class_names: list[str] | None = None
    weights: str | None = None
    keep: NDArray[np.uint64] = field(default_factory=lambda: NOTHING)
    drop: NDArray[np.uint64] = field(default_factory=lambda: NOTHING)

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
            field = reader.schema_arrow.field("key")
            keys = {
                name: _ids(wishes[name], not is_text(field.type), name)
                for name in ("keep", "drop")
                if name in wishes
            }
        both = np.intersect1d(keys.get("keep", NOTHING), keys.get("drop", NOTHING))
        if len(both):
            raise ValueError(f"keep and drop must have no example in common, got {len(both)}")
        classes = wishes.get("classes")
        return cls(
            names,
            label_names(files),
            wishes.get("groups"),
            classes,
            None if classes is None else label_names(files, classes),
            wishes.get("weights"),
            **keys,
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
            columns["group"] = group_ids(self._values(batch, self.groups, where))
        if self.classes is not None:
            values = to_array(batch.column(self.classes))
            columns["label"] = code_labels(values, self.class_names)[0]
            if columns["label"].dtype.kind not in "iu":
                raise TypeError(
                    f"{where}: classes must be integers or names, got dtype {values.dtype}"
                )
        if self.weights is not None:
            columns["weight"] = check_weights(self._values(batch, self.weights, where))
        if self.forced:
            kept, dropped = (inside(columns["id"], ids) for ids in (self.keep, self.drop))
            columns["forced"] = kept.astype(np.int8) - dropped.astype(np.int8)
        return columns

    def _values(self, batch: Any, name: str, where: Path) -> NDArray:
        return whole_column(batch.column(name), name, where)


def _ids(keys: Any, integers: bool, what: str) -> NDArray[np.uint64]:
    """Return the identities of keys in ascending order."""
    found = keys_like(unique_keys(keys), integers, what)
    return np.unique(example_ids(found)) if len(found) else NOTHING


def check_found(found: int, ids: NDArray[np.uint64], what: str, source: Path) -> None:
    """Refuse a list with keys that no file has."""
    if found != len(ids):
        raise ValueError(
            f"{what} must name examples of {source}, got {len(ids) - found} keys that it lacks"
        )
