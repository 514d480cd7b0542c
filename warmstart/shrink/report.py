"""What a shrink did, parameter by parameter: table, JSON, plot."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from specgd_common.files import replacing, write_text
from specgd_common.optional import needed

from ..targets.find import Skipped

FORMAT = "warmstart-report-1"


@dataclass
class ParameterRow:
    """One shrunk parameter.

    Attributes:
        name: Its name; ``aliases`` are further names of the same memory.
        kind: Owner and attribute, such as ``"Conv2d.weight"``.
        shape: Of the parameter.
        unit: What one factor belongs to; ``units`` of them with ``unit_size`` entries each.
        floor: Smallest factor allowed here.
        share_at_floor: Share of units whose factor is the floor.
        mean_factor: Mean over units.
        median_factor: Median over units; None for methods with one factor for all.
        mean_cosine: Mean over units; None for methods without a gradient.
        mean_abs_cosine: Mean size of the cosine over units.
        null_share_at_floor: The same with the gradient's entries shuffled: what chance gives.
        null_mean_factor: The same with shuffled entries.
        null_mean_cosine: The same with shuffled entries.
        null_mean_abs_cosine: The same with shuffled entries.
        norm_before: Euclidean norm before.
        norm_after: Euclidean norm after.
        norm_follows: Name of the normalization that makes the loss blind to this weight's length.
        effective_lr: Growth of the effective learning rate, (norm_before / norm_after)^2, where a
            normalization follows; None elsewhere.
        reliability: Correlation over units between the cosines that even and odd batches give, if
            ``reliability=True`` kept them and there are three units or more; None elsewhere.
        zero_gradient: Units whose direction is exactly zero.
        zero_weight: Units whose weights are all zero.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    unit: str
    units: int
    unit_size: int
    floor: float
    share_at_floor: float
    mean_factor: float
    norm_before: float
    norm_after: float
    median_factor: float | None = None
    mean_cosine: float | None = None
    mean_abs_cosine: float | None = None
    null_share_at_floor: float | None = None
    null_mean_factor: float | None = None
    null_mean_cosine: float | None = None
    null_mean_abs_cosine: float | None = None
    norm_follows: str | None = None
    effective_lr: float | None = None
    reliability: float | None = None
    zero_gradient: int = 0
    zero_weight: int = 0
    aliases: tuple[str, ...] = ()


@dataclass
class ShrinkReport:
    """Rows per parameter, skipped parameters with their reasons, and notes in plain words.

    ``print(report)`` shows the table. ``factors`` holds every factor, so that the intervention can
    be audited and undone.

    Attributes:
        method: Name of the method.
        settings: Its arguments.
        rows: One per changed parameter.
        skipped: One per parameter that was left alone.
        notes: What a reader should know before training on.
        num_batches: Batches behind the gradient direction, 0 without one.
        applied: False after a dry run.
        factors: By parameter name (None for methods that do more than multiply).
        model: The shrunk copy after ``inplace=False``, else None.
    """

    method: str
    settings: dict[str, Any]
    rows: list[ParameterRow]
    skipped: list[Skipped]
    notes: list[str] = field(default_factory=list)
    num_batches: int = 0
    applied: bool = True
    factors: dict[str, Tensor] | None = None
    model: nn.Module | None = None

    def row(self, name: str) -> ParameterRow:
        """Return the row of one parameter, by any of its names.

        Raises:
            KeyError: With the names there are.
        """
        for r in self.rows:
            if name == r.name or name in r.aliases:
                return r
        raise KeyError(f"{name!r} was not shrunk; shrunk were {[r.name for r in self.rows]}")

    def __str__(self) -> str:
        return self.to_table()

    def to_table(self) -> str:
        """Return aligned text: the sum, a line per parameter, skipped ones by reason, notes."""
        given = ", ".join(f"{k}={v}" for k, v in self.settings.items())
        state = "" if self.applied else " (dry run: nothing was changed)"
        lines = [f"{self.method}({given}){state}", self.summary()]
        table = zip(_HEADER, *(_cells(r) for r in self.rows), strict=True)
        # A method without a direction has no cosines: columns of nothing are left out.
        columns = [c for c in table if any(cell != "-" for cell in c[1:])]
        padded = []
        for i, column in enumerate(columns):
            width = max(map(len, column))
            padded.append([c.ljust(width) if i < 2 else c.rjust(width) for c in column])
        lines += ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
        reasons: dict[str, list[str]] = {}
        for s in self.skipped:
            reasons.setdefault(s.reason, []).append(s.name)
        lines += [f"skipped {len(n)}, {why}: {some(n)}" for why, n in reasons.items()]
        lines += [f"note: {n}" for n in self.notes]
        return "\n".join(lines)

    def summary(self) -> str:
        """Return how many weights of how many moved, and by how much."""
        moved = [r for r in self.rows if r.norm_after != r.norm_before]
        count = sum(math.prod(r.shape) for r in moved)
        # Running statistics in a file are no weights.
        left = [s.shape for s in self.skipped if s.reason != "buffer"]
        rest = [r.shape for r in self.rows if r not in moved] + left
        total = count + sum(math.prod(shape) for shape in rest if shape)
        before = math.sqrt(sum(r.norm_before**2 for r in self.rows))
        after = math.sqrt(sum(r.norm_after**2 for r in self.rows))
        ratio = f" (x{after / before:.3g})" if before else ""
        return (
            f"{count:,} of {total:,} weights in {len(moved)} of "
            f"{len(self.rows) + len(left)} tensors; "
            f"their norm from {before:.4g} to {after:.4g}{ratio}"
        )

    def to_dict(self, *, factors: bool = False) -> dict[str, Any]:
        """Return plain data; with ``factors`` also every factor, as ``undo`` needs it."""
        out: dict[str, Any] = {
            "format": FORMAT,
            "method": self.method,
            "settings": {k: _plain(v) for k, v in self.settings.items()},
            "applied": self.applied,
            "num_batches": self.num_batches,
            "parameters": [{k: _plain(v) for k, v in asdict(r).items()} for r in self.rows],
            "skipped": [asdict(s) for s in self.skipped],
            "notes": list(self.notes),
        }
        if factors and self.factors is not None:
            out["factors"] = {n: pack(f) for n, f in self.factors.items()}
        return out

    def to_json(self, path: str | Path | None = None, *, factors: bool = False) -> str:
        """Return the report as JSON text, also written to ``path`` if one is given."""
        text = json.dumps(self.to_dict(factors=factors), indent=2, allow_nan=False)
        if path is not None:
            write_text(path, text + "\n")
        return text

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw bars per parameter: mean factor, its shuffled null, and the norm that is left.

        Args:
            path: Where to save the figure; None only returns it.

        Returns:
            The matplotlib figure.
        """
        # Figure, not pyplot: no window system is touched and no global state is left behind.
        n = len(self.rows)
        figure = needed("matplotlib.figure", "plot").Figure(
            figsize=(8, 1.2 + 0.32 * n), layout="constrained"
        )
        axis = figure.subplots()
        y = np.arange(n)
        axis.barh(y - 0.2, [r.mean_factor for r in self.rows], 0.4, label="mean factor")
        kept = [r.norm_after / r.norm_before if r.norm_before else 1.0 for r in self.rows]
        axis.barh(y + 0.2, kept, 0.4, label="norm kept", color="0.75")
        null = [(i, r.null_mean_factor) for i, r in enumerate(self.rows)]
        marked = [(i, x) for i, x in null if x is not None]
        if marked:
            where, x = zip(*marked, strict=True)
            axis.plot(x, np.array(where) - 0.2, "k|", ms=12, label="mean factor, shuffled gradient")
        axis.set_yticks(y, [r.name for r in self.rows])
        axis.invert_yaxis()
        axis.set(xlabel="share of the old weight", title=self.method)
        axis.grid(axis="x", alpha=0.3)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        if path is not None:
            with replacing(path) as file:
                figure.savefig(file, dpi=120, format=Path(path).suffix[1:] or "png")
        return figure


_HEADER = (
    "parameter",
    "unit",
    "units",
    "at floor",
    "(null)",
    "factor",
    "(null)",
    "cosine",
    "|cosine|",
    "(null)",
    "norm",
    "after",
    "eff. lr",
    "halves",
)


def some(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


def _cells(r: ParameterRow) -> tuple[str, ...]:
    def number(x: float | None, form: str = ".3f") -> str:
        return "-" if x is None else format(x, form)

    return (
        r.name,
        r.unit,
        str(r.units),
        "-" if r.unit == "tensor" else number(r.share_at_floor, ".0%"),
        number(r.null_share_at_floor, ".0%"),
        number(r.mean_factor),
        number(r.null_mean_factor),
        number(r.mean_cosine),
        number(r.mean_abs_cosine),
        number(r.null_mean_abs_cosine),
        number(r.norm_before, ".4g"),
        number(r.norm_after, ".4g"),
        "-" if r.effective_lr is None else f"x{r.effective_lr:.3g}",
        number(r.reliability, ".2f"),
    )


def _plain(value: Any) -> Any:
    """Return JSON's types, anything else as its text; infinity, which JSON lacks, as None."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return getattr(value, "__name__", None) or str(value)


def pack(factors: Tensor) -> dict[str, Any]:
    """Return a tensor as JSON: shape and compressed little-endian floats."""
    kind = "<f8" if factors.dtype == torch.float64 else "<f4"
    raw = factors.detach().cpu().to(torch.float64).numpy().astype(kind).tobytes()
    text = base64.b64encode(zlib.compress(raw)).decode("ascii")
    return {"shape": list(factors.shape), "dtype": kind, "zlib+base64": text}
