"""Values of one batch -> the epoch's row -> running sums. Host memory or mapped files.

What is kept per example: a ring of J probabilities and a handful of sums, never the history
and never all logits; an example that comes twice in an epoch counts with its mean
(`duplicates.py`). ImageNet-1k at J = 10 takes 46 bytes an example, 58.9 MB.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..select.plan import parts
from .duplicates import hold_back
from .layout import layout
from .observe import SCALED, UNLABELLED
from .storage import Storage
from .sums import decode, fold_rows, median_loss

# Examples treated at once: float64 temporaries of a window stay inside the processor's caches.
EXAMPLES = 1 << 16


class Store:
    """Arrays of a tracker and the two things done to them: ``add`` a batch, ``close`` an epoch.

    Args:
        num_examples: N.
        epochs: T, epochs to record.
        window: J, epochs in a window.
        peers: Names of the peers recorded besides.
        path: Folder for mapped files; None keeps everything in memory.
        task: What the values are recorded from.
    """

    def __init__(
        self,
        num_examples: int,
        epochs: int,
        window: int,
        peers: tuple[str, ...] = (),
        path: str | os.PathLike | None = None,
        task: str = "classification",
    ) -> None:
        self.num_examples, self.epochs, self.window = num_examples, epochs, window
        self.peers, self.task, self.path = peers, task, path
        self.loss_scale: float | None = None  # what turns losses into probabilities
        self.epoch = 0  # closed epochs
        self.num_classes: int | None = None
        self.missing: list[int] = []  # examples not seen, for each closed epoch
        self.duplicates = 0
        self.nonfinite = 0
        self.unlabelled = 0  # sightings of which no label counts
        self.merged: tuple[int, ...] = (0, 0, 0)  # of these three what all ranks agree on
        self.nonfinite_examples: set[int] = set()  # the first few, for messages
        self.repeats: list[tuple[NDArray, dict[str, NDArray]]] = []
        self.updates = 0  # batches in the open epoch
        self.arrays: dict[str, NDArray] = {}
        self.storage: Storage | None = None
        if path is None:
            self._allocate()
        else:
            self._open(path)

    def _allocate(self) -> None:
        """Make the arrays that are not there yet."""
        for name, field in layout(self, self.num_classes).items():
            if name not in self.arrays:
                shape = (*field.lead, self.num_examples)
                self.arrays[name] = np.full(shape, field.fill, dtype=field.dtype)

    def _open(self, path: str | os.PathLike) -> None:
        """Take the arrays from files, and go on after the last closed epoch."""
        self.storage = Storage(
            path, layout(self, None), self.num_examples, self._record(self.counters())
        )
        self.arrays = self.storage.arrays
        if self.storage.counters is None:
            return
        self.take_counters(self.storage.counters)
        self.loss_scale = self.storage.counters["loss_scale"]
        self._clear_rows()
        for part in parts(self.num_examples):
            self.arrays["label"][part][self.sums("observed")[part] == 0] = -1

    def set_classes(self, num_classes: int) -> None:
        """Fix the number of classes, known at the first batch; labels take one or two bytes."""
        if self.num_classes is None:
            self.num_classes = num_classes
            self._allocate()
        elif num_classes != self.num_classes:
            raise ValueError(
                f"logits have {num_classes} classes, but {self.num_classes} were recorded before"
            )

    def grow(self, num_examples: int) -> None:
        """Make room for more examples; new ones have been seen in no epoch."""
        old, used = self.arrays, self.num_examples
        self.arrays, self.num_examples = {}, num_examples
        self._allocate()
        for name, array in old.items():
            self.arrays[name][..., :used] = array

    def move(self, old: NDArray, new: NDArray) -> None:
        """Carry what examples at ``old`` have in the open epoch to ``new``; they had no other."""
        fields = layout(self, self.num_classes)
        for name, array in self.arrays.items():
            values = array[..., old].copy()
            array[..., old] = fields[name].fill
            array[..., new] = values
        place = dict(zip(old.tolist(), new.tolist(), strict=True))
        self.repeats = [
            (np.array([place.get(i, i) for i in index.tolist()], dtype=np.int64), values)
            for index, values in self.repeats
        ]

    def rows(self) -> dict[str, NDArray]:
        """Return the open epoch's row of every recorded quantity, NaN where not seen yet."""
        rows = {"prob": self.arrays["row.prob"]}
        for peer in ("el2n", "aum", "forgetting"):
            if peer in self.peers:
                rows[peer] = self.arrays[f"row.{peer}"]
        if "tdds" in self.peers:
            rows["tdds"] = self.arrays["row.tdds"][self.epoch % (self.window - 1)]
        return rows

    def add(
        self,
        index: Tensor,
        values: dict[str, Tensor],
        label: Tensor | None,
        num_classes: int = -1,
    ) -> None:
        """Credit one batch on the host, or refuse it before anything has changed.

        Args:
            index: (B,) examples.
            values: name -> (B,) or (B, C) numbers of the examples.
            label: (B,) labels, or None.
            num_classes: C; -1 where targets are no classes.
        """
        at, labels = index.numpy(), None if label is None else label.numpy()
        found = {name: v.numpy() for name, v in values.items()}
        blank = found["prob"] == UNLABELLED
        if blank.any():  # also of examples that have a label at other times
            labels = None if labels is None else labels[~blank]
            at, found = at[~blank], {name: v[~blank] for name, v in found.items()}
        self._check_labels(at, labels)
        self.set_classes(num_classes)
        self.updates += 1
        self.unlabelled += int(blank.sum())
        if labels is not None:
            self.arrays["label"][at] = labels
        flat = [v if v.ndim == 1 else v.sum(axis=-1) for v in found.values()]
        finite = np.isfinite(flat).all(axis=0)
        if not finite.all():
            self._note_nonfinite(at[~finite])
            at, found = at[finite], {name: v[finite] for name, v in found.items()}
        rows = self.rows()
        fresh = np.zeros(len(at), dtype=bool)
        fresh[np.unique(at, return_index=True)[1]] = True
        fresh &= np.isnan(rows["prob"][at])
        if not fresh.all():
            self.duplicates += int((~fresh).sum())
            at, found = hold_back(self.repeats, at, found, fresh)
        if "tdds" in found:
            found["tdds"] = self._tdds_step(at, found["tdds"])
        for name, row in rows.items():
            row[at] = found[name]

    def _check_labels(self, index: NDArray, label: NDArray | None) -> None:
        """Refuse two labels for one example: in this batch, or here and in an earlier one."""
        if label is None:
            return
        _, first, where = np.unique(index, return_index=True, return_inverse=True)
        wrong = np.flatnonzero(label != label[first[where]])
        if len(wrong):
            i = wrong[0]
            raise ValueError(
                f"example {index[i]} comes with the labels {label[first[where[i]]]} and {label[i]} "
                "in one batch: an example has one label"
            )
        if "label" not in self.arrays:
            return
        known = self.arrays["label"][index]
        wrong = np.flatnonzero((known >= 0) & (known != label))
        if len(wrong):
            i = wrong[0]
            raise ValueError(
                f"example {index[i]} was recorded with label {known[i]} before and with "
                f"{label[i]} now: the indices must always point into the same data set"
            )

    def _note_nonfinite(self, index: NDArray) -> None:
        """Count sightings whose values are not finite, and remember the first few."""
        self.nonfinite += len(index)
        for i in index[:16].tolist():
            if len(self.nonfinite_examples) < 16:
                self.nonfinite_examples.add(i)

    def _tdds_step(self, index: NDArray, log_prob: NDArray) -> NDArray:
        """Return the divergence of these predictions from the same examples' last epoch."""
        previous = self.arrays["previous"]
        new, old = log_prob.astype(np.float64), previous[:, index].T.astype(np.float64)
        previous[:, index] = log_prob.T
        return np.abs(np.exp(new) * (new - old)).sum(axis=-1)

    def close(self) -> None:
        """Fold the open epoch's rows into the sums and open the next epoch."""
        rows, closing, storage = self.rows(), self.epoch, self.storage
        if self.task in SCALED and self.loss_scale is None:
            self.loss_scale = median_loss(rows["prob"])
        missing, slots = 0, (f".{closing % 2}", f".{(closing + 1) % 2}")
        if storage is None:
            slots = (".0", ".0")
        for start in range(0, self.num_examples, EXAMPLES):
            part = slice(start, start + EXAMPLES)
            row = {name: r[part] for name, r in rows.items()}
            missing += int(np.isnan(row["prob"]).sum())
            if self.loss_scale is not None:
                with np.errstate(over="ignore"):  # far above the scale: exp(-inf) = 0
                    row["prob"] = np.exp(-row["prob"] / self.loss_scale)
            fold_rows(self.arrays, row, part, slots, epoch=closing, window=self.window)
            if storage is not None:
                storage.folded(part, slots[1], closing % self.window)
        if storage is not None:
            counters = {**self.counters(), "epoch": closing + 1}
            counters["missing"] = [*self.missing, missing]
            storage.commit(self._record(counters), slots[1], (closing + 1) % self.window)
        self.epoch, self.missing = closing + 1, [*self.missing, missing]
        self._clear_rows()

    def slot(self, epoch: int) -> str:
        """Return the suffix of the sums over the epochs before this one."""
        return ".0" if self.storage is None else f".{epoch % 2}"

    def sums(self, name: str) -> NDArray:
        """Return the running sum ``name`` over the closed epochs, (N,)."""
        return self.arrays[name + self.slot(self.epoch)]

    def last_seen(self) -> NDArray[np.float32]:
        """Return each example's last probability in the last J closed epochs; NaN without one."""
        last = np.full(self.num_examples, np.nan, dtype=np.float32)
        high, low = self.arrays["ring.high"], self.arrays["ring.low"]
        for part in parts(self.num_examples):
            for epoch in range(max(0, self.epoch - self.window), self.epoch):
                prob = decode(high[epoch % self.window, part], low[epoch % self.window, part])
                np.copyto(last[part], prob, where=~np.isnan(prob), casting="same_kind")
        return last

    def _clear_rows(self) -> None:
        """Forget the open epoch: what a killed run had recorded of it does not count."""
        self.repeats, self.updates = [], 0
        for row in self.rows().values():
            row[:] = np.nan

    def counters(self) -> dict[str, Any]:
        """Return everything that is not an array, as plain JSON."""
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
            "unlabelled": self.unlabelled,
            "nonfinite_examples": sorted(self.nonfinite_examples),
        }

    def _record(self, counters: dict[str, Any]) -> dict[str, Any]:
        """Return what a storage must know to go on."""
        return {**counters, "task": self.task, "loss_scale": self.loss_scale}

    def take_counters(self, counters: dict[str, Any]) -> None:
        """Take over what ``counters`` gave; it has been checked."""
        self.epoch, self.num_classes = counters["epoch"], counters["num_classes"]
        self.missing = list(counters["missing"])
        self.duplicates, self.nonfinite = counters["duplicates"], counters["nonfinite"]
        self.unlabelled = counters["unlabelled"]
        self.merged = (self.duplicates, self.nonfinite, self.unlabelled)
        self.nonfinite_examples = set(counters["nonfinite_examples"])

    def take_arrays(self, arrays: dict[str, NDArray]) -> None:
        """Take over copies of all arrays; they have been checked."""
        if self.storage is None:
            self.arrays = {name: array.copy() for name, array in arrays.items()}
            return
        slot, row = self.slot(self.epoch), self.epoch % self.window
        self.storage.replace(arrays, self._record(self.counters()), slot, row)
