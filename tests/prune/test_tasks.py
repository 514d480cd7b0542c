"""What is recorded where targets are no classes."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from data_prune import DualScoreSampler, DualTracker, KeyedTracker
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
    from data_prune.record import batch

    z, y = torch.randn(50, 11), torch.randint(11, (50,))
    whole = batch.target_log_prob(z, y)
    monkeypatch.setattr(batch, "CHUNK_ELEMENTS", 33)
    assert torch.equal(batch.target_log_prob(z, y), whole)


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
        ("regression", torch.zeros(1, 3, 2), torch.zeros(1, 2, 3), "prediction has shape"),
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


def test_an_empty_batch_of_a_regression_counts_for_nothing():
    """A rank's last batch may be empty."""
    tracker = DualTracker(3, epochs=2, window=2, task="regression")
    tracker.update([], torch.zeros(0, 1), torch.zeros(0))
    assert tracker.coverage()["never_seen"] == 3


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


def mean_pixel_probability(z, y, ignored):
    """Geometric mean over pixels, one softmax at a time in float64."""
    out = []
    for example, labels in zip(z.double(), y, strict=True):
        pixels = example.flatten(1).T.tolist()
        logs = [
            math.log(naive.softmax(pixel)[label])
            for pixel, label in zip(pixels, labels.flatten().tolist(), strict=True)
            if label != ignored
        ]
        out.append(math.exp(sum(logs) / len(logs)) if logs else math.nan)
    return out


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_segmentation_takes_what_cross_entropy_takes(layout, monkeypatch):
    """(B, C, H, W) and (B, H, W) with 255 at the borders, whole or in pieces."""
    z = torch.randn(3, 5, 4, 6).contiguous(memory_format=layout)
    y = torch.randint(5, (3, 4, 6))
    y[0, :2], y[2] = 255, 255
    expected = mean_pixel_probability(z, y, 255)
    for chunk in (1 << 22, 40):
        monkeypatch.setattr("data_prune.record.observe.CHUNK_ELEMENTS", chunk)
        tracker = DualTracker(3, epochs=2, window=2, task="segmentation", ignore_index=255)
        np.testing.assert_allclose(recorded(tracker, [0, 1, 2], z, y), expected, rtol=1e-5)
    assert tracker.coverage()["unlabelled"] == 1
    with pytest.raises(
        ValueError, match=r"labels must be in \[0, 5\), got 5 to 5 \(255 is ignored"
    ):
        tracker.update([0], z[:1], torch.full((1, 4, 6), 5))


@pytest.mark.parametrize("channel", [True, False])
@pytest.mark.parametrize("kind", [torch.float32, torch.int64, torch.bool])
def test_a_binary_mask_takes_one_logit_a_pixel(channel, kind):
    """The shapes of binary_cross_entropy_with_logits, with the channel or without."""
    z, y = torch.randn(2, 1, 3, 3), torch.randint(2, (2, 1, 3, 3))
    expected = torch.exp(
        -functional.binary_cross_entropy_with_logits(z, y.float(), reduction="none")
    )
    expected = expected.flatten(1).log().mean(1).exp()
    target = (y if channel else y[:, 0]).to(kind)
    row = recorded(DualTracker(2, epochs=2, window=2, task="segmentation"), [0, 1], z, target)
    np.testing.assert_allclose(row, expected, rtol=1e-5)
    if channel and kind == torch.float32:
        row = recorded(DualTracker(2, epochs=2, window=2, task="multilabel"), [0, 1], z, target)
        np.testing.assert_allclose(row, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize("kind", [torch.float32, torch.int64, torch.bool])
def test_one_logit_is_the_second_class_of_two(shape, kind):
    """Binary classifiers have one logit; their labels are classes, for quotas and for peers."""
    z, y = torch.tensor([2.0, -1.0, 0.3, 0.0]), torch.tensor([1, 1, 0, 0])
    tracker = DualTracker(4, epochs=2, window=2, peers=("aum",))
    row = recorded(tracker, range(4), z.reshape(shape), y.to(kind).reshape(shape))
    expected = torch.sigmoid(torch.where(y == 1, z, -z))
    np.testing.assert_allclose(row, expected, rtol=1e-6)
    np.testing.assert_allclose(tracker._store.rows()["aum"], torch.where(y == 1, z, -z))
    assert tracker._store.arrays["label"].tolist() == y.tolist()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.tensor([0.0, 0.9]), "binary targets must be 0 or 1, got 0.9"),
        (torch.tensor([0, 2]), r"labels must be in \[0, 2\), got 0 to 2"),
        (torch.zeros(2, 3), r"take a target \(B,\) or \(B, 1\), got \(2, 3\)"),
    ],
)
def test_what_is_no_binary_label_is_refused(target, message):
    """Smoothed labels have no probability, and a third class has no logit."""
    tracker = DualTracker(2, epochs=2, window=2)
    with pytest.raises(ValueError, match=message):
        tracker.update([0, 1], torch.zeros(2, 1), target)
    assert not tracker.recording


def test_examples_without_a_class_are_not_seen():
    """Cross entropy leaves them out by the same number; half-labelled data was refused whole."""
    for ignored in (-100, 7):
        tracker = DualTracker(3, epochs=2, window=2, peers=("el2n", "aum"), ignore_index=ignored)
        for _ in range(2):
            tracker.update(range(3), torch.zeros(3, 4), torch.tensor([2, ignored, 0]))
            tracker.end_epoch()
        table, coverage = tracker.table(), tracker.coverage()
        assert table.label.tolist() == [2, -1, 0]
        np.testing.assert_allclose(table.mean_prob, [0.25, np.nan, 0.25])
        assert np.isnan(table.peers["el2n"]).tolist() == [False, True, False]
        assert (coverage["unlabelled"], coverage["nonfinite"]) == (2, 0)
        with pytest.warns(UserWarning, match="1 of 3 examples have no complete window"):
            assert table.select(0.4).tolist() == [0, 2]
    tracker = DualTracker(3, epochs=2, window=2)  # a label that is masked at times
    for labels in ([2, -100, 0], [-100, 1, 0]):
        tracker.update(range(3), torch.zeros(3, 4), torch.tensor(labels))
        tracker.end_epoch()
    assert tracker.table().label.tolist() == [2, 1, 0]
    with pytest.raises(ValueError, match=r"in \[0, 4\), got -1 to 2 \(-100 is ignored: ignore_ind"):
        DualTracker(2, epochs=2, window=2).update([0, 1], torch.zeros(2, 4), torch.tensor([2, -1]))


def test_unknown_targets_of_a_regression_do_not_count():
    """Several measurements of which some were not taken; the run was called diverged."""
    nan = math.nan
    target = torch.tensor([[1.0, nan], [nan, nan], [0.0, 2.0]])
    tracker = DualTracker(3, epochs=2, window=2, task="regression", loss_scale=1.0)
    row = recorded(tracker, range(3), torch.tensor([[2.0, 9.0], [0.0, 0.0], [0.0, 0.0]]), target)
    np.testing.assert_allclose(row, [1.0, nan, 2.0])  # of losses, until the epoch closes
    coverage = tracker.coverage()
    assert (coverage["unlabelled"], coverage["nonfinite"]) == (1, 0)
    diverged = DualTracker(3, epochs=2, window=2, task="regression")
    diverged.update(range(3), torch.full((3, 2), nan), target)
    assert diverged.coverage()["nonfinite"] == 2


def test_losses_that_are_mostly_zero_have_a_scale():
    """Hinges and triplets: by a median of 0 every loss above it would be an outlier."""
    tracker = DualTracker(5, epochs=2, window=2, task="loss")
    for top in (4.0, 1e38):
        tracker.update(range(5), loss=torch.tensor([0.0, 0.0, 0.0, 2.0, top]))
        tracker.end_epoch()
    assert tracker.loss_scale == 3.0
    np.testing.assert_allclose(tracker.table().mean_prob[:3], 1.0)
    assert tracker.table().mean_prob[3] == pytest.approx(math.exp(-2 / 3), abs=1e-6)
    nothing = DualTracker(2, epochs=3, window=2, task="loss")
    for loss in (math.nan, 0.0, 0.0):
        nothing.update(range(2), loss=torch.full((2,), loss))
        nothing.end_epoch()
    np.testing.assert_array_equal(nothing.table(min_epochs=3).mean_prob, [1.0, 1.0])


def test_positions_that_are_no_numbers_are_refused_by_name():
    """And the empty rest of a batch is no error."""
    tracker = DualTracker(2, epochs=2, window=2)
    with pytest.raises(TypeError, match="positions of the examples, integers, got list: KeyedTr"):
        tracker.update(["a", "b"], torch.zeros(2, 3), torch.zeros(2).long())
    tracker.update([], torch.zeros(0, 3), torch.zeros(0).long())
    assert tracker.coverage()["never_seen"] == 2


def test_a_causal_model_predicts_the_next_token():
    """Logits and labels as a language model has them; the prompt is masked, one answer is empty."""
    z, y = torch.randn(3, 6, 9), torch.randint(9, (3, 6))
    y[0, :3], y[1] = -100, -100
    shifted = DualTracker(3, epochs=2, window=2, task="tokens", shift=True)
    row = recorded(shifted, range(3), z, y)
    loss = functional.cross_entropy(z[:, :-1].transpose(1, 2), y[:, 1:], reduction="none")
    count = (y[:, 1:] != -100).sum(1)
    np.testing.assert_allclose(row[[0, 2]], torch.exp(-loss.sum(1) / count)[[0, 2]], rtol=1e-5)
    assert np.isnan(row[1])
    assert shifted.coverage()["unlabelled"] == 1
    aligned = DualTracker(3, epochs=2, window=2, task="tokens")
    np.testing.assert_array_equal(recorded(aligned, range(3), z[:, :-1], y[:, 1:]), row)
    with pytest.raises(
        ValueError, match="shift is for task 'tokens', got shift=True and task 'mul"
    ):
        DualTracker(3, epochs=2, window=2, task="multilabel", shift=True)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 9\), got 9 to 9"):
        aligned.update([0], z[:1], torch.full((1, 6), 9))


def test_a_negative_log_likelihood_gives_the_score_of_its_logits():
    """`record(loss=...)` is for who has the loss and not the logits: nothing else may differ."""
    a, b = (DualTracker(8, epochs=3, window=2) for _ in range(2))
    for _ in range(3):
        z, y = torch.randn(8, 4), torch.arange(8) % 4
        a.update(range(8), z, y)
        b.update(range(8), loss=functional.cross_entropy(z, y, reduction="none"), label=y)
        a.end_epoch()
        b.end_epoch()
    np.testing.assert_allclose(a.table().score, b.table().score, atol=1e-6)
    assert b.table().label.tolist() == a.table().label.tolist()


def test_any_loss_has_a_probability_by_its_median():
    """Monotone, in (0, 1], without a unit: squared errors, or a thousand times as much."""
    one = DualTracker(3, epochs=2, window=2, task="regression")
    other = DualTracker(3, epochs=2, window=2, task="loss")
    given = DualTracker(3, epochs=2, window=2, task="loss", loss_scale=4000.0)
    for errors in ([1.0, 2.0, 3.0], [0.5, 1.0, 1.5]):
        losses = torch.tensor(errors).square()
        one.update(range(3), torch.tensor(errors), torch.zeros(3))
        for tracker in (other, given):
            tracker.update(range(3), loss=1000 * losses)
        for tracker in (one, other, given):
            tracker.end_epoch()
    for tracker in (other, given):
        np.testing.assert_allclose(tracker.table().score, one.table().score, rtol=1e-5)
        assert tracker.table().meta["loss_scale"] == 4000.0
    resumed = DualTracker(3, epochs=2, window=2, task="loss")
    resumed.load_state_dict(other.state_dict())
    assert resumed.loss_scale == 4000.0
    for wrong in (0.0, math.inf, True):
        with pytest.raises(ValueError, match="loss_scale must be positive and finite, got"):
            DualTracker(3, epochs=2, window=2, task="loss", loss_scale=wrong)
    with pytest.raises(ValueError, match=r"loss_scale is for tasks .*, got 2.0 and task 'tokens'"):
        DualTracker(3, epochs=2, window=2, task="tokens", loss_scale=2.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": torch.tensor(0.3)}, r"one value for each of the 2 examples, got shape \(\)"),
        ({"loss": torch.zeros(2, 5)}, r"reduction='none', averaged over all axes but the first"),
        ({"loss": torch.tensor([0.1, -3.5])}, "loss must be at least 0, got -3.5"),
        (
            {"loss": torch.zeros(2), "prob": [0.1, 0.2]},
            r"one of logits, loss and prob, got \['loss",
        ),
        ({}, r"takes one of logits, loss and prob, got \[\]"),
        (
            {"logits": torch.zeros(2, 3), "target": torch.zeros(2)},
            "takes one loss for each example",
        ),
        ({"prob": [0.1, 0.2]}, "task 'loss' takes losses, got prob"),
    ],
)
def test_what_is_no_loss_of_each_example_is_refused(values, message):
    """A mean over the batch would give all its examples one probability."""
    tracker = DualTracker(2, epochs=2, window=2, task="loss")
    with pytest.raises(ValueError, match=message):
        tracker.update([0, 1], **values)
    assert not tracker.recording


def test_every_door_takes_a_loss():
    """The wrapped loader, the sampler of a framework, a stream with keys."""
    data = TensorDataset(torch.arange(6.0)[:, None])
    options = {"tracker_options": {"task": "loss"}, "score_epochs": 2, "window": 2}
    loader = DualScoreSampler.wrap(
        DataLoader(data, batch_size=3, shuffle=True), prune_ratio=0.5, **options
    )
    sampler = DualScoreSampler(data, 0.5, **options)
    keyed = KeyedTracker(epochs=2, window=2, task="loss")
    for scale in (1.0, 0.5):
        for (x,) in loader:
            loader.record(loss=scale * x[:, 0].square())
        losses = scale * torch.arange(6.0).square()
        sampler.update(range(6), loss=losses)
        sampler.close_epoch()
        keyed.update([f"k{i}" for i in range(6)], loss=losses)
        keyed.end_epoch()
    for table in (sampler.table, keyed.table()):
        np.testing.assert_allclose(table.score, loader.table.score, atol=1e-6)
    again = DualScoreSampler.wrap(DataLoader(data, batch_size=3), 0.5, shuffle=True, **options)
    next(iter(again))
    with pytest.raises(
        ValueError, match=r"record\(\) got 2 examples, the batch handed out last has 3"
    ):
        again.record(loss=torch.zeros(2))
