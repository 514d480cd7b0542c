"""Examples known by their keys."""

import math

import numpy as np
import pytest
import torch

from data_prune import KeyedTracker, ScoreTable
from reference import dual as naive


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
        (["\ud800"], ValueError, "text that UTF-8 can hold"),
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


def test_every_inherited_method_speaks_of_the_keys_seen(tmp_path):
    """to_parquet once wrote the room that was made: 4,096 rows keyed 0, 1, 2."""
    tracker = KeyedTracker(epochs=2, window=2, peers=("aum",))
    assert tracker.num_examples == 0
    assert tracker.coverage()["examples"] == 0
    keys = [f"cat/{i}.jpg" for i in range(10)]
    for _ in range(2):
        tracker.update(keys, torch.randn(10, 3), torch.arange(10) % 3)
        tracker.end_epoch()
    assert tracker.num_examples == 10
    tracker.to_parquet(tmp_path / "s.parquet")
    stored, table = ScoreTable.from_parquet(tmp_path / "s.parquet"), tracker.table()
    assert stored.key.tolist() == table.key.tolist() == keys
    assert stored.digest() == table.digest()
    assert stored.meta == table.meta
    coverage = tracker.coverage()
    assert (coverage["examples"], coverage["seen_in_every_epoch"]) == (10, 10)
    assert (coverage["never_seen"], coverage["unscored"]) == (0, 0)
    with pytest.raises(ValueError, match="storage needs positions"):
        KeyedTracker(epochs=2, window=2, storage=tmp_path / "x")


def test_keys_of_a_refused_batch_are_not_known():
    """A key that no batch has brought must not be an example without a score."""
    tracker = KeyedTracker(epochs=2, window=2)
    tracker.update(["a", "b"], torch.randn(2, 3), torch.tensor([0, 1]))
    for keys, labels in ((["c", "d"], [0, 3]), (["c", "a"], [0, 2]), (["e", "e"], [0, 1])):
        with pytest.raises(ValueError, match="label"):
            tracker.update(keys, torch.randn(2, 3), torch.tensor(labels))
    with pytest.raises(ValueError, match=r"prob must be in \[0, 1\]"):
        tracker.update_probability(["f"], [1.5])
    assert tracker.state_dict()["keys"] == ["a", "b"]
    assert tracker.coverage()["examples"] == 2


@pytest.mark.parametrize("length", [20, 4000])
def test_one_long_key_takes_its_own_length_only(length):
    """In an array of fixed width it would take that length for every example."""
    tracker = KeyedTracker(epochs=2, window=2)
    keys = [f"{i:05d}" for i in range(3000)]
    keys[7] = "x" * length
    for _ in range(2):
        tracker.update_probability(keys, np.full(len(keys), 0.5))
        tracker.end_epoch()
    table = tracker.table()
    assert table.key.nbytes <= 8 * len(keys)
    assert table.key.tolist() == keys
    assert len(table.select(0.5)) == 1500


def test_keys_may_be_numpy_values():
    """Arrays and lists of array elements name the same examples."""
    tracker = KeyedTracker(epochs=2, window=2)
    tracker.update_probability([np.str_("a"), "b"], [0.1, 0.2])
    tracker.update_probability(np.array(["a", "b"]), [0.1, 0.2])
    assert [type(key) for key in tracker.state_dict()["keys"]] == [str, str]
    numbers = KeyedTracker(epochs=2, window=2)
    numbers.update_probability([np.int64(3), 2**63], [0.1, 0.2])
    assert numbers.state_dict()["keys"] == [3, 2**63]
