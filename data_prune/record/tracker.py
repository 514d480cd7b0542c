"""The user's forward passes -> one table of scores.

Checks a batch and takes its values (``batch``), credits them (``store``), closes epochs over
all ranks (``ranks``) and hands out what was recorded (``summary``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from ..score.parquet import write_columns
from ..score.table import ScoreTable
from . import ranks
from .batch import (
    Reading,
    check_index,
    check_labels,
    read_logits,
    read_losses,
    read_probabilities,
)
from .duplicates import merge_duplicates, sightings
from .layout import check_settings
from .observe import PEERS, SCALED
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

    A loss is one of two things. Where it is the negative logarithm of the label's probability,
    as cross entropy is, the probability is :math:`p = e^{-\ell}`: pass it with ``loss=`` in any of
    the first four tasks. Any other loss of at least 0 (squared error, a detector's, a diffusion
    model's) takes task "loss", or "regression" for squared errors taken here:

    .. math:: p = e^{-\ell / s}, \qquad s = \text{median loss of the first epoch.}

    It lies in (0, 1], falls as the loss grows, is 0.37 for the median example of the first epoch
    and does not depend on the loss's unit. The score is then high for examples whose loss falls
    from above s to below it, or keeps moving there; far above s (outliers) and far below it
    (learned) nothing moves p. This is our rule, and no result of the paper rests on it. A part of
    the loss that is drawn anew every epoch (a diffusion model's time step) counts as movement:
    weigh it away, or draw it alike for every epoch.

    Args:
        num_examples: N, length of the data set.
        epochs: T, epochs to record.
        window: J, epochs in a window, 2 <= J <= T.
        task: What a target is, see ``update``: "classification", also by one binary logit;
            "multilabel"; "tokens"; "segmentation"; "regression" or "loss" (below). Where an
            example has many labels, its probability is their geometric mean.
        peers: Other scores recorded besides, of "dyn_unc", "el2n", "forgetting", "aum", "tdds"
            (classification only; "tdds" keeps one vector of C numbers per example); "all".
        ignore_index: Target that does not count (tasks "classification", "tokens" and
            "segmentation"), as of torch's cross entropy.
        shift: Compare the logits at t with the token at t + 1, as a causal language model's loss
            does (task "tokens"). Otherwise they must be aligned already.
        loss_scale: What turns losses into probabilities (tasks "regression" and "loss"); None
            takes the median loss of the first epoch (of the losses above 0 where most are 0).
            Scores of two recordings compare only on one scale.
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
        shift: bool = False,
        loss_scale: float | None = None,
        storage: str | os.PathLike | None = None,
        process_group: Any = None,
    ) -> None:
        peers = PEERS if peers == "all" else (peers,) if isinstance(peers, str) else tuple(peers)
        check_settings(num_examples, epochs, window, task, peers, storage, shift, loss_scale)
        self.task, self.peers, self.ignore_index, self.shift = task, peers, ignore_index, shift
        self.process_group = process_group
        self._store = Store(num_examples, epochs, window, peers, storage, task)
        known = self._store.loss_scale
        if None not in (known, loss_scale) and known != loss_scale:
            raise ValueError(f"{storage} has loss_scale = {known}, this tracker has {loss_scale}")
        self._store.loss_scale = known if loss_scale is None else float(loss_scale)
        self._transfers = Transfers()

    num_examples = property(lambda self: self._store.num_examples, doc="N.")
    epochs = property(lambda self: self._store.epochs, doc="T, epochs to record.")
    window = property(lambda self: self._store.window, doc="J, epochs in a window.")
    epoch = property(lambda self: self._store.epoch, doc="Number of closed epochs.")
    loss_scale = property(
        lambda self: self._store.loss_scale, doc="Of the losses, where they have one."
    )

    @property
    def done(self) -> bool:
        """Say whether all epochs are recorded."""
        return self.epoch >= self.epochs

    @property
    def recording(self) -> bool:
        """Say whether the open epoch holds at least one batch."""
        return self._store.updates > 0 or len(self._transfers) > 0

    def update(
        self,
        index: Any,
        logits: Tensor | None = None,
        target: Tensor | None = None,
        *,
        loss: Tensor | None = None,
        prob: Any = None,
        label: Any = None,
    ) -> None:
        """Credit one batch of the user's own forward pass: logits and targets, or a loss alone.

        Args:
            index: (B,) positions in the data set, integers.
            logits: (B, C), or one binary logit (B,) or (B, 1); (B, ...) for multilabel;
                (B, L, V) for tokens; (B, C, ...) for segmentation, one channel for a binary mask;
                anything for regression. Any device and dtype; never modified, never kept in a
                graph.
            target: What the loss was computed with: (B,) classes; for multilabel zeros and ones
                of the logits' shape, -1 or NaN where unknown; (B, L) tokens; (B, ...) pixels;
                like ``logits`` for regression, NaN where unknown.
            loss: (B,) instead: the loss of each example, at least 0. It counts as the negative
                log-likelihood of the label, or by its scale (tasks "regression", "loss"); see
                the class.
            prob: (B,) instead: a probability of your own, in [0, 1]; NaN counts as not finite.
            label: (B,) integers from 0, -1 where there is none; with ``loss`` or ``prob``.

        Raises:
            TypeError: If ``index`` or the labels are no integers.
            ValueError: If a shape, an index or a label does not fit, or an example comes with
                another label than before. Nothing has been recorded then. Labels on an
                accelerator are checked when they arrive, at the latest in ``end_epoch``; a
                negative loss there counts as not finite.
        """
        if self.done:
            return
        given = {"logits": logits, "loss": loss, "prob": prob}
        names = [name for name, value in given.items() if value is not None]
        if len(names) != 1:
            raise ValueError(f"update takes one of logits, loss and prob, got {names}")
        if self.peers and logits is None:
            raise ValueError(f"peers {self.peers} need logits, got {names[0]} alone")
        index = check_index(index, self._store.num_examples)
        if logits is not None:
            options: dict[str, Any] = {
                "peers": self.peers,
                "ignore_index": self.ignore_index,
                "shift": self.shift,
            }
            reading = read_logits(index, logits, target, task=self.task, **options)
        elif loss is not None:
            reading = read_losses(index, loss, label, self.task)
        elif self.task in SCALED:
            raise ValueError(f"task {self.task!r} takes losses, got prob")
        else:
            reading = read_probabilities(index, prob, label)
        if reading.values["prob"].device.type == "cpu":
            self._store.add(index, *reading)
        else:
            self._send(index, reading)

    def update_probability(self, index: Any, prob: Any, label: Any = None) -> None:
        """Credit probabilities that the caller has computed; ``update(index, prob=, label=)``."""
        self.update(index, prob=prob, label=label)

    def _send(self, index: Tensor, reading: Reading) -> None:
        """Credit a batch when its values have arrived on the host, and those that have."""
        values, label, num_classes = reading
        self._store.set_classes(num_classes)
        self._transfers.send(index, values, label)
        self._take_in(self._transfers.ready())

    def _take_in(self, batches: Iterator[Batch]) -> None:
        """Credit batches whose values have arrived from a device."""
        num_classes = -1 if self._store.num_classes is None else self._store.num_classes
        for index, values, label in batches:
            if label is not None and num_classes >= 0:
                check_labels(label, num_classes, self.ignore_index)
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
            merge_duplicates(store.rows(), store.repeats)
            store.repeats = []
        if count is not None:
            ranks.merge_rows(store.rows(), count, group)
            ranks.merge_labels(store.arrays["label"], group)
            ranks.merge_counters(store, count, group)
        store.close()

    def last_seen(self) -> NDArray[np.float32]:
        """Return the probability at which each example was last recorded, (N,).

        Of the last J closed epochs; NaN for an example that none of them has seen.
        """
        return self._store.last_seen()[: self.num_examples]

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
            "merged": list(store.merged),
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
            self._store, store.merged = store, tuple(merged)
            self._transfers = Transfers()

        return take

    def _store_for(self, state_dict: dict[str, Any]) -> Store:
        """Return the store that takes a state over."""
        return self._store
