"""A recording goes on from its state, and from no other."""

import pickle

import numpy as np
import pytest
import torch

from data_prune import DualTracker
from prune.recordings import PEERS, logits_and_labels, record, shuffled


def test_state_survives_the_middle_of_an_epoch(tmp_path):
    """A killed run goes on from its checkpoint to bit-identical scores."""
    z, y = logits_and_labels(T=5, N=20, seed=2)
    batches = [shuffled(20, 6, t) for t in range(5)]
    batches[3].insert(1, batches[3][0])  # repeats are part of the state as well
    whole = record(DualTracker(20, epochs=5, window=3, peers="all"), z, y, batches)
    first = DualTracker(20, epochs=5, window=3, peers="all")
    steps = [(t, b) for t, epoch in enumerate(batches) for b in epoch]
    cut = sum(len(b) for b in batches[:3]) + 3
    tracker = first
    for n, (t, index) in enumerate(steps):
        if n == cut:
            torch.save(tracker.state_dict(), tmp_path / "t.pt")
            tracker = DualTracker(20, epochs=5, window=3, peers="all")
            tracker.load_state_dict(torch.load(tmp_path / "t.pt", weights_only=True))
        tracker.update(index, z[t, index], y[index])
        if n + 1 == len(steps) or steps[n + 1][0] != t:
            tracker.end_epoch()
    resumed = tracker.table()
    for name in ("score", "mean_prob", "label", "observed"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))
    for name in PEERS:
        np.testing.assert_array_equal(resumed.peers[name], whole.peers[name])
    with pytest.raises(ValueError, match="num_examples = 20, this tracker has 21"):
        DualTracker(21, epochs=5, window=3, peers="all").load_state_dict(first.state_dict())


def test_state_passes_through_pickle_and_torch_alike():
    """Workers and data loaders send states by pickle, checkpoints by torch.save."""
    tracker = DualTracker(6, epochs=300, window=2, peers=("forgetting", "el2n"))
    for _ in range(2):
        tracker.update(torch.arange(6), torch.randn(6, 3), torch.arange(6) % 3)
        tracker.end_epoch()
    tracker.update(torch.arange(4), torch.randn(4, 3), torch.arange(4) % 3)
    state = pickle.loads(pickle.dumps(tracker.state_dict()))
    other = DualTracker(6, epochs=300, window=2, peers=("forgetting", "el2n"))
    other.load_state_dict(state)
    assert any(a.dtype == np.uint16 for a in other._store.arrays.values())
    for name, array in tracker._store.arrays.items():
        np.testing.assert_array_equal(other._store.arrays[name], array)


def test_state_of_an_earlier_format_is_refused():
    """A checkpoint whose ring means something else must not be read as probabilities."""
    tracker = DualTracker(4, epochs=6, window=3)
    tracker.update_probability([0], [0.5])
    with pytest.raises(ValueError, match="state has version 1, known is 3"):
        tracker.load_state_dict({**tracker.state_dict(), "version": 1})


def test_changed_epoch_count_after_a_resume_is_refused():
    """A window that bridges two differently configured runs would mean nothing."""
    tracker = DualTracker(4, epochs=6, window=3)
    tracker.update_probability([0], [0.5])
    state = tracker.state_dict()
    with pytest.raises(ValueError, match="epochs = 6, this tracker has 8"):
        DualTracker(4, epochs=8, window=3).load_state_dict(state)
    with pytest.raises(ValueError, match="task = 'classification', this tracker has 'tokens'"):
        DualTracker(4, epochs=6, window=3, task="tokens").load_state_dict(state)
    other = DualTracker(4, epochs=6, window=3)
    other.load_state_dict(state)
    assert other.recording
