"""The user's forward passes -> one table of scores.

Checks a batch (``checks``), takes its values (``observe``), credits them (``store``), closes
epochs over all ranks (``distributed``) and hands out what was recorded (``summary``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_prune import distributed
from data_prune.arrivals import Arrivals, Batch
from data_prune.checks import check_batch, check_index, check_labels, check_settings
from data_prune.observe import PEERS, observe
from data_prune.store import Store
from data_prune.summary import coverage, score_table
from data_prune.table import ScoreTable, write_tables

__all__ = ["DualTracker"]

STATE_VERSION = 2  # 1 held the ring in float32


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
        check_settings(num_examples, epochs, window, task, peers, storage)
        self.task, self.peers, self.ignore_index = task, peers, ignore_index
        self.process_group = process_group
        self.loss_scale: float | None = None
        self._store = Store(num_examples, epochs, window, peers, storage)
        self._arrivals = Arrivals()
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
        return self._store.updates > 0 or len(self._arrivals) > 0

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
        self._store.set_classes(num_classes)
        if on_cpu:
            self._ingest(index, values, label)
            return
        self._arrivals.send(index, values, label)
        self._take_in(self._arrivals.ready())

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

    def _take_in(self, batches: Iterator[Batch]) -> None:
        for index, values, label in batches:
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
        self._take_in(self._arrivals.all())
        store, group = self._store, self.process_group
        alone = distributed.world_size(group) == 1
        recorded = store.updates if alone else distributed.merge_start(store, group)
        if recorded == 0:
            raise RuntimeError(
                f"epoch {self.epoch} ends, but update() was never called in it: "
                "nothing was recorded"
            )
        count = None if alone else store.sightings()
        store.merge_repeats()
        if count is not None:
            distributed.merge_rows(store.rows(), count, group)
            distributed.merge_labels(store.arrays["label"], group)
            distributed.merge_counters(store, count, self._merged, group)
            self._merged = (store.duplicates, store.nonfinite)
        if self.task == "regression":
            self._losses_to_probabilities()
        store.close()

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
        return coverage(self._store)

    def table(self, *, min_epochs: int | None = None) -> ScoreTable:
        """The scores of all examples, from the closed epochs.

        Args:
            min_epochs: accept this many closed epochs instead of all ``epochs``.

        Raises:
            RuntimeError: if fewer epochs are closed.
        """
        self._check_epochs(min_epochs)
        return score_table(self._store, slice(0, self.num_examples), self.task)

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
            part = slice(start, min(start + size, self.num_examples))
            yield score_table(self._store, part, self.task)
            self._store.arrays.release()

    def _check_epochs(self, min_epochs: int | None) -> None:
        needed = self.epochs if min_epochs is None else max(min_epochs, self.window)
        if self.epoch < needed:
            raise RuntimeError(
                f"table() needs {needed} recorded epochs, {self.epoch} are closed"
                " (end_epoch() closes one)"
            )

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything, the open epoch included; loads with ``weights_only=True``."""
        self._take_in(self._arrivals.all())
        store = self._store
        return {
            "version": STATE_VERSION,
            "task": self.task,
            "loss_scale": self.loss_scale,
            "counters": store.counters(),
            "updates": store.updates,
            "merged": list(self._merged),
            "arrays": {name: _portable(a) for name, a in store.arrays.items()},
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
            array = store.arrays[name]
            array[..., : tensor.shape[-1]] = tensor.numpy().view(array.dtype)
        store.updates = state_dict["updates"]
        store.repeats = [
            (i.numpy(), {k: v.numpy() for k, v in values.items()})
            for i, values in state_dict["repeats"]
        ]
        self.loss_scale = state_dict["loss_scale"]
        self._merged = tuple(state_dict["merged"])
        self._arrivals = Arrivals()


def _portable(array: np.ndarray) -> Tensor:
    """A copy as a tensor; torch 2.13 writes unsigned ones of two bytes but cannot unpickle them."""
    copy = array.copy()
    return torch.from_numpy(copy.view(np.int16) if copy.dtype == np.uint16 else copy)
