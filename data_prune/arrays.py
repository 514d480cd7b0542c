"""What a recording keeps for each example, and where: in memory or in mapped files."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prune.ring import NOT_SEEN

__all__ = ["CHUNK", "Arrays", "Field", "layout"]

# Examples treated at once: float64 temporaries of a window stay inside the processor's caches.
CHUNK = 1 << 16


class Field(NamedTuple):
    """One array: what stands before the axis of examples, its type, and what it begins with."""

    lead: tuple[int, ...]
    dtype: str
    fill: float


def layout(
    epochs: int, window: int, peers: tuple[str, ...], num_classes: int | None, *, twice: bool
) -> dict[str, Field]:
    """The arrays of a recording by name.

    Args:
        epochs: T, epochs to record.
        window: J, epochs in a window.
        peers: names of the peers recorded besides.
        num_classes: C; -1 where targets are no classes, None while it is not known.
        twice: keep every sum twice: a run killed while closing an epoch still has the old ones.
    """
    count = np.min_scalar_type(epochs).str
    sums = {
        "score_sum": ("f4", 0.0),
        "prob_sum": ("f4", 0.0),
        "observed": (count, 0.0),
        "windows": (count, 0.0),
    }
    sums_of: dict[str, dict[str, tuple[str, float]]] = {
        "dyn_unc": {"dyn_unc_sum": ("f4", 0.0)},
        "el2n": {"el2n_sum": ("f4", 0.0)},
        "aum": {"aum_sum": ("f4", 0.0)},
        "forgetting": {"events": (count, 0.0), "last": ("u1", 0.0), "learned": ("u1", 0.0)},
        "tdds": {"tdds_sum": ("f4", np.nan)},
    }
    for peer, names in sums_of.items():
        if peer in peers:
            sums.update(names)
    fields = {
        f"{name}.{slot}": Field((), dtype, fill)
        for slot in range(2 if twice else 1)
        for name, (dtype, fill) in sums.items()
    }
    fields["row.prob"] = Field((), "f4", np.nan)
    fields["ring.high"] = Field((window,), "u2", NOT_SEEN >> 8)
    fields["ring.low"] = Field((window,), "u1", NOT_SEEN & 0xFF)
    if num_classes is not None:
        fields["label"] = Field((), _label_dtype(num_classes), -1)
    for peer in peers:
        if peer in ("el2n", "aum", "forgetting"):
            fields[f"row.{peer}"] = Field((), "f4", np.nan)
    if "tdds" in peers:
        fields["row.tdds"] = Field((window - 1,), "f4", np.nan)
        if num_classes is not None:
            fields["previous"] = Field((num_classes,), "f4", np.nan)
    return fields


def _label_dtype(num_classes: int) -> str:
    """Smallest signed type that holds every class and -1, which means unknown."""
    if num_classes < 0:
        return "i4"
    return "i1" if num_classes <= 127 else "i2" if num_classes <= 32767 else "i4"


class Arrays(dict[str, NDArray]):
    """Arrays by name, in memory or, with a folder, in one mapped file each.

    Args:
        path: the folder; None keeps them in memory.
    """

    def __init__(self, path: Path | None) -> None:
        super().__init__()
        self.path = path
        self._maps: dict[str, mmap.mmap] = {}

    def allocate(self, name: str, field: Field, num_examples: int) -> None:
        """Make an array unless it is there; an existing file is opened as it is."""
        if name in self:
            return
        shape = (*field.lead, num_examples)
        if self.path is None:
            self[name] = np.full(shape, field.fill, dtype=field.dtype)
            return
        file = self.path / f"{name}.bin"
        size = int(np.prod(shape)) * np.dtype(field.dtype).itemsize
        fresh = not file.exists()
        with open(file, "w+b" if fresh else "r+b") as handle:
            if fresh:
                handle.truncate(size)
            elif file.stat().st_size != size:
                raise ValueError(f"{file} has {file.stat().st_size} bytes, expected {size}")
            self._maps[name] = mmap.mmap(handle.fileno(), size)
        self[name] = np.frombuffer(self._maps[name], dtype=field.dtype).reshape(shape)
        if fresh and field.fill != 0:
            for row in self[name].reshape(-1, num_examples):
                for start in range(0, num_examples, CHUNK):
                    row[start : start + CHUNK] = field.fill
                    self._release(name)

    def flush(self) -> None:
        """Write mapped pages to their files."""
        for mapped in self._maps.values():
            mapped.flush()

    def release(self) -> None:
        """Give the pages of all mapped files back; without files this does nothing."""
        for name in self._maps:
            self._release(name)

    def _release(self, name: str) -> None:
        """Let the kernel drop the pages of a mapped file; dirty ones stay in the page cache."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._maps[name].madvise(mmap.MADV_DONTNEED)
