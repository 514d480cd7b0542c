"""Scores recorded from a training loop equal the definition, whatever the loop does to the data."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prune import DualTracker
from data_prune.score import scores
from prune.recordings import logits_and_labels, probabilities, record, shuffled
from reference import dual as naive


@given(st.integers(1, 40), st.integers(0, 10_000), st.integers(2, 7))
@settings(max_examples=25, derandomize=True, deadline=None)
def test_score_equals_the_double_loop_in_any_order_of_batches(size, seed, window):
    """A wrong window, divisor or order dependence would rank the user's examples wrongly."""
    z, y = logits_and_labels(seed=seed)
    tracker = DualTracker(40, epochs=7, window=window)
    table = record(tracker, z, y, [shuffled(40, size, seed + t) for t in range(7)])
    p = probabilities(z, y)
    np.testing.assert_allclose(table.score, naive.dual(p, window), atol=1e-6, rtol=0)
    np.testing.assert_allclose(table.mean_prob, naive.mean_over_epochs(p), atol=1e-6, rtol=0)
    assert table.label.tolist() == y.tolist()
    assert set(table.observed.tolist()) == {7}


def test_hand_value_when_the_window_is_the_whole_run():
    """T == J leaves one window: (1 - 0.4) * std(0.2, 0.4, 0.6) = 0.6 * 0.2."""
    tracker = DualTracker(1, epochs=3, window=3)
    for p in (0.2, 0.4, 0.6):
        tracker.update_probability([0], [p])
        tracker.end_epoch()
    assert tracker.table().score[0] == pytest.approx(0.12, abs=1e-7)


def test_duplicates_count_with_their_mean_and_missing_epochs_break_windows():
    """DDP padding must not sum logits, and drop_last must not invent a probability."""
    z, y = logits_and_labels(T=6, N=8)
    batches = [[list(range(8))] for _ in range(6)]
    batches[2] = [[0, 1, 1, 2, 3], [1, 4, 5, 6, 3]]  # 1 three times, 3 twice, 7 missing
    history = np.array(probabilities(z, y))
    history[2, 7] = math.nan
    table = record(tracker := DualTracker(8, epochs=6, window=2), z, y, batches)
    np.testing.assert_allclose(table.score, naive.dual(history, 2), atol=1e-6)
    assert table.observed.tolist() == [6] * 7 + [5]
    coverage = tracker.coverage()
    assert coverage["duplicates"] == 3
    assert coverage["missing_per_epoch"] == [0, 0, 1, 0, 0, 0]
    assert (coverage["seen_in_every_epoch"], coverage["unscored"]) == (7, 0)


def test_repeated_augmentation_counts_with_the_mean_of_its_probabilities():
    """Two views of one example in one epoch: the mean probability, not the last one."""
    tracker = DualTracker(2, epochs=2, window=2)
    tracker.update_probability([0, 0, 1], [0.2, 0.6, 0.5])
    tracker.end_epoch()
    tracker.update_probability([0, 1], [0.8, 0.5])
    tracker.update_probability([0], [0.4])
    tracker.end_epoch()
    expected = naive.dual([[0.4, 0.5], [0.6, 0.5]], 2)
    np.testing.assert_allclose(tracker.table().score, expected, atol=1e-7)


def test_example_without_a_complete_window_is_unscored_not_guessed():
    """A never-seen example must not receive a score made of nothing."""
    tracker = DualTracker(3, epochs=2, window=2)
    for _ in range(2):
        tracker.update_probability([0, 1], [0.3, 0.4])
        tracker.end_epoch()
    table = tracker.table()
    assert np.isnan(table.score).tolist() == [False, False, True]
    assert np.isnan(table.mean_prob[2])
    assert tracker.coverage()["never_seen"] == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_diverged_logits_are_counted_and_refused_at_selection(bad):
    """A NaN must not become the most important example of the data set."""
    z, y = logits_and_labels(T=3, N=8)
    z[1, 5, 0] = bad
    tracker = DualTracker(8, epochs=3, window=2)
    table = record(tracker, z, y, [[list(range(8))]] * 3)
    assert tracker.coverage()["nonfinite"] == 1
    assert tracker.coverage()["nonfinite_examples"] == [5]
    with pytest.raises(ValueError, match=r"1 observations had NaN or infinite logits.*\[5\]"):
        table.select(0.5)
    with pytest.warns(UserWarning, match="1 of 8 examples have no complete window"):
        assert 5 not in table.select(0.5, method="beta", ignore_nonfinite=True)


def test_masked_classes_are_no_divergence():
    """Minus infinity on classes that cannot occur is ordinary; on the label it is not."""
    tracker = DualTracker(2, epochs=2, window=2)
    z = torch.tensor([[0.0, -math.inf, 0.0], [-math.inf, 0.0, 0.0]])
    tracker.update([0, 1], z, torch.tensor([0, 0]))
    assert tracker.coverage()["nonfinite"] == 1
    tracker.end_epoch()


def test_saturated_windows_have_no_negative_variance():
    """E[p^2] - E[p]^2 in float32 is negative for many learned examples and gives NaN scores."""
    rng = np.random.default_rng(0)
    p = np.float32(1) - rng.uniform(0, 1e-4, (10, 5000)).astype(np.float32)
    assert np.isfinite(scores.dual_score(p, 10)).all()
    np.testing.assert_allclose(scores.dual_score(p[:, :50], 10), naive.dual(p[:, :50], 10), 1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_widened_first(dtype):
    """Under autocast the logits are 16-bit; a softmax in them would merge all easy examples."""
    z = torch.tensor([[8.0, 0.0], [9.0, 0.0]]).to(dtype)
    tracker = DualTracker(2, epochs=2, window=2)
    tracker.update([0, 1], z, torch.zeros(2, dtype=torch.int64))
    p = tracker._store.rows()["prob"]
    np.testing.assert_allclose(p, [naive.softmax([8, 0])[0], naive.softmax([9, 0])[0]], rtol=1e-6)
    assert p[0] != p[1]


def test_recording_leaves_graph_logits_and_random_state_alone():
    """Recording is a look at the user's forward pass, not a part of it."""
    z = torch.randn(4, 3, requires_grad=True)
    before, state = z.detach().clone(), torch.get_rng_state()
    tracker = DualTracker(4, epochs=2, window=2, peers="el2n")
    out = z * 2
    tracker.update(torch.arange(4), out, torch.tensor([0, 1, 2, 0]))
    out.sum().backward()
    assert torch.equal(z.detach(), before)
    assert torch.equal(z.grad, torch.full_like(z, 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_after_the_last_epoch_updates_do_nothing():
    """The call may stay in the loop for the rest of training."""
    tracker = DualTracker(2, epochs=2, window=2)
    for p in (0.1, 0.2, 0.9):
        tracker.update_probability([0, 1], [p, p])
        tracker.end_epoch()
    np.testing.assert_allclose(tracker.table().mean_prob, [0.15, 0.15], atol=1e-7)


def arrays_size(num_examples, epochs=60):
    """Bytes of a tracker at J = 10 with 1,000 classes."""
    tracker = DualTracker(num_examples, epochs=epochs, window=10)
    tracker.update([0], torch.zeros(1, 1000), torch.tensor([0]))
    return sum(array.nbytes for array in tracker._store.arrays.values())


def test_imagenet_fits_into_64_megabytes():
    """The promise of the ring: 64e6 bytes for 1,281,167 examples, epochs beyond 255 included."""
    assert arrays_size(1_281_167) <= 64e6
    assert arrays_size(10_000, epochs=60_000) * 1_281_167 / 10_000 <= 64e6


def test_counts_of_more_than_255_epochs_do_not_wrap_around():
    """One byte holds the counts of a short recording; a long one must get two."""
    tracker = DualTracker(2, epochs=300, window=2)
    for epoch in range(300):
        tracker.update_probability([0, 1], [0.25, 0.25 + 0.5 * (epoch % 2)])
        tracker.end_epoch()
    table = tracker.table()
    assert table.observed.tolist() == [300, 300]
    np.testing.assert_allclose(table.mean_prob, [0.25, 0.5], atol=1e-6)
    np.testing.assert_allclose(table.score, [0.0, 0.5 * 0.5 / math.sqrt(2)], atol=1e-6)


@given(st.integers(0, 10_000))
@settings(max_examples=25, derandomize=True, deadline=None)
def test_ring_equals_the_full_history_also_at_the_ends_of_the_interval(seed):
    """Three bytes a value must not move a score by more than 1e-6, nor turn 0 or 1 into less."""
    rng = np.random.default_rng(seed)
    history = rng.choice([0.0, 1.0, 1e-9, 1 - 6e-8, 0.5], (12, 60)).astype(np.float32)
    history[:, :40] = rng.beta(0.05, 0.05, (12, 40))
    history[rng.uniform(size=history.shape) < 0.02] = math.nan
    history[:, 1] = 1.0
    tracker = DualTracker(60, epochs=12, window=10)
    for row in history:
        seen = np.flatnonzero(~np.isnan(row))
        tracker.update_probability(seen, row[seen])
        tracker.end_epoch()
    table = tracker.table()
    np.testing.assert_allclose(table.score, scores.dual_score(history, 10), atol=1e-6, rtol=0)
    assert (table.score[1], table.mean_prob[1]) == (0.0, 1.0)


def test_one_possible_class_gives_zero_scores_and_a_clear_warning():
    """Where one class alone can occur every probability is 1: nothing is difficult."""
    tracker = DualTracker(20, epochs=2, window=2)
    for _ in range(2):
        logits = torch.tensor([[0.3, -math.inf]]).expand(20, 2)
        tracker.update(torch.arange(20), logits, torch.zeros(20, dtype=torch.int64))
        tracker.end_epoch()
    table = tracker.table()
    assert table.score.tolist() == [0.0] * 20
    with pytest.warns(UserWarning, match="nothing is difficult any more"):
        assert len(table.select(0.5)) == 10


def test_probabilities_near_one_stay_apart():
    """In 16-bit probabilities tens of thousands of learned examples collapse to one score."""
    p = 1 - np.linspace(1e-6, 1e-4, 500).astype(np.float32)
    tracker = DualTracker(500, epochs=2, window=2)
    for shift in (0, 1):
        tracker.update_probability(np.arange(500), np.roll(p, shift))
        tracker.end_epoch()
    assert len(set(tracker.table().mean_prob.tolist())) > 400
