"""Examples known by their keys."""

import math

import numpy as np
import pytest

from data_prune import KeyedTracker
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
