"""What is recorded where targets are no classes."""

import math

import numpy as np
import pytest
import torch

from data_prune import DualTracker
from reference import dual as naive


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
    assert tracker.coverage()["unlabelled"] == 1


def test_large_vocabulary_is_read_in_pieces_with_the_same_result(monkeypatch):
    """A (batch, length, 128k) tensor is never widened whole."""
    from data_prune.record import observe

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


@pytest.mark.parametrize("unknown", [-1.0, math.nan])
def test_unknown_labels_do_not_count(unknown):
    """Half-labelled data is ordinary; a missing label was once taken for a positive one."""
    z = torch.tensor([[1.0, -2.0, 0.5], [3.0, 3.0, 3.0]])
    y = torch.tensor([[1.0, unknown, 0.0], [unknown] * 3])
    tracker = DualTracker(2, epochs=2, window=2, task="multilabel")
    row = recorded(tracker, [0, 1], z, y)
    p = 1 / (1 + np.exp(-z[0].numpy().astype(float)))
    assert row[0] == pytest.approx((p[0] * (1 - p[2])) ** 0.5, rel=1e-6)
    assert np.isnan(row[1])
    coverage = tracker.coverage()
    assert (coverage["unlabelled"], coverage["nonfinite"]) == (1, 0)


@pytest.mark.parametrize("value", [0.9, 2.0, -0.5, math.inf])
def test_targets_that_are_no_labels_are_refused(value):
    """Smoothed labels and counts have no probability."""
    tracker = DualTracker(1, epochs=2, window=2, task="multilabel")
    with pytest.raises(ValueError, match="must be 0 or 1, and -1 or NaN where unknown, got"):
        tracker.update([0], torch.zeros(1, 3), torch.tensor([[0.0, value, 1.0]]))
    assert not tracker.recording


def test_a_sequence_without_labels_blocks_nothing():
    """It was called a diverged run, and no selection was possible any more."""
    tracker = DualTracker(8, epochs=2, window=2, task="tokens")
    labels = torch.randint(0, 5, (8, 6))
    labels[3] = -100
    for _ in range(2):
        tracker.update(range(8), torch.randn(8, 6, 5), labels)
        tracker.end_epoch()
    coverage = tracker.coverage()
    assert (coverage["unlabelled"], coverage["nonfinite"], coverage["never_seen"]) == (2, 0, 1)
    other = DualTracker(8, epochs=2, window=2, task="tokens")
    other.load_state_dict(tracker.state_dict())
    assert other.coverage() == coverage
    with pytest.warns(UserWarning, match="1 of 8 examples have no complete window"):
        kept = tracker.table().select(0.5)
    assert 3 not in kept
