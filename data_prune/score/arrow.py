"""Columns of Arrow, pandas, polars and ``datasets`` <-> arrays, under one set of rules.

A label may be a name and may be null; dictionaries and views of strings are strings; a key or a
count is never null.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specgd_common.optional import needed

from .columns import COLUMNS, Arrays, code_labels

KINDS = ("arrow", "pandas", "polars", "datasets")


def arrays_of(
    batch: Any, names: Iterable[str], where: Any, label_names: list[str] | None = None
) -> Arrays:
    """Return columns of a record batch or table as arrays; a null is refused but in labels.

    Args:
        batch: A RecordBatch or Table of pyarrow.
        names: The columns.
        where: What the message begins with, such as a file's name.
        label_names: What labels that are names stand for, in order; None for integers.
    """
    arrays: Arrays = {}
    for name in names:
        column = batch.column(name)
        if column.null_count and name != "label":
            raise ValueError(
                f"{where}: column {name!r} must have a value in every row, got "
                f"{column.null_count} nulls (what is not known is NaN)"
            )
        values = to_array(column)
        if name == "label":
            values = code_labels(values, label_names)[0]
        elif values.dtype.kind == "O" and name != "key":
            raise TypeError(f"{where}: column {name!r} must hold numbers, got {column.type}")
        arrays[name] = values
    return arrays


def without_views(data: Any) -> Any:
    """Return a batch or table whose views of strings are strings: Arrow filters no views yet."""
    pa = needed("pyarrow", "data")
    schema = data.schema
    for i, field in enumerate(schema):
        if pa.types.is_string_view(field.type):
            schema = schema.set(i, field.with_type(pa.large_string()))
        elif pa.types.is_binary_view(field.type):
            schema = schema.set(i, field.with_type(pa.large_binary()))
    return data if schema.equals(data.schema) else data.cast(schema)


def to_array(column: Any) -> NDArray:
    """Return a column of Arrow as an array: text as objects, a null as None or NaN."""
    pa = needed("pyarrow", "data")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if isinstance(column, pa.ChunkedArray):
        return column.to_numpy()
    return column.to_numpy(zero_copy_only=False)


def names_in(column: Any) -> list[str] | None:
    """Return in order the names that occur in a column of labels; None if it holds no text."""
    if not is_text(column.type):
        return None
    if needed("pyarrow", "data").types.is_string_view(column.type):
        return sorted(set(to_array(column).tolist()) - {None})  # Arrow counts no views yet
    return sorted(set(to_array(column.unique()).tolist()) - {None})


def is_text(kind: Any) -> bool:
    """Say whether a type of Arrow holds strings, in whatever layout."""
    types = needed("pyarrow", "data").types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return any(of(kind) for of in (types.is_string, types.is_large_string, types.is_string_view))


def as_arrow(frame: Any) -> Any:
    """Return a table of pandas, polars, ``datasets`` or Arrow, or a dict of columns, as Arrow's.

    Raises:
        TypeError: For anything else.
    """
    pa = needed("pyarrow", "data")
    library = library_of(frame)
    if library == "datasets":
        return frame.with_format("arrow")[:]
    if library == "pandas":
        return pa.Table.from_pandas(frame, preserve_index=False)
    if library == "polars":
        return without_views(frame.to_arrow())
    if library == "arrow":
        return without_views(frame)
    if isinstance(frame, dict) or hasattr(frame, "__arrow_c_stream__"):
        return pa.table(frame)
    raise TypeError(
        "frame must be a table of pandas, polars, pyarrow or datasets, or a dict of columns, got "
        f"{type(frame).__name__}"
    )


def library_of(frame: Any) -> str | None:
    """Return whose table this is, of ``KINDS``; None for something else. Imports nothing."""
    kinds = {
        ("pyarrow", "Table"): "arrow",
        ("pandas", "DataFrame"): "pandas",
        ("polars", "DataFrame"): "polars",
        ("datasets", "Dataset"): "datasets",
    }
    of = ((base.__module__.partition(".")[0], base.__name__) for base in type(frame).__mro__)
    return next((kinds[name] for name in of if name in kinds), None)


def from_arrow(data: Any) -> tuple[Arrays, Arrays, list[str] | None]:
    """Return the columns of a score table, every further column of numbers, and label names.

    A null in a column of numbers is NaN, for that is what pandas makes of NaN.
    """
    types, names = needed("pyarrow", "data").types, data.column_names
    missing = [name for name in COLUMNS if names.count(name) != 1 and name != "key"]
    if missing:
        raise ValueError(f"frame lacks the columns {missing}, or has them twice; it has {names}")
    for i, field in enumerate(data.schema):
        if types.is_floating(field.type):
            data = data.set_column(i, field.name, data.column(i).fill_null(float("nan")))
    known = names_in(data.column("label"))
    peers = number_columns(data.schema)
    found = arrays_of(data, [n for n in (*COLUMNS, *peers) if n in names], "frame", known)
    found.setdefault("key", np.arange(data.num_rows, dtype=np.int64))
    return {n: found[n] for n in COLUMNS}, {n: found[n] for n in peers}, known


def number_columns(schema: Any) -> list[str]:
    """Return the names of the columns that may rank: numbers beside those of every table."""
    types = needed("pyarrow", "data").types
    return [
        field.name
        for field in schema
        if field.name not in COLUMNS
        and (types.is_integer(field.type) or types.is_floating(field.type))
    ]


def to_frame(columns: Arrays, label_names: list[str] | None, kind: str) -> Any:
    """Return columns as a table of another library.

    Raises:
        ImportError: If the library is not installed.
        ValueError: For an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    library: Any = needed("pyarrow" if kind == "arrow" else kind, _EXTRAS.get(kind))
    pa = needed("pyarrow", "data")
    if label_names is not None:
        named = np.array([*label_names, None], dtype=object)
        columns = {**columns, "label": named[columns["label"]]}  # -1 is the last one: null
    data = pa.table({name: pa.array(values) for name, values in columns.items()})
    if kind == "pandas":
        return data.to_pandas()
    if kind == "polars":
        return library.from_arrow(data)
    return library.Dataset(data) if kind == "datasets" else data


_EXTRAS = {"arrow": "data", "datasets": "data"}
