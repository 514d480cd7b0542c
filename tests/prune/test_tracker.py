"""Scores recorded from a training loop equal the definition, whatever the loop does to the data."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prune import DualTracker, scores
from reference import dual as naive

PEERS = ("dyn_unc", "el2n", "forgetting", "aum", "tdds")


def logits_and_labels(T=7, N=40, C=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(T, N, C, generator=g), torch.randint(C, (N,), generator=g)


def probabilities(z, y):
    return [[naive.softmax(row)[label] for row, label in zip(epoch, y, strict=True)] for epoch in z]


def record(tracker, z, y, batches):
    """batches[t] is a list of index lists."""
    for t, epoch in enumerate(batches):
        for index in epoch:
            tracker.update(index, z[t, index], y[index])
        tracker.end_epoch()
    return tracker.table()


def shuffled(N, size, seed):
    order = np.random.default_rng(seed).permutation(N)
    return [order[i : i + size].tolist() for i in range(0, N, size)]


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
        assert 5 not in table.select(0.5, ignore_nonfinite=True)


def test_masked_classes_are_no_divergence():
    """Minus infinity on classes that cannot occur is ordinary; on the label it is not."""
    tracker = DualTracker(2, epochs=2, window=2)
    z = torch.tensor([[0.0, -math.inf, 0.0], [-math.inf, 0.0, 0.0]])
    tracker.update([0, 1], z, torch.tensor([0, 0]))
    assert tracker.coverage()["nonfinite"] == 1
    tracker.end_epoch()


def test_peers_from_the_same_recording_equal_their_definitions():
    """Comparing methods on one run is worthless if a peer is another formula."""
    z, y = logits_and_labels(T=8, N=30, seed=3)
    batches = [shuffled(30, 7, t) for t in range(8)]
    for t, gone in ((2, 4), (5, 9)):
        batches[t] = [[i for i in b if i != gone] for b in batches[t]]
    tracker = DualTracker(30, epochs=8, window=4, peers="all")
    table = record(tracker, z, y, batches)
    log_p = z.double().log_softmax(-1).numpy()
    hot = np.eye(5)[y.numpy()]
    norms = np.linalg.norm(np.exp(log_p) - hot, axis=-1)
    others = np.where(hot[None] == 1, -np.inf, z.double().numpy()).max(-1)
    margins = (z.double().numpy() * hot).sum(-1) - others
    correct = (z.argmax(-1) == y).double().numpy()
    history = np.array(probabilities(z, y))
    for t, gone in ((2, 4), (5, 9)):
        for array in (norms, margins, correct, history, log_p):
            array[t, gone] = math.nan
    expected = {
        "dyn_unc": naive.dual(history, 4, uncertainty_only=True),
        "el2n": naive.mean_over_epochs(norms),
        "aum": naive.mean_over_epochs(margins),
        "forgetting": naive.forgetting(correct),
        "tdds": naive.tdds(log_p, 4),
    }
    full = {
        "dyn_unc": scores.dyn_unc(history, 4),
        "el2n": scores.el2n(norms),
        "aum": scores.aum(margins),
        "forgetting": scores.forgetting(correct),
        "tdds": scores.tdds(log_p, 4),
    }
    for name in PEERS:
        np.testing.assert_allclose(full[name], expected[name], atol=1e-12, err_msg=name)
        # TDDS divides tiny float32 log-probabilities' differences; the others are sums of ones.
        tolerance = 2e-5 if name == "tdds" else 2e-6
        np.testing.assert_allclose(table.peers[name], expected[name], atol=tolerance, err_msg=name)
    np.testing.assert_allclose(table.score, scores.dual_score(history, 4), atol=1e-6)


def test_never_learned_is_the_maximum_of_forgetting():
    """Released code of several papers gives these examples the score of the easiest ones."""
    assert scores.forgetting(np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])).tolist() == [3.0, 1.0]


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


@pytest.mark.parametrize(
    ("index", "logits", "target", "error", "message"),
    [
        ([0.0, 1.0], torch.zeros(2, 3), torch.tensor([0, 1]), TypeError, "index must hold integ"),
        ([0, 4], torch.zeros(2, 3), torch.tensor([0, 1]), ValueError, r"in \[0, 4\), got 0 to 4"),
        ([-1, 0], torch.zeros(2, 3), torch.tensor([0, 1]), ValueError, "got -1 to 0"),
        ([0], torch.zeros(2, 3), torch.tensor([0, 1]), ValueError, "batch has 1 examples"),
        ([0, 1], torch.zeros(2, 3), torch.tensor([0, 3]), ValueError, r"in \[0, 3\), got 0 to 3"),
        ([0, 1], torch.zeros(2, 3), torch.tensor([-1, 0]), ValueError, "got -1 to 0"),
        ([0, 1], torch.zeros(2, 3), torch.full((2, 3), 1 / 3), ValueError, "soft labels"),
        ([0, 1], torch.zeros(2, 3), torch.tensor([0.0, 1.0]), TypeError, "integer classes"),
        ([0, 1], torch.zeros(2, 3, 4), torch.tensor([0, 1]), ValueError, r"logits \(B, C\)"),
        ([0, 1], [[0.0], [1.0]], torch.tensor([0, 1]), TypeError, "logits must be a torch.Tensor"),
        ([[0], [1]], torch.zeros(2, 3), torch.tensor([0, 1]), ValueError, r"shape \(B,\)"),
    ],
)
def test_bad_batches_are_refused_before_anything_is_recorded(index, logits, target, error, message):
    """A silent wrap-around would credit another example."""
    tracker = DualTracker(4, epochs=2, window=2)
    with pytest.raises(error, match=message):
        tracker.update(index, logits, target)
    assert not tracker.recording


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"window": 11, "epochs": 10}, ValueError, "between 2 and epochs = 10, got 11"),
        ({"window": 1}, ValueError, "between 2 and epochs = 30, got 1"),
        ({"num_examples": 0}, ValueError, "num_examples must be at least 1, got 0"),
        ({"num_examples": 2.0}, TypeError, "num_examples must be an int, got 2.0"),
        ({"task": "detection"}, ValueError, "task must be one of"),
        ({"peers": ("grand",)}, ValueError, r"got \['grand'\]"),
        ({"peers": "aum", "task": "tokens"}, ValueError, "classification only"),
        ({"peers": "tdds", "epochs": 2, "window": 2}, ValueError, "at least 3 epochs"),
    ],
)
def test_bad_settings_are_refused(arguments, error, message):
    """Every bad number is named together with what is accepted."""
    with pytest.raises(error, match=message):
        DualTracker(**{"num_examples": 4, **arguments})


def test_too_few_epochs_and_empty_epochs_are_errors():
    """Scores of a shorter run than announced would be taken for the real ones."""
    tracker = DualTracker(2, epochs=4, window=2)
    with pytest.raises(RuntimeError, match=r"update\(\) was never called"):
        tracker.end_epoch()
    for _ in range(3):
        tracker.update_probability([0, 1], [0.2, 0.3])
        tracker.end_epoch()
    with pytest.raises(RuntimeError, match="needs 4 recorded epochs, 3 are closed"):
        tracker.table()
    assert len(tracker.table(min_epochs=3)) == 2


def test_another_label_for_the_same_example_is_an_error():
    """Indices that point into another data set (a Subset, a reshuffled copy) are found out."""
    tracker = DualTracker(3, epochs=2, window=2)
    tracker.update([0, 1, 2], torch.zeros(3, 4), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="example 1 was recorded with label 1 before and with 3"):
        tracker.update([2, 1], torch.zeros(2, 4), torch.tensor([2, 3]))
    with pytest.raises(ValueError, match="5 classes, but 4"):
        tracker.update([2], torch.zeros(1, 5), torch.tensor([2]))


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


def test_state_of_an_earlier_format_is_refused():
    """A checkpoint whose ring means something else must not be read as probabilities."""
    tracker = DualTracker(4, epochs=6, window=3)
    tracker.update_probability([0], [0.5])
    with pytest.raises(ValueError, match="state has version 1, known is 2"):
        tracker.load_state_dict({**tracker.state_dict(), "version": 1})


def test_one_class_gives_zero_scores_and_a_clear_warning():
    """With a single class every probability is 1: nothing is difficult, and it is said."""
    tracker = DualTracker(20, epochs=2, window=2)
    for _ in range(2):
        tracker.update(torch.arange(20), torch.randn(20, 1), torch.zeros(20, dtype=torch.int64))
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


def test_changed_epoch_count_after_a_resume_is_refused():
    """A window that bridges two differently configured runs would mean nothing."""
    tracker = DualTracker(4, epochs=6, window=3)
    tracker.update_probability([0], [0.5])
    state = tracker.state_dict()
    with pytest.raises(ValueError, match="epochs = 6, this tracker has 8"):
        DualTracker(4, epochs=8, window=3).load_state_dict(state)
    with pytest.raises(ValueError, match="task 'classification', this tracker 'tokens'"):
        DualTracker(4, epochs=6, window=3, task="tokens").load_state_dict(state)
    other = DualTracker(4, epochs=6, window=3)
    other.load_state_dict(state)
    assert other.recording
