"""The user's forward passes -> one table of scores.

Checks a batch and takes its values (``observe``), credits them (``store``), closes epochs over
all ranks (``ranks``) and hands out what was recorded (``summary``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..score.parquet import write_columns
from ..score.table import ScoreTable
from . import ranks
from .checks import check_settings
from .observe import PEERS, check_batch, check_index, check_labels, observe
from .repeats import merge_repeats, sightings
from .state import (
    MERGED,
    check_counters,
    check_keys,
    check_same,
    check_version,
    check_whole,
    check_whole_recording,
    check_wholes,
    checked_arrays,
    checked_repeats,
    portable,
)
from .store import Store
from .summary import coverage, score_table
from .transfers import Batch, Transfers

STATE_VERSION = 3  # of what `state_dict` returns; states of other versions are refused
STATE = (
    "version", "task", "loss_scale", "counters", "updates", "merged", "arrays", "repeats",
)  # fmt: skip


class DualTracker:
    r"""Records the target's probability in each early epoch and turns it into DUAL scores.

    For each window of J epochs with mean m and sample standard deviation u of the probability,

    .. math:: \mathrm{DUAL} = \frac{1}{T-J+1} \sum_{k=1}^{T-J+1} (1 - m_k)\, u_k .

    Rules: an example seen twice in an epoch counts with its mean; a window with an epoch in
    which it was not seen is skipped for it; NaN or infinite logits count as not seen and are
    counted, and so are, by themselves, examples of which no label counts. After the last epoch
    ``update`` and ``end_epoch`` do nothing, so that the calls may
    stay in the training loop. ``coverage()`` reports all of it.

    Args:
        num_examples: N, length of the data set.
        epochs: T, epochs to record.
        window: J, epochs in a window, 2 <= J <= T.
        task: "classification"; "multilabel" (geometric mean over known classes); "tokens"
            (geometric-mean token probability); "regression" (exp(-loss / scale) with the
            median loss of the first epoch as scale: a heuristic, no result rests on it).
        peers: Other scores recorded besides, of "dyn_unc", "el2n", "forgetting", "aum", "tdds"
            (classification only; "tdds" keeps one vector of C numbers per example); "all".
        ignore_index: Target token that does not count (task "tokens").
        storage: Folder for memory-mapped files instead of memory. A killed run that opens the
            same folder goes on after the last closed epoch. An empty or new folder of its own
            for each run; two trackers cannot have it open at once.
        process_group: Ranks that share the epoch; None is the default group where
            torch.distributed is initialized, False means this process alone.

    Raises:
        ValueError: If a number is outside its range, a name is unknown, or the storage belongs to
            another recording or to somebody else.
        OSError: If the storage has too little space.
        RuntimeError: If another tracker has the storage open.

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
        self._store = Store(num_examples, epochs, window, peers, storage, task)
        self._transfers = Transfers()
        # Duplicates, non-finite and unlabelled sightings that all ranks already agree on.
        self._merged = totals(self._store)

    num_examples = property(lambda self: self._store.num_examples, doc="N.")
    epochs = property(lambda self: self._store.epochs, doc="T, epochs to record.")
    window = property(lambda self: self._store.window, doc="J, epochs in a window.")
    epoch = property(lambda self: self._store.epoch, doc="Number of closed epochs.")
    loss_scale = property(lambda self: self._store.loss_scale, doc="Of the losses (regression).")

    @property
    def done(self) -> bool:
        """Say whether all epochs are recorded."""
        return self.epoch >= self.epochs

    @property
    def recording(self) -> bool:
        """Say whether the open epoch holds at least one batch."""
        return self._store.updates > 0 or len(self._transfers) > 0

    def update(self, index: Any, logits: Tensor, target: Tensor) -> None:
        """Credit one batch of the user's own forward pass.

        Args:
            index: (B,) positions in the data set, integers.
            logits: (B, C); (B, L, V) for tokens; anything for regression. Any device and dtype;
                never modified, never kept in a graph.
            target: What the loss was computed with: (B,) classes; (B, C) zeros and ones for
                multilabel, -1 or NaN where unknown; (B, L) tokens; like ``logits`` for regression.

        Raises:
            TypeError: If ``index`` or the labels are no integers.
            ValueError: If a shape, an index or a label does not fit, or an example comes with
                another label than before. Nothing has been recorded then. Labels on an
                accelerator are checked when they arrive, at the latest in ``end_epoch``.
        """
        if self.done:
            return
        store, classes = self._store, self.task == "classification"
        index = check_index(index, store.num_examples)
        check_batch(index, logits, target, self.task)
        num_classes = logits.shape[-1] if classes else -1
        safe = target.detach().to(logits.device)
        if not safe.dtype.is_floating_point:
            safe = safe.long()
        label, on_cpu = safe if classes else None, logits.device.type == "cpu"
        if classes and on_cpu:
            check_labels(safe.numpy(), num_classes)
        elif classes:
            safe = safe.clamp(0, num_classes - 1)  # the check waits for the copy
        values = observe(
            logits, safe, task=self.task, peers=self.peers, ignore_index=self.ignore_index
        )
        if on_cpu:
            store.add(index, values, label, num_classes)
            return
        store.set_classes(num_classes)
        self._transfers.send(index, values, label)
        self._take_in(self._transfers.ready())

    def update_probability(self, index: Any, prob: Any, label: Any = None) -> None:
        """Credit probabilities that the caller has computed (any model, any task).

        Args:
            index: (B,) positions, integers.
            prob: (B,) probabilities in [0, 1]; NaN counts as not finite.
            label: (B,) integers from 0, -1 where there is none, or None.

        Raises:
            TypeError: If ``index`` or ``label`` are no integers.
            ValueError: If a value is outside its range, or peers were asked for.
        """
        if self.done:
            return
        if self.peers:
            raise ValueError(f"peers {self.peers} need logits, update_probability has none")
        index = check_index(index, self._store.num_examples)
        values = torch.as_tensor(prob).detach().float().cpu()
        if values.shape != index.shape:
            raise ValueError(f"prob has shape {tuple(values.shape)}, index {tuple(index.shape)}")
        if bool(((values < 0) | (values > 1)).any()):
            raise ValueError(f"prob must be in [0, 1], got {values.min()} to {values.max()}")
        self._store.add(index, {"prob": values}, None if label is None else _labels(label, index))

    def _take_in(self, batches: Iterator[Batch]) -> None:
        """Credit batches whose values have arrived from a device."""
        num_classes = -1 if self._store.num_classes is None else self._store.num_classes
        for index, values, label in batches:
            if label is not None:
                check_labels(label.numpy(), num_classes)
            self._store.add(index, values, label, num_classes)

    def _world_size(self) -> int:
        """Return how many ranks share the epoch: 1 without a process group, or with False."""
        if self.process_group is False or not (dist.is_available() and dist.is_initialized()):
            return 1
        return dist.get_world_size(self.process_group)

    def end_epoch(self) -> None:
        """Close the open epoch: merge the ranks, fold the row into the sums.

        Raises:
            RuntimeError: If nothing was recorded in it, on any rank.
        """
        if self.done:
            return
        if self._transfers:
            self._take_in(self._transfers.all())
        store, group, alone = self._store, self.process_group, self._world_size() == 1
        recorded = store.updates if alone else ranks.merge_start(store, group)
        if recorded == 0:
            raise RuntimeError(
                f"epoch {self.epoch} ends, but update() was never called in it: "
                "nothing was recorded"
            )
        count = None if alone else sightings(store.rows()["prob"], store.repeats)
        if store.repeats:
            merge_repeats(store.rows(), store.repeats)
            store.repeats = []
        if count is not None:
            ranks.merge_rows(store.rows(), count, group)
            ranks.merge_labels(store.arrays["label"], group)
            ranks.merge_counters(store, count, self._merged, group)
            self._merged = totals(store)
        store.close()

    def coverage(self) -> dict[str, Any]:
        """Return what was seen: counts a user should look at before pruning by the scores.

        Returns:
            ``epochs`` closed, ``examples``, ``missing_per_epoch``, ``seen_in_every_epoch``,
            ``never_seen``, ``unscored`` (no complete window), ``duplicates``, ``nonfinite`` and
            ``unlabelled`` (sightings), ``nonfinite_examples`` (the first few).
        """
        return coverage(self._store)

    def table(self, *, min_epochs: int | None = None) -> ScoreTable:
        """Return the scores of all examples, from the closed epochs.

        Args:
            min_epochs: Accept this many closed epochs instead of all ``epochs``.

        Raises:
            RuntimeError: If fewer epochs are closed.
        """
        self._check_epochs(min_epochs)
        return self._piece(slice(0, self.num_examples))

    def to_parquet(self, path: str | os.PathLike, *, min_epochs: int | None = None) -> None:
        """Write the table to one Parquet file without ever holding all of it in memory.

        Args:
            path: The file; ``ScoreTable.from_parquet`` and ``select_parquet`` read it.
            min_epochs: As for ``table``.
        """
        self._check_epochs(min_epochs)
        write_columns(
            ((table.arrays(), table.peers, table.meta) for table in self._pieces(1 << 20)), path
        )

    def _pieces(self, size: int) -> Iterator[ScoreTable]:
        """Yield the table piece by piece; mapped pages that have been read are given back."""
        for start in range(0, self.num_examples, size):
            yield self._piece(slice(start, min(start + size, self.num_examples)))
            if self._store.storage is not None:
                self._store.storage.release()

    def _piece(self, part: slice) -> ScoreTable:
        return score_table(self._store, part, self.task)

    def _check_epochs(self, min_epochs: int | None) -> None:
        needed = self.epochs if min_epochs is None else max(min_epochs, self.window)
        if self.epoch < needed:
            raise RuntimeError(
                f"table() needs {needed} recorded epochs, {self.epoch} are closed"
                " (end_epoch() closes one)"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all, the open epoch included; it loads with ``weights_only=True``."""
        self._take_in(self._transfers.all())
        store = self._store
        return {
            "version": STATE_VERSION,
            "task": self.task,
            "loss_scale": self.loss_scale,
            "counters": store.counters(),
            "updates": store.updates,
            "merged": list(self._merged),
            "arrays": {name: portable(a) for name, a in store.arrays.items()},
            "repeats": [
                (torch.from_numpy(i), {k: torch.from_numpy(v) for k, v in values.items()})
                for i, values in store.repeats
            ],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken, in the middle of an epoch too.

        Raises:
            TypeError: If an entry has the wrong kind.
            ValueError: If an entry is missing or unknown or outside its range, or if it belongs to
                another data set length, other epochs, window, task or peers. Nothing has been
                changed then.
        """
        self._checked(state_dict)()

    def _checked(self, state_dict: Any, names: tuple[str, ...] = STATE) -> Callable[[], None]:
        """Check a whole state, and return what takes it over."""
        check_keys(state_dict, names, type(self).__name__)
        check_version(state_dict["version"], STATE_VERSION)
        check_same("task", state_dict["task"], self.task, "tracker")
        store, scale, counters = (
            self._store_for(state_dict), state_dict["loss_scale"], state_dict["counters"],
        )  # fmt: skip
        if scale is not None and not (isinstance(scale, float) and 0.0 < scale < float("inf")):
            raise ValueError(f"loss_scale of the state must be a positive float, got {scale!r}")
        check_counters(counters, store.counters())
        updates = check_whole("updates", state_dict["updates"], 0)
        merged = check_wholes("merged", state_dict["merged"], 0)
        if len(merged) != len(MERGED):
            raise ValueError(f"merged of the state must have 3 entries, got {len(merged)}")
        arrays = checked_arrays(state_dict["arrays"], counters, store)
        repeats = checked_repeats(state_dict["repeats"], store)
        used = len(state_dict["keys"]) if "keys" in names else store.num_examples
        check_whole_recording(state_dict, arrays, store, used)

        def take() -> None:
            store.take_counters(counters)
            store.loss_scale = scale
            store.take_arrays(arrays)
            store.updates, store.repeats = updates, repeats
            self._store, self._merged = store, tuple(merged)
            self._transfers = Transfers()

        return take

    def _store_for(self, state_dict: dict[str, Any]) -> Store:
        """Return the store that takes a state over."""
        return self._store


def totals(store: Store) -> tuple[int, ...]:
    """Return the counts of sightings that ranks add up."""
    return tuple(getattr(store, name) for name in MERGED)


def _labels(label: Any, index: Tensor) -> Tensor:
    """Return the labels of a batch as (B,) int64 on the host."""
    labels = torch.as_tensor(label).detach()
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        raise TypeError(f"label must hold integers, got {labels.dtype}")
    if labels.shape != index.shape:
        raise ValueError(f"label has shape {tuple(labels.shape)}, index {tuple(index.shape)}")
    labels = labels.to("cpu", torch.int64)
    if len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < 2**31:
        raise ValueError(
            f"label must be in [-1, 2**31), got {int(labels.min())} to {int(labels.max())}"
        )
    return labels
