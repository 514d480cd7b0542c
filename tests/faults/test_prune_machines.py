"""Any order of what can happen to a recording or a loader equals a naive one."""

import itertools
import pickle
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from data_prune import DualTracker, KeyedTracker
from data_prune.record import ranks
from faults.killed_child import SCALE
from faults.prune_runs import loader, record_pass, same
from reference import dual as naive

EXAMPLES, EPOCHS, WINDOW, CLASSES = 6, 4, 2, 3
BATCHES = st.lists(st.integers(0, EXAMPLES - 1), min_size=1, max_size=5)


def logits_of(index: list[int], seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(len(index), CLASSES, generator=g)


def labels_of(index: list[int]) -> torch.Tensor:
    return torch.tensor(index) % CLASSES


def probabilities(index: list[int], seed: int) -> list[float]:
    rows = zip(logits_of(index, seed).tolist(), index, strict=True)
    return [float(naive.softmax(row)[i % CLASSES]) for row, i in rows]


class Naive:
    """What should be known: for each epoch and example the probabilities that came in."""

    def __init__(self) -> None:
        self.epochs: list[dict[int, list[float]]] = [{}]

    def record(self, index: list[int], seed: int) -> None:
        for i, p in zip(index, probabilities(index, seed), strict=True):
            self.epochs[-1].setdefault(i, []).append(p)

    def check(self, tracker: DualTracker) -> None:
        closed = self.epochs[:-1]
        assert tracker.epoch == len(closed)
        assert tracker.recording == bool(self.epochs[-1])
        seen = [v for epoch in self.epochs for v in epoch.values()]
        assert tracker.coverage()["duplicates"] == sum(len(v) - 1 for v in seen)
        if len(closed) < WINDOW:
            return
        table = tracker.table(min_epochs=len(closed))
        known = [int(str(key).lstrip("k")) for key in table.key]
        history = np.array(
            [[np.mean(epoch[i]) if i in epoch else np.nan for i in known] for epoch in closed]
        )
        np.testing.assert_allclose(table.score, naive.dual(history, WINDOW), atol=1e-6)
        assert table.observed.tolist() == (~np.isnan(history)).sum(0).tolist()


class Recordings(RuleBasedStateMachine):
    """A tracker in memory, one in files and one with keys, and what they should know."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.kinds: dict[str, Callable[[], DualTracker]] = {
            "memory": lambda: DualTracker(EXAMPLES, epochs=EPOCHS, window=WINDOW),
            "files": lambda: DualTracker(
                EXAMPLES, epochs=EPOCHS, window=WINDOW, storage=Path(self.folder.name, "s")
            ),
            "keys": lambda: KeyedTracker(1, epochs=EPOCHS, window=WINDOW),
        }
        self.trackers = {name: make() for name, make in self.kinds.items()}
        self.truth = {name: Naive() for name in self.kinds}

    def index(self, name: str, index: list[int]) -> list[Any]:
        return [f"k{i}" for i in index] if name == "keys" else index

    @rule(index=BATCHES, seed=st.integers(0, 99))
    def record(self, index: list[int], seed: int) -> None:
        for name, tracker in self.trackers.items():
            if not tracker.done:
                self.truth[name].record(index, seed)
            tracker.update(self.index(name, index), logits_of(index, seed), labels_of(index))

    @rule(index=BATCHES, kind=st.sampled_from(["label", "range", "twice", "length", "classes"]))
    def refused(self, index: list[int], kind: str) -> None:
        logits, labels = logits_of(index, 0), labels_of(index)
        if kind == "range":
            labels = labels + CLASSES
        elif kind == "twice":
            index, logits = [*index, index[0]], logits_of([*index, 0], 0)
            labels = torch.cat([labels, (labels[:1] + 1) % CLASSES])
        elif kind == "length":
            labels = labels[1:]
        for name, tracker in self.trackers.items():
            if tracker.done:
                continue
            wrong = labels
            if kind == "label":
                if index[0] not in self.seen(name):
                    continue
                wrong = (labels + 1) % CLASSES
            elif kind == "classes":
                if not self.seen(name):
                    continue
                logits = torch.randn(len(index), CLASSES + 2)
            before = pickle.loads(pickle.dumps(tracker.state_dict()))
            with pytest.raises(ValueError, match=r"label|classes|batch has"):
                tracker.update(self.index(name, index), logits, wrong)
            after = tracker.state_dict()
            if name == "keys":  # room for more keys may have been made
                assert after["keys"] == before["keys"]
            else:
                assert same(after, before)

    def seen(self, name: str) -> set[int]:
        return {i for epoch in self.truth[name].epochs for i in epoch}

    @rule()
    def end_epoch(self) -> None:
        for name, tracker in self.trackers.items():
            if tracker.done:
                tracker.end_epoch()
            elif self.truth[name].epochs[-1]:
                tracker.end_epoch()
                self.truth[name].epochs.append({})
            else:
                with pytest.raises(RuntimeError, match="never called"):
                    tracker.end_epoch()

    @rule()
    def resume_from_states(self) -> None:
        for name, tracker in self.trackers.items():
            state = pickle.loads(pickle.dumps(tracker.state_dict()))
            if name != "files":
                self.trackers[name] = self.kinds[name]()
            self.trackers[name].load_state_dict(state)

    @rule()
    def kill_the_one_in_files(self) -> None:
        epochs = self.truth["files"].epochs
        before = self.trackers.pop("files").epoch
        self.trackers["files"] = self.kinds["files"]()
        assert self.trackers["files"].epoch == before
        epochs[-1] = {}
        # Duplicates of a closed epoch stay counted, those of the lost one do not.

    def teardown(self) -> None:
        for name, tracker in self.trackers.items():
            self.truth[name].check(tracker)
        self.trackers.clear()
        self.folder.cleanup()


TestRecordings = Recordings.TestCase
TestRecordings.settings = settings(
    max_examples=12 * SCALE, stateful_step_count=20, deadline=None, derandomize=True
)


class Threads:
    """Two ranks as two threads: what torch.distributed does for the merge, without processes."""

    def __init__(self) -> None:
        self.barrier, self.rank, self.box = threading.Barrier(2, timeout=30), threading.local(), {}

    def exchange(self, value: Any) -> list[Any]:
        self.box[self.rank.number] = value
        self.barrier.wait()
        both = [self.box[0], self.box[1]]
        self.barrier.wait()
        return both

    def reduce(self, values: np.ndarray, op: Any, group: Any) -> np.ndarray:
        both = self.exchange(values)
        return np.add(*both) if op == dist.ReduceOp.SUM else np.maximum(*both)

    def gather(self, out: list[Any], value: Any, group: Any = None) -> None:
        out[:] = self.exchange(value)

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        results: list[Any] = [None, None]

        def on(number: int) -> None:
            self.rank.number = number
            results[number] = work(number)

        threads = [threading.Thread(target=on, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 1), BATCHES, st.integers(0, 99)), min_size=1, max_size=4),
        min_size=EPOCHS,
        max_size=EPOCHS,
    ),
    st.sampled_from([DualTracker, KeyedTracker]),
)
@settings(max_examples=20 * SCALE, deadline=None, derandomize=True)
def test_ranks_that_merge_equal_a_naive_recording(epochs: list, cls: type) -> None:
    """Whoever saw what, and however often: the same table on both ranks, and the right one."""
    threads, truth = Threads(), Naive()
    for batches in epochs:
        for _, index, seed in batches:
            truth.record(index, seed)
        truth.epochs.append({})

    def record(rank: int) -> DualTracker:
        keyed = cls is KeyedTracker
        tracker = cls(1 if keyed else EXAMPLES, epochs=EPOCHS, window=WINDOW)
        for batches in epochs:
            for owner, index, seed in batches:
                if owner == rank:
                    keys = [f"k{i}" for i in index] if keyed else index
                    tracker.update(keys, logits_of(index, seed), labels_of(index))
            tracker.end_epoch()
        return tracker

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DualTracker, "_world_size", lambda self: 2)
        patch.setattr(ranks, "_reduce", threads.reduce)
        patch.setattr(dist, "get_world_size", lambda group=None: 2)
        patch.setattr(dist, "all_gather_object", threads.gather)
        first, second = threads.run(record)
    assert first.table().digest() == second.table().digest()
    assert first.coverage() == second.coverage()
    truth.check(first)


def whole_run(epochs: int) -> tuple[list[list[int]], str]:
    """The examples of every epoch of a run that nothing stops, and the digest of its scores."""
    wrapped = loader()
    return [record_pass(wrapped, e) for e in range(epochs)], wrapped.table.digest()


class Loaders(RuleBasedStateMachine):
    """A wrapped loader that is stopped and resumed anywhere, against a run that is not."""

    workers = 0

    @initialize()
    def start(self) -> None:
        self.expected, self.digest = whole_run(6)
        self.loader, self.epoch, self.done, self.batches = loader(self.workers), 0, 0, None

    @rule(count=st.integers(1, 6))
    @precondition(lambda self: self.epoch < 6)
    def go_on(self, count: int) -> None:
        if self.batches is None:
            self.batches = iter(self.loader)
        for x, y in itertools.islice(self.batches, count):
            seen = x.flatten().long().tolist()
            assert seen == self.expected[self.epoch][self.done : self.done + len(seen)]
            self.done += len(seen)
            self.loader.record(torch.sin(x * torch.arange(1.0, 4.0) + self.epoch), y)
        if self.done == len(self.expected[self.epoch]) and next(self.batches, None) is None:
            self.batches, self.epoch, self.done = None, self.epoch + 1, 0

    @rule()
    def resume(self) -> None:
        state = pickle.loads(pickle.dumps(self.loader.state_dict()))
        self.loader, self.batches = loader(self.workers), None
        self.loader.load_state_dict(state)

    @rule()
    @precondition(lambda self: self.batches is None and self.done == 0 and self.epoch < 6)
    def peek(self) -> None:
        """A look at the first batch counts for nothing when the pass begins anew."""
        next(iter(self.loader))
        assert self.loader.state_dict()["sampler"]["yielded"] == 5
        self.loader.set_epoch(self.epoch)

    def teardown(self) -> None:
        self.batches = None
        if hasattr(self, "loader") and self.epoch >= 3:
            assert self.loader.table.digest() == self.digest


TestLoaders = Loaders.TestCase
TestLoaders.settings = settings(
    max_examples=12 * SCALE, stateful_step_count=15, deadline=None, derandomize=True
)


class LoadersWithWorkers(Loaders):
    """Workers read ahead: the position must be that of the user, not theirs."""

    workers = 2


TestLoadersWithWorkers = LoadersWithWorkers.TestCase
TestLoadersWithWorkers.settings = settings(
    max_examples=4 * SCALE, stateful_step_count=10, deadline=None, derandomize=True
)
