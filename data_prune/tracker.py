"""The user's forward passes -> one table of scores.

Second station: checks a batch, takes its values (``observe``), credits them (``store``), closes
epochs (over all ranks) and at the end hands out a ``ScoreTable``.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prune import distributed
from data_prune.observe import PEERS, TASKS, observe
from data_prune.store import Store
from data_prune.table import ScoreTable, write_tables

__all__ = ["DualTracker"]

STATE_VERSION = 1


class DualTracker:
    r"""Records the target's probability in each early epoch and turns it into DUAL scores.

    For each window of J epochs with mean m and sample standard deviation u of the probability,

    .. math:: \mathrm{DUAL} = \frac{1}{T-J+1} \sum_{k=1}^{T-J+1} (1 - m_k)\, u_k .

    Rules: an example seen twice in an epoch counts with its mean; a window with an epoch in
    which it was not seen is skipped for it; NaN or infinite logits count as not seen and are
    counted. After the last epoch ``update`` and ``end_epoch`` do nothing, so that the calls may
    stay in the training loop. ``coverage()`` reports all of it.

    Args:
        num_examples: N, length of the data set.
        epochs: T, epochs to record.
        window: J, epochs in a window, 2 <= J <= T.
        task: "classification"; "multilabel" (geometric mean over classes); "tokens"
            (geometric-mean token probability); "regression" (exp(-loss / scale) with the
            median loss of the first epoch as scale: a heuristic, no result rests on it).
        peers: other scores recorded besides, of "dyn_unc", "el2n", "forgetting", "aum", "tdds"
            (classification only; "tdds" keeps one vector of C numbers per example); "all".
        ignore_index: target token that does not count (task "tokens").
        storage: folder for memory-mapped files instead of memory. A killed run that opens the
            same folder goes on after the last closed epoch.
        process_group: ranks that share the epoch; None is the default group where
            torch.distributed is initialized, False means this process alone.

    Raises:
        ValueError: if a number is outside its range or a name is unknown.

    Source:
        Cho et al., "Lightweight Dataset Pruning without Full Training via Example Difficulty
        and Prediction Uncertainty", ICML 2025.

    Example:
        >>> tracker = DualTracker(2, epochs=3, window=2)
        >>> for z in (0.0, 1.0, 2.0):
        ...     tracker.update([0, 1], torch.tensor([[z, 0.0], [z, 0.0]]), torch.tensor([0, 1]))
        ...     tracker.end_epoch()
        >>> [f"{score:.3f}" for score in tracker.table().score]
        ['0.042', '0.093']
    """

    def __init__(
        self,
        num_examples: int,
        *,
        epochs: int = 30,
        window: int = 10,
        task: str = "classification",
        peers: tuple[str, ...] | str = (),
        ignore_index: int = -100,
        storage: str | os.PathLike | None = None,
        process_group: Any = None,
    ) -> None:
        peers = PEERS if peers == "all" else (peers,) if isinstance(peers, str) else tuple(peers)
        _check_settings(num_examples, epochs, window, task, peers, storage)
        self.task, self.peers, self.ignore_index = task, peers, ignore_index
        self.process_group = process_group
        self.loss_scale: float | None = None
        self._store = Store(num_examples, epochs, window, peers, storage)
        # Batches whose values are still on their way from the device, oldest first.
        self._pending: deque[tuple[Any, Tensor, dict[str, Tensor], Tensor | None]] = deque()
        # Duplicates and non-finite sightings that all ranks already agree on.
        self._merged = (self._store.duplicates, self._store.nonfinite)

    num_examples = property(lambda self: self._store.num_examples, doc="N.")
    epochs = property(lambda self: self._store.epochs, doc="T, epochs to record.")
    window = property(lambda self: self._store.window, doc="J, epochs in a window.")
    epoch = property(lambda self: self._store.epoch, doc="Number of closed epochs.")

    @property
    def done(self) -> bool:
        """Whether all epochs are recorded."""
        return self.epoch >= self.epochs

    @property
    def recording(self) -> bool:
        """Whether the open epoch holds at least one batch."""
        return self._store.updates > 0 or len(self._pending) > 0

    def update(self, index: Any, logits: Tensor, target: Tensor) -> None:
        """Credit one batch of the user's own forward pass.

        Args:
            index: (B,) positions in the data set, integers.
            logits: (B, C); (B, L, V) for tokens; anything for regression. Any device and dtype;
                never modified, never kept in a graph.
            target: what the loss was computed with: (B,) classes; (B, C) zeros and ones for
                multilabel; (B, L) tokens; like ``logits`` for regression.

        Raises:
            TypeError: if ``index`` or the labels are no integers.
            ValueError: if a shape, an index or a label does not fit, or an example comes with
                another label than before. Nothing has been recorded then. Labels on an
                accelerator are checked when they arrive, at the latest in ``end_epoch``.
        """
        if self.done:
            return
        index = check_index(index, self.num_examples)
        check_batch(index, logits, target, self.task)
        num_classes = logits.shape[-1] if self.task == "classification" else None
        on_cpu = logits.device.type == "cpu"
        safe = target.detach().to(logits.device)
        if not safe.dtype.is_floating_point:
            safe = safe.long()
        label = safe if self.task == "classification" else None
        if label is not None:
            if on_cpu:
                check_labels(label.numpy(), logits.shape[-1])
            else:
                safe = label.clamp(0, logits.shape[-1] - 1)  # the check waits for the copy
        values = observe(
            logits, safe, task=self.task, peers=self.peers, ignore_index=self.ignore_index
        )
        if on_cpu:
            self._store.set_classes(num_classes)
            self._ingest(index, values, label)
            return
        self._send(index, values, label, num_classes)

    def update_probability(self, index: Any, prob: Any, label: Any = None) -> None:
        """Credit probabilities that the caller has computed himself (any model, any task).

        Args:
            index: (B,) positions, integers.
            prob: (B,) probabilities in [0, 1]; NaN counts as not finite.
            label: (B,) integers, or None.

        Raises:
            ValueError: if a value is outside its range, or peers were asked for.
        """
        if self.done:
            return
        if self.peers:
            raise ValueError(f"peers {self.peers} need logits, update_probability has none")
        index = check_index(index, self.num_examples)
        values = torch.as_tensor(prob).detach().float().cpu()
        if values.shape != index.shape:
            raise ValueError(f"prob has shape {tuple(values.shape)}, index {tuple(index.shape)}")
        if bool(((values < 0) | (values > 1)).any()):
            raise ValueError(f"prob must be in [0, 1], got {values.min()} to {values.max()}")
        labels = None if label is None else torch.as_tensor(label).long().cpu()
        self._store.set_classes(None)
        self._ingest(index, {"prob": values}, labels)

    def _send(
        self, index: Tensor, values: dict[str, Tensor], label: Tensor | None, classes: int | None
    ) -> None:
        """Start one copy per batch to the host and credit the batches that have arrived."""
        self._store.set_classes(classes)
        arriving = {k: v.to("cpu", non_blocking=True) for k, v in values.items()}
        labels = None if label is None else label.to("cpu", non_blocking=True)
        event = torch.Event(next(iter(values.values())).device.type)
        event.record()
        self._pending.append((event, index, arriving, labels))
        while self._pending and self._pending[0][0].query():
            self._arrive()

    def _arrive(self) -> None:
        event, index, values, label = self._pending.popleft()
        event.synchronize()
        if label is not None:
            check_labels(label.numpy(), self._store.num_classes or 0)
        self._ingest(index, values, label)

    def _ingest(self, index: Tensor, values: dict[str, Tensor], label: Tensor | None) -> None:
        self._store.add(
            index.numpy(),
            {name: v.numpy() for name, v in values.items()},
            None if label is None else label.numpy(),
        )

    def end_epoch(self) -> None:
        """Close the open epoch: merge the ranks, fold the row into the sums.

        Raises:
            RuntimeError: if nothing was recorded in it, on any rank.
        """
        if self.done:
            return
        while self._pending:
            self._arrive()
        store, group = self._store, self.process_group
        ranks = distributed.world_size(group)
        recorded = store.updates
        if ranks > 1:
            if "tdds" in self.peers:
                raise RuntimeError(
                    "tdds compares whole predictions with the same rank's last epoch and cannot "
                    "be recorded on several ranks: leave it out of peers"
                )
            recorded, classes = distributed.merge_counts(
                [store.updates, store.num_classes or 0], "max", group
            )
        if recorded == 0:
            raise RuntimeError(
                f"epoch {self.epoch} ends, but update() was never called in it: "
                "nothing was recorded"
            )
        count = store.merge_repeats()
        if ranks > 1:
            store.set_classes(classes if classes > 0 else None)
            distributed.merge_rows(store.rows(), count, group)
            distributed.merge_labels(store.arrays["label"], group)
            self._merge_counters(count)
        if self.task == "regression":
            self._losses_to_probabilities()
        store.close()

    def _merge_counters(self, count: NDArray) -> None:
        """Same totals on all ranks; only this epoch's part of them is still apart."""
        store, before = self._store, self._merged
        extra = int(np.maximum(count.astype(np.int64) - 1, 0).sum())
        nonfinite = distributed.merge_counts(
            [store.nonfinite - before[1]], "sum", self.process_group
        )[0]
        store.duplicates = before[0] + extra
        store.nonfinite = before[1] + nonfinite
        self._merged = (store.duplicates, store.nonfinite)

    def _losses_to_probabilities(self) -> None:
        row = self._store.rows()["prob"]
        if self.loss_scale is None:
            self.loss_scale = max(float(np.nanmedian(row)), np.finfo(np.float32).tiny)
        np.exp(-row / self.loss_scale, out=row)

    def coverage(self) -> dict[str, Any]:
        """What was seen: counts a user should look at before pruning by the scores.

        Returns:
            ``epochs`` closed, ``examples``, ``missing_per_epoch``, ``seen_in_every_epoch``,
            ``never_seen``, ``unscored`` (no complete window), ``duplicates`` and ``nonfinite``
            (sightings), ``nonfinite_examples`` (the first few).
        """
        store = self._store
        observed = store.sums("observed")
        return {
            "epochs": self.epoch,
            "examples": self.num_examples,
            "missing_per_epoch": list(store.missing),
            "seen_in_every_epoch": int((observed == self.epoch).sum()),
            "never_seen": int((observed == 0).sum()),
            "unscored": int((store.sums("windows") == 0).sum()),
            "duplicates": store.duplicates,
            "nonfinite": store.nonfinite,
            "nonfinite_examples": sorted(store.nonfinite_examples),
        }

    def table(self, *, min_epochs: int | None = None) -> ScoreTable:
        """The scores of all examples, from the closed epochs.

        Args:
            min_epochs: accept this many closed epochs instead of all ``epochs``.

        Raises:
            RuntimeError: if fewer epochs are closed.
        """
        self._check_epochs(min_epochs)
        return self._table(slice(0, self.num_examples))

    def to_parquet(self, path: str | os.PathLike, *, min_epochs: int | None = None) -> None:
        """Write the table to one Parquet file without ever holding all of it in memory.

        Args:
            path: the file; ``ScoreTable.from_parquet`` and ``select_parquet`` read it.
            min_epochs: as for ``table``.
        """
        self._check_epochs(min_epochs)
        write_tables(self._pieces(1 << 20), path)

    def _pieces(self, size: int) -> Iterator[ScoreTable]:
        """The table piece by piece; mapped pages that have been read are given back."""
        for start in range(0, self.num_examples, size):
            yield self._table(slice(start, min(start + size, self.num_examples)))
            self._store.release()

    def _check_epochs(self, min_epochs: int | None) -> None:
        needed = self.epochs if min_epochs is None else max(min_epochs, self.window)
        if self.epoch < needed:
            raise RuntimeError(
                f"table() needs {needed} recorded epochs, {self.epoch} are closed"
                " (end_epoch() closes one)"
            )

    def _table(self, part: slice) -> ScoreTable:
        """Columns of a range of examples: sums divided by their counts."""
        store = self._store
        observed = store.sums("observed")[part].astype(np.float32)
        windows = store.sums("windows")[part].astype(np.float32)

        def mean(name: str, count: NDArray) -> NDArray:
            return store.sums(name)[part] / np.where(count > 0, count, np.nan)

        peers: dict[str, NDArray] = {}
        for peer in self.peers:
            if peer == "dyn_unc":
                peers[peer] = mean("dyn_unc_sum", windows)
            elif peer == "forgetting":
                learned = store.sums("learned")[part].astype(bool)
                events = store.sums("events")[part].astype(np.float32)
                peers[peer] = np.where(learned, events, np.float32(self.epoch))
            elif peer == "tdds":
                peers[peer] = store.sums("tdds_sum")[part].copy()
            else:
                peers[peer] = mean(f"{peer}_sum", observed)
        has_labels = "label" in store.arrays
        return ScoreTable(
            key=np.arange(part.start, part.stop, dtype=np.int64),
            label=(
                store.arrays["label"][part].astype(np.int32)
                if has_labels
                else np.full(part.stop - part.start, -1, dtype=np.int32)
            ),
            score=mean("score_sum", windows),
            mean_prob=mean("prob_sum", observed),
            observed=store.sums("observed")[part].astype(np.int32),
            peers=peers,
            meta={
                "epochs": self.epoch,
                "window": self.window,
                "task": self.task,
                "examples": self.num_examples,
                "nonfinite": store.nonfinite,
                "nonfinite_examples": sorted(store.nonfinite_examples),
                "duplicates": store.duplicates,
            },
        )

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything, the open epoch included; loads with ``weights_only=True``."""
        while self._pending:
            self._arrive()
        store = self._store
        return {
            "version": STATE_VERSION,
            "task": self.task,
            "loss_scale": self.loss_scale,
            "counters": store.counters(),
            "updates": store.updates,
            "merged": list(self._merged),
            "arrays": {name: torch.from_numpy(a.copy()) for name, a in store.arrays.items()},
            "repeats": [
                (torch.from_numpy(i), {k: torch.from_numpy(v) for k, v in values.items()})
                for i, values in store.repeats
            ],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken, in the middle of an epoch too.

        Raises:
            ValueError: if it belongs to another data set length, other epochs, window, task or
                peers. Nothing has been changed then.
        """
        if state_dict["version"] != STATE_VERSION:
            raise ValueError(f"state has version {state_dict['version']}, known is {STATE_VERSION}")
        if state_dict["task"] != self.task:
            raise ValueError(f"state has task {state_dict['task']!r}, this tracker {self.task!r}")
        store = self._store
        store.restore(state_dict["counters"], "state_dict")
        for name, tensor in state_dict["arrays"].items():
            store.arrays[name][..., : tensor.shape[-1]] = tensor.numpy()
        store.updates = state_dict["updates"]
        store.repeats = [
            (i.numpy(), {k: v.numpy() for k, v in values.items()})
            for i, values in state_dict["repeats"]
        ]
        self.loss_scale = state_dict["loss_scale"]
        self._merged = tuple(state_dict["merged"])
        self._pending.clear()


def _check_settings(
    num_examples: int,
    epochs: int,
    window: int,
    task: str,
    peers: tuple[str, ...],
    storage: str | os.PathLike | None,
) -> None:
    for name, value in (("num_examples", num_examples), ("epochs", epochs), ("window", window)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
    if num_examples < 1:
        raise ValueError(f"num_examples must be at least 1, got {num_examples}")
    if not 2 <= window <= epochs:
        raise ValueError(f"window must be between 2 and epochs = {epochs}, got {window}")
    if task not in TASKS:
        raise ValueError(f"task must be one of {TASKS}, got {task!r}")
    unknown = set(peers) - set(PEERS)
    if unknown:
        raise ValueError(f"peers must be of {PEERS}, got {sorted(unknown)}")
    if peers and task != "classification":
        raise ValueError(f"peers are defined for classification only, task is {task!r}")
    if "tdds" in peers and window < 3:
        raise ValueError(f"tdds needs a window of at least 3 epochs, got {window}")
    if "tdds" in peers and storage is not None:
        raise ValueError("tdds cannot be kept in storage: a killed epoch could not be undone")


def check_index(index: Any, num_examples: int) -> Tensor:
    """(B,) int64 on the host, every entry inside [0, num_examples)."""
    tensor = torch.as_tensor(index).detach()
    if tensor.dtype.is_floating_point or tensor.dtype in (torch.bool, torch.complex64):
        raise TypeError(
            f"index must hold integers, got {tensor.dtype}: floats are not exact above 2**24"
        )
    tensor = tensor.to("cpu", torch.int64)
    if tensor.ndim != 1:
        raise ValueError(f"index must have shape (B,), got {tuple(tensor.shape)}")
    if len(tensor) and not 0 <= int(tensor.min()) <= int(tensor.max()) < num_examples:
        raise ValueError(
            f"index must be in [0, {num_examples}), got {int(tensor.min())} to {int(tensor.max())}"
        )
    return tensor


def check_batch(index: Tensor, logits: Tensor, target: Tensor, task: str) -> None:
    """Shapes and kinds of one batch; the message says what the task takes."""
    for name, value in (("logits", logits), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if value.ndim == 0 or len(value) != len(index):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, but the batch has {len(index)} examples"
            )
    shape, given = tuple(logits.shape), tuple(target.shape)
    if task == "regression":
        if logits.numel() != target.numel():
            raise ValueError(f"prediction has shape {shape}, target {given}")
        return
    if not logits.dtype.is_floating_point:
        raise TypeError(f"logits must be floating, got {logits.dtype}")
    if task == "multilabel":
        if logits.ndim != 2 or given != shape:
            raise ValueError(f"multilabel takes (B, C) twice, got logits {shape}, target {given}")
        return
    if task == "classification" and target.dtype.is_floating_point and target.ndim == 2:
        raise ValueError(
            f"target has shape {given} and dtype {target.dtype}: for soft labels (mixup, CutMix, "
            "distillation) the probability of the label is not defined; pass the hard label"
        )
    if target.dtype.is_floating_point or target.dtype == torch.bool:
        raise TypeError(f"target must hold integer classes, got {target.dtype}")
    if task == "classification" and (logits.ndim != 2 or target.ndim != 1):
        raise ValueError(f"expected logits (B, C) and target (B,), got {shape} and {given}")
    if task == "tokens" and (logits.ndim != 3 or given != shape[:2]):
        raise ValueError(f"expected logits (B, L, V) and target (B, L), got {shape} and {given}")
    if logits.shape[-1] < 1:
        raise ValueError("logits have no classes")


def check_labels(label: NDArray, num_classes: int) -> None:
    """Every label inside [0, num_classes)."""
    if len(label) and not 0 <= label.min() <= label.max() < num_classes:
        raise ValueError(
            f"labels must be in [0, {num_classes}), got {label.min()} to {label.max()}"
        )
