"""A tracker's records as an Arrow table, for CSV, Parquet and data frames."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from specgd_common.optional import needed

if TYPE_CHECKING:
    import pyarrow as pa

_FLOATS = (
    "singular_value", "mode", "stable_rank", "effective_rank", "sigma_ratio", "balance", "scale",
    "rate",
)  # fmt: skip


def spectrum_table(records: Sequence[dict[str, Any]]) -> "pa.Table":
    """Return one row per singular value of each record; what does not apply is null.

    Args:
        records: Of a :class:`SpectrumTracker`.

    Returns:
        Columns step, name, kind, index, singular_value, mode, stable_rank, effective_rank,
        sigma_ratio, balance, scale, rate.
    """
    arrow = needed("pyarrow", "data")
    rows = [
        {
            **{k: v for k, v in record.items() if k not in ("singular_values", "modes")},
            "index": i,
            "singular_value": sigma,
            "mode": record["modes"][i] if record["modes"] and i < len(record["modes"]) else None,
        }
        for record in records
        for i, sigma in enumerate(record["singular_values"])
    ]
    columns = [
        ("step", arrow.int64()), ("name", arrow.string()),
        ("kind", arrow.string()), ("index", arrow.int64()),
    ]  # fmt: skip
    return arrow.Table.from_pylist(
        rows, schema=arrow.schema(columns + [(name, arrow.float64()) for name in _FLOATS])
    )
