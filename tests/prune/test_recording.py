"""Recording beyond one process in memory: files, ranks, streams, other tasks."""

import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from data_prune import DualTracker, KeyedTracker, ScoreTable
from data_prune.arrivals import Arrivals, pack, unpack
from ranks import leave
from reference import dual as naive


def feed(tracker, epoch, n=200, size=64):
    """One epoch of deterministic probabilities."""
    p = (np.sin(np.arange(n) * 0.7 + epoch) + 1) / 2
    for start in range(0, n, size):
        part = slice(start, min(start + size, n))
        tracker.update_probability(np.arange(n)[part], p[part], np.arange(n)[part] % 5)
    return p


# -- files --------------------------------------------------------------------------------


def test_storage_in_files_gives_the_same_scores(tmp_path):
    """Out of core is a place, not another method."""
    memory = DualTracker(200, epochs=5, window=3)
    files = DualTracker(200, epochs=5, window=3, storage=tmp_path / "s")
    for epoch in range(5):
        for tracker in (memory, files):
            feed(tracker, epoch)
            tracker.end_epoch()
    assert files.table().digest() == memory.table().digest()
    files.to_parquet(tmp_path / "scores.parquet")
    assert ScoreTable.from_parquet(tmp_path / "scores.parquet").digest() == memory.table().digest()


def test_killed_run_loses_only_the_open_epoch(tmp_path):
    """A process killed without warning in epoch 3 goes on from three closed epochs."""
    script = """
        import os, sys
        sys.path.insert(0, sys.argv[2])
        from prune.test_recording import feed
        from data_prune import DualTracker
        tracker = DualTracker(200, epochs=5, window=3, storage=sys.argv[1])
        for epoch in range(3):
            feed(tracker, epoch); tracker.end_epoch()
        tracker.update_probability([0, 0, 1], [0.9, 0.1, 0.5], [0, 0, 1])
        os._exit(9)
    """
    folder = tmp_path / "s"
    code = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(script),
            str(folder),
            str(Path(__file__).parents[1]),
        ],
        check=False,
    ).returncode
    assert code == 9
    tracker = DualTracker(200, epochs=5, window=3, storage=folder)
    assert tracker.epoch == 3
    history = [feed(DualTracker(200, epochs=5, window=3), e) for e in range(5)]
    for epoch in (3, 4):
        feed(tracker, epoch)
        tracker.end_epoch()
    np.testing.assert_allclose(tracker.table().score, naive.dual(history, 3), atol=1e-6)
    assert tracker.coverage()["duplicates"] == 0


def test_kill_while_an_epoch_is_being_closed_keeps_the_old_sums(tmp_path):
    """The sums exist twice, so that half an update can never be read."""
    tracker = DualTracker(200, epochs=4, window=2, storage=tmp_path)
    for epoch in range(2):
        feed(tracker, epoch)
        tracker.end_epoch()
    before = tracker.table(min_epochs=2).digest()
    feed(tracker, 2)
    # Everything close() does before it makes the new state valid, then nothing more: a kill.
    tracker._store._fold(slice(0, 150))
    del tracker
    tracker = DualTracker(200, epochs=4, window=2, storage=tmp_path)
    assert tracker.table(min_epochs=2).digest() == before
    for epoch in (2, 3):
        feed(tracker, epoch)
        tracker.end_epoch()
    history = [feed(DualTracker(200, epochs=4, window=2), e) for e in range(4)]
    np.testing.assert_allclose(tracker.table().score, naive.dual(history, 2), atol=1e-6)


def test_storage_of_other_settings_or_other_files_is_refused(tmp_path):
    """Nobody's folder is overwritten, and no other recording continued."""
    tracker = DualTracker(200, epochs=4, window=2, storage=tmp_path / "a")
    feed(tracker, 0)
    tracker.end_epoch()
    with pytest.raises(ValueError, match="num_examples = 200, this tracker has 201"):
        DualTracker(201, epochs=4, window=2, storage=tmp_path / "a")
    with pytest.raises(ValueError, match="window = 2, this tracker has 3"):
        DualTracker(200, epochs=4, window=3, storage=tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("do not delete")
    with pytest.raises(ValueError, match="must be an empty folder"):
        DualTracker(200, epochs=4, window=2, storage=tmp_path / "b")
    meta = tmp_path / "a" / "meta.json"
    stored = json.loads(meta.read_text())
    assert (stored["epoch"], stored["format"]) == (1, 2)
    del stored["format"]  # as the first format was written
    meta.write_text(json.dumps(stored))
    with pytest.raises(
        ValueError, match="storage format 1, known is 2: finish it with the version"
    ):
        DualTracker(200, epochs=4, window=2, storage=tmp_path / "a")


# -- ranks --------------------------------------------------------------------------------


def _rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    tracker = DualTracker(21, epochs=3, window=2, peers=("el2n", "forgetting"))
    keyed = KeyedTracker(epochs=3, window=2, capacity=2)
    for epoch in range(3):
        # Padding makes 22 of 21: example 0 is seen by both ranks, with different logits.
        for i in [*range(rank, 21, 2), *([0] if rank else [])]:
            z = torch.sin(torch.tensor([[i, i + 1.0, 2.0 * i]]) + epoch + 0.1 * rank)
            tracker.update([i], z, torch.tensor([i % 3]))
            keyed.update([f"k{i}"], z, torch.tensor([i % 3]))
        if epoch == 1 and rank == 1:
            bad = torch.full((1, 3), math.nan)
            tracker.update([1], bad, torch.tensor([1]))
        tracker.end_epoch()
        keyed.end_epoch()
    table = tracker.table()
    digests = [None, None]
    kept = table.select(0.5, ignore_nonfinite=True).tolist()
    dist.all_gather_object(digests, (table.digest(), tracker.coverage()["nonfinite"], kept))
    assert digests[0] == digests[1], digests
    words = keyed.table()
    position = [words.key.tolist().index(f"k{i}") for i in range(21)]
    np.testing.assert_array_equal(words.score[position], table.score)
    if rank == 0:
        table.to_parquet(f"{folder}/table.parquet")
        Path(f"{folder}/coverage.json").write_text(json.dumps(tracker.coverage()))
    leave()


def test_two_ranks_agree_and_equal_one_process(tmp_path):
    """Sums and counts merge once an epoch: same table everywhere, padding counts with its mean."""
    mp.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    alone = DualTracker(21, epochs=3, window=2, peers=("el2n", "forgetting"))
    for epoch in range(3):
        for i in range(21):
            for rank in (0, 1) if i == 0 else (i % 2,):
                z = torch.sin(torch.tensor([[i, i + 1.0, 2.0 * i]]) + epoch + 0.1 * rank)
                alone.update([i], z, torch.tensor([i % 3]))
        alone.end_epoch()
    merged, single = ScoreTable.from_parquet(tmp_path / "table.parquet"), alone.table()
    np.testing.assert_allclose(merged.score, single.score, atol=1e-7)
    np.testing.assert_allclose(merged.mean_prob, single.mean_prob, atol=1e-7)
    np.testing.assert_array_equal(merged.label, single.label)
    for name in single.peers:
        np.testing.assert_allclose(merged.peers[name], single.peers[name], atol=1e-6)
    coverage = json.loads((tmp_path / "coverage.json").read_text())
    assert coverage["duplicates"] == 3
    assert coverage["nonfinite"] == 1
    assert coverage["missing_per_epoch"] == [0, 0, 0]


# -- keys ---------------------------------------------------------------------------------


def test_keyed_examples_may_turn_up_late_and_stay_away():
    """A stream has no length and no positions: rows are known by their keys only."""
    tracker = KeyedTracker(epochs=4, window=2, capacity=2)
    seen = {"a": [0.1, 0.3, 0.5, 0.7], "b": [0.2, None, 0.4, 0.8], "c": [None, None, 0.5, 0.9]}
    for epoch in range(4):
        batch = {k: p[epoch] for k, p in seen.items() if p[epoch] is not None}
        tracker.update_probability(list(batch), list(batch.values()))
        tracker.end_epoch()
    table = tracker.table()
    history = [[math.nan if p[e] is None else p[e] for p in seen.values()] for e in range(4)]
    assert table.key.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(table.score, naive.dual(history, 2), atol=1e-6)
    assert table.observed.tolist() == [4, 3, 2]
    assert tracker.coverage()["never_seen"] == 0
    assert set(table.key[table.select(0.5, seed=1)]) < {"a", "b", "c"}


def test_keyed_selection_does_not_depend_on_the_order_of_the_stream():
    """Two workers that read shards in another order must keep the same keys."""
    kept = []
    for order in (list(range(60)), list(range(59, -1, -1))):
        tracker = KeyedTracker(epochs=2, window=2)
        for epoch in range(2):
            for i in order:
                tracker.update_probability([f"s/{i}"], [(math.sin(i + epoch) + 1) / 2])
            tracker.end_epoch()
        table = tracker.table()
        kept.append(set(table.key[table.select(0.5)]))
    assert kept[0] == kept[1]
    assert len(kept[0]) == 30


def test_keyed_state_and_integer_hashes_round_trip():
    """64-bit hashes do not fit into int64, and must come back as they were."""
    keys = [2**64 - 1, 5, 2**63]
    tracker = KeyedTracker(epochs=2, window=2, capacity=2)
    tracker.update_probability(keys, [0.1, 0.2, 0.3])
    tracker.end_epoch()
    other = KeyedTracker(epochs=2, window=2, capacity=2)
    other.load_state_dict(tracker.state_dict())
    for t in (tracker, other):
        t.update_probability(keys[::-1], [0.5, 0.6, 0.7])
        t.end_epoch()
    assert other.table().digest() == tracker.table().digest()
    assert other.table().key.tolist() == keys
    assert other.table().key.dtype == np.uint64


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ("abc", TypeError, "a sequence with one key per example"),
        ([1.5], TypeError, "a key must be a string or an integer, got 1.5"),
        ([-1], ValueError, r"must be in \[0, 2\*\*64\), got -1"),
        (["a", 3], TypeError, "all strings or all integers"),
    ],
)
def test_bad_keys_are_refused(keys, error, message):
    """A float key would merge neighbours."""
    with pytest.raises(error, match=message):
        KeyedTracker(epochs=2, window=2).update_probability(keys, [0.5] * len(keys))


# -- tasks --------------------------------------------------------------------------------


def recorded(tracker, index, output, target):
    tracker.update(index, output, target)
    return tracker._store.rows()["prob"]


def test_tokens_record_the_geometric_mean_probability():
    """Padding and prompts (ignore_index) must not count, whatever their logits are."""
    z = torch.randn(2, 4, 7)
    y = torch.tensor([[1, 2, -100, -100], [3, -100, 5, 6]])
    row = recorded(DualTracker(2, epochs=2, window=2, task="tokens"), [0, 1], z, y)
    for b in range(2):
        logs = [math.log(naive.softmax(z[b, t])[y[b, t]]) for t in range(4) if y[b, t] >= 0]
        assert row[b] == pytest.approx(math.exp(sum(logs) / len(logs)), rel=1e-5)


def test_sequence_without_a_counting_token_is_not_seen():
    """Zero divided by zero must not become a probability."""
    tracker = DualTracker(1, epochs=2, window=2, task="tokens")
    recorded(tracker, [0], torch.randn(1, 3, 5), torch.full((1, 3), -100))
    assert tracker.coverage()["nonfinite"] == 1


def test_large_vocabulary_is_read_in_pieces_with_the_same_result(monkeypatch):
    """A (batch, length, 128k) tensor is never widened whole."""
    from data_prune import observe

    z, y = torch.randn(50, 11), torch.randint(11, (50,))
    whole = observe.target_log_prob(z, y)
    monkeypatch.setattr(observe, "_CHUNK_ELEMENTS", 33)
    assert torch.equal(observe.target_log_prob(z, y), whole)


def test_multilabel_records_the_geometric_mean_over_classes():
    """Every class counts, present or absent."""
    z, y = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[1.0, 0.0, 0.0]])
    row = recorded(DualTracker(1, epochs=2, window=2, task="multilabel"), [0], z, y)
    p = 1 / (1 + np.exp(-z[0].numpy().astype(float)))
    expected = (p[0] * (1 - p[1]) * (1 - p[2])) ** (1 / 3)
    assert row[0] == pytest.approx(expected, rel=1e-6)


def test_regression_turns_losses_into_probabilities_on_a_frozen_scale():
    """The first epoch's median loss is the scale; later epochs must not move it."""
    tracker = DualTracker(3, epochs=2, window=2, task="regression")
    for errors in ([1.0, 2.0, 3.0], [0.5, 1.0, 1.5]):
        tracker.update([0, 1, 2], torch.tensor(errors), torch.zeros(3))
        tracker.end_epoch()
    assert tracker.loss_scale == 4.0
    history = [[math.exp(-(e**2) / 4) for e in row] for row in ([1, 2, 3], [0.5, 1, 1.5])]
    np.testing.assert_allclose(tracker.table().score, naive.dual(history, 2), atol=1e-6)


@pytest.mark.parametrize(
    ("task", "output", "target", "message"),
    [
        ("tokens", torch.zeros(1, 3, 5), torch.zeros(1, 4, dtype=torch.long), r"\(B, L, V\)"),
        ("multilabel", torch.zeros(1, 3), torch.zeros(1, 2), r"takes \(B, C\) twice"),
        ("regression", torch.zeros(1, 3), torch.zeros(1, 2), r"prediction has shape \(1, 3\)"),
    ],
)
def test_shapes_of_other_tasks_are_checked(task, output, target, message):
    """A broadcast would record a number that means nothing."""
    with pytest.raises(ValueError, match=message):
        DualTracker(2, epochs=2, window=2, task=task).update([0], output, target)


def test_copies_from_a_device_are_credited_when_they_arrive(monkeypatch):
    """Reading a copy that is still under way would record whatever was in that memory before."""

    class Event:
        """Of a device that is as fast as the test wants it."""

        arrived = 0
        made: ClassVar[list] = []

        def __init__(self, device):
            self.number = len(self.made)
            self.made.append(device)

        def record(self):
            pass

        def query(self):
            return self.number < Event.arrived

        def synchronize(self):
            Event.arrived = max(Event.arrived, self.number + 1)

    monkeypatch.setattr(torch, "Event", Event)
    arrivals = Arrivals()
    for i in range(4):
        arrivals.send(torch.tensor([i]), {"prob": torch.tensor([i / 10])}, torch.tensor([i]))
    assert Event.made == ["cpu"] * 4
    assert list(arrivals.ready()) == []
    Event.arrived = 2
    assert [(int(i), float(v["prob"]), int(y)) for i, v, y in arrivals.ready()] == [
        (0, 0.0, 0),
        (1, pytest.approx(0.1), 1),
    ]
    assert len(arrivals) == 2
    assert [int(i) for i, _, _ in arrivals.all()] == [2, 3]
    assert Event.arrived == 4
    assert len(arrivals) == 0


def test_one_copy_moves_every_value_of_a_batch_bit_for_bit():
    """Packing must not round: NaN, subnormal and infinite values, labels beyond 2**24."""
    values = {
        "prob": torch.tensor([0.1, math.nan, 1e-42]),
        "aum": torch.tensor([-0.0, math.inf, -3.5]),
        "tdds": torch.randn(3, 4).T.contiguous().T,
    }
    label = torch.tensor([2**24 + 1, -100, 2**40])
    packed = pack(values, label)
    assert packed.shape == (3 + 3 + 12 + 3,)
    back, labels = unpack(packed, {name: v.shape for name, v in values.items()}, labelled=True)
    for name, value in values.items():
        assert torch.equal(back[name].view(torch.int32), value.contiguous().view(torch.int32))
    assert labels.tolist() == [2**24 + 1, -100, 2**31 - 1]
    assert unpack(pack(values, None), {n: v.shape for n, v in values.items()}, False)[1] is None


def test_labels_that_arrive_late_are_checked_before_they_count():
    """Labels on a device are checked when they are on the host, at the latest in end_epoch."""
    tracker = DualTracker(3, epochs=2, window=2)
    tracker._store.set_classes(2)

    class Waiting(Arrivals):
        def all(self):
            yield torch.tensor([1]), {"prob": torch.tensor([0.5])}, torch.tensor([7])

    tracker._arrivals = Waiting()
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\), got 7 to 7"):
        tracker.end_epoch()
