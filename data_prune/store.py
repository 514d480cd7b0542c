"""Values of one batch -> the epoch's row -> running sums. Host memory or mapped files.

What is kept per example: a ring of J probabilities and a handful of sums, never the history
and never all logits. ImageNet-1k at J = 10 takes 46 bytes an example, 58.9 MB.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prune.arrays import CHUNK, Arrays, Field, layout
from data_prune.sums import fold_rows

__all__ = ["Store"]

# Of the files; 1, which had no number, held the ring in float32.
FORMAT = 2


class Store:
    """Arrays of a tracker and the two things done to them: ``add`` a batch, ``close`` an epoch.

    Args:
        num_examples: N.
        epochs: T, epochs to record.
        window: J, epochs in a window.
        peers: names of the peers recorded besides.
        path: folder for memory-mapped files; None keeps everything in memory.
    """

    def __init__(
        self,
        num_examples: int,
        epochs: int,
        window: int,
        peers: tuple[str, ...] = (),
        path: str | os.PathLike | None = None,
    ) -> None:
        self.num_examples, self.epochs, self.window, self.peers = (
            num_examples,
            epochs,
            window,
            peers,
        )
        self.path = None if path is None else Path(path)
        self.epoch = 0  # closed epochs
        self.num_classes: int | None = None
        self.missing: list[int] = []  # examples not seen, for each closed epoch
        self.duplicates = 0
        self.nonfinite = 0
        self.nonfinite_examples: set[int] = set()  # the first few, for messages
        self.repeats: list[tuple[NDArray, dict[str, NDArray]]] = []
        self.updates = 0  # batches in the open epoch
        self.arrays = Arrays(self.path)
        if self.path is not None:
            self._open(self.path)
        self._allocate()
        self._clear_rows()

    # -- layout ---------------------------------------------------------------------------

    def _layout(self) -> dict[str, Field]:
        return layout(
            self.epochs, self.window, self.peers, self.num_classes, twice=self.path is not None
        )

    def _allocate(self) -> None:
        for name, field in self._layout().items():
            self.arrays.allocate(name, field, self.num_examples)

    def set_classes(self, num_classes: int | None) -> None:
        """Fix the number of classes, known at the first batch; labels take one or two bytes."""
        wanted = -1 if num_classes is None else num_classes
        if self.num_classes is not None:
            if wanted != self.num_classes:
                raise ValueError(
                    f"logits have {wanted} classes, but {self.num_classes} were recorded before"
                )
            return
        self.num_classes = wanted
        self._allocate()

    def grow(self, num_examples: int) -> None:
        """Make room for more examples; new ones have been seen in no epoch."""
        if self.path is not None:
            raise RuntimeError("a store in files cannot grow: give num_examples at the start")
        old, used = self.arrays, self.num_examples
        self.arrays, self.num_examples = Arrays(None), num_examples
        self._allocate()
        for name, array in old.items():
            self.arrays[name][..., :used] = array

    def move(self, old: NDArray, new: NDArray) -> None:
        """Carry what examples at ``old`` have in the open epoch to ``new``; they had no other."""
        for name, array in self.arrays.items():
            values = array[..., old].copy()
            array[..., old] = self._layout()[name].fill
            array[..., new] = values
        place = dict(zip(old.tolist(), new.tolist(), strict=True))
        self.repeats = [
            (np.array([place.get(i, i) for i in index.tolist()], dtype=np.int64), values)
            for index, values in self.repeats
        ]

    # -- one batch ------------------------------------------------------------------------

    def rows(self) -> dict[str, NDArray]:
        """The open epoch's row of every recorded quantity, NaN where not seen yet."""
        rows = {"prob": self.arrays["row.prob"]}
        for peer in ("el2n", "aum", "forgetting"):
            if peer in self.peers:
                rows[peer] = self.arrays[f"row.{peer}"]
        if "tdds" in self.peers:
            rows["tdds"] = self.arrays["row.tdds"][self.epoch % (self.window - 1)]
        return rows

    def check_labels(self, index: NDArray, label: NDArray) -> None:
        """Refuse a label that differs from the one an example was recorded with before."""
        known = self.arrays["label"][index]
        wrong = np.flatnonzero((known >= 0) & (known != label))
        if len(wrong):
            i = wrong[0]
            raise ValueError(
                f"example {index[i]} was recorded with label {known[i]} before and with "
                f"{label[i]} now: the indices must always point into the same data set"
            )

    def add(self, index: NDArray, values: dict[str, NDArray], label: NDArray | None) -> None:
        """Credit one batch: ``values[name]`` are (B,) numbers of the examples ``index``."""
        self.updates += 1
        if label is not None:
            self.check_labels(index, label)
            self.arrays["label"][index] = label
        flat = [v if v.ndim == 1 else v.sum(axis=-1) for v in values.values()]
        finite = np.isfinite(flat).all(axis=0)
        if not finite.all():
            self.nonfinite += int((~finite).sum())
            for i in index[~finite][:16]:
                if len(self.nonfinite_examples) < 16:
                    self.nonfinite_examples.add(int(i))
            index = index[finite]
            values = {name: v[finite] for name, v in values.items()}
        rows = self.rows()
        fresh = np.isnan(rows["prob"][index])
        first = np.zeros(len(index), dtype=bool)
        first[np.unique(index, return_index=True)[1]] = True
        fresh &= first
        if not fresh.all():
            again = {k: v[~fresh] for k, v in values.items() if k != "tdds"}
            self.repeats.append((index[~fresh], again))
            self.duplicates += int((~fresh).sum())
            index, values = index[fresh], {name: v[fresh] for name, v in values.items()}
        if "tdds" in values:
            values["tdds"] = self._tdds_step(index, values["tdds"])
        for name, row in rows.items():
            row[index] = values[name]

    def _tdds_step(self, index: NDArray, log_prob: NDArray) -> NDArray:
        """Divergence of these predictions from the same examples' last epoch."""
        previous = self.arrays["previous"]
        new, old = log_prob.astype(np.float64), previous[:, index].T.astype(np.float64)
        previous[:, index] = log_prob.T
        return np.abs(np.exp(new) * (new - old)).sum(axis=-1)

    def sightings(self) -> NDArray[np.int32]:
        """How often each example was seen in the open epoch, before ``merge_repeats``."""
        count = (~np.isnan(self.rows()["prob"])).astype(np.int32)
        for index, _ in self.repeats:
            np.add.at(count, index, 1)
        return count

    def merge_repeats(self) -> None:
        """Turn the rows into means over an example's sightings."""
        if not self.repeats:
            return
        index = np.concatenate([index for index, _ in self.repeats])
        unique, where = np.unique(index, return_inverse=True)
        extra = np.bincount(where)
        for name, row in self.rows().items():
            if name == "tdds":
                continue  # the first sighting in an epoch is compared with the last epoch
            total = np.bincount(where, np.concatenate([v[name] for _, v in self.repeats]))
            row[unique] = (row[unique].astype(np.float64) + total) / (1 + extra)
        self.repeats = []

    # -- one epoch ------------------------------------------------------------------------

    def close(self) -> None:
        """Fold the open epoch's rows into the sums and open the next epoch."""
        missing = 0
        for part in self._chunks():
            missing += int(np.isnan(self.rows()["prob"][part]).sum())
            self._fold(part)
            self.arrays.release()
        self.missing.append(missing)
        self.epoch += 1
        self.updates = 0
        self._save_meta()
        self._clear_rows()

    def _fold(self, part: slice) -> None:
        slots = self._slot(self.epoch), self._slot(self.epoch + 1)
        fold_rows(self.arrays, self.rows(), part, slots, epoch=self.epoch, window=self.window)

    def _slot(self, epoch: int) -> str:
        return f".{epoch % 2}" if self.path is not None else ".0"

    def sums(self, name: str) -> NDArray:
        """The running sum ``name`` over the closed epochs, (N,)."""
        return self.arrays[name + self._slot(self.epoch)]

    def _clear_rows(self) -> None:
        """Forget the open epoch: what a killed run had recorded of it does not count."""
        self.repeats, self.updates = [], 0
        for row in self.rows().values():
            for part in self._chunks():
                row[part] = np.nan

    def _chunks(self) -> Iterator[slice]:
        for start in range(0, self.num_examples, CHUNK):
            yield slice(start, min(start + CHUNK, self.num_examples))

    # -- files ----------------------------------------------------------------------------

    def counters(self) -> dict[str, Any]:
        """Everything that is not an array, as plain JSON."""
        return {
            "num_examples": self.num_examples,
            "epochs": self.epochs,
            "window": self.window,
            "peers": list(self.peers),
            "epoch": self.epoch,
            "num_classes": self.num_classes,
            "missing": list(self.missing),
            "duplicates": self.duplicates,
            "nonfinite": self.nonfinite,
            "nonfinite_examples": sorted(self.nonfinite_examples),
        }

    def restore(self, counters: dict[str, Any], where: str) -> None:
        """Take over ``counters`` after checking that they describe the same recording."""
        for name in ("num_examples", "epochs", "window", "peers"):
            mine = self.counters()[name]
            if counters[name] != mine:
                raise ValueError(f"{where} has {name} = {counters[name]}, this tracker has {mine}")
        self.epoch = counters["epoch"]
        self.missing = list(counters["missing"])
        self.duplicates, self.nonfinite = counters["duplicates"], counters["nonfinite"]
        self.nonfinite_examples = set(counters["nonfinite_examples"])
        if counters["num_classes"] is not None:
            self.set_classes(None if counters["num_classes"] < 0 else counters["num_classes"])

    def _open(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        meta = path / "meta.json"
        if meta.exists():
            counters = json.loads(meta.read_text())
            if counters.get("format", 1) != FORMAT:
                raise ValueError(
                    f"{path} has storage format {counters.get('format', 1)}, known is {FORMAT}: "
                    "finish it with the version that began it, or record again in a new folder"
                )
            self.restore(counters, str(path))
        elif any(path.glob("*.bin")):
            # Killed before the first epoch was closed: nothing in these files counts.
            for file in path.glob("*.bin"):
                file.unlink()
        elif any(path.iterdir()):
            raise ValueError(f"storage must be an empty folder or an earlier storage, got {path}")

    def _save_meta(self) -> None:
        if self.path is None:
            return
        self.arrays.flush()
        temporary = self.path / "meta.json.new"
        temporary.write_text(json.dumps({"format": FORMAT, **self.counters()}))
        os.replace(temporary, self.path / "meta.json")
