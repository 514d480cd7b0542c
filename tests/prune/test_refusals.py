"""What a tracker refuses, and that nothing has changed then."""

import pytest
import torch

from data_prune import DualTracker


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


def test_refused_batches_count_for_nothing():
    """A loader that was shuffled: every batch is refused, and the epoch must not close."""
    tracker = DualTracker(4, epochs=3, window=2)
    index, logits, labels = torch.arange(4), torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    tracker.update(index, logits, labels)
    tracker.end_epoch()
    for wrong in (1 - labels, torch.tensor([0, 1, 0, 0])):
        with pytest.raises(ValueError, match="was recorded with label"):
            tracker.update(index, logits, wrong)
    with pytest.raises(ValueError, match="3 classes, but 2"):
        tracker.update(index, torch.randn(4, 3), labels)
    assert not tracker.recording
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        tracker.end_epoch()
    assert tracker.epoch == 1


@pytest.mark.parametrize("probabilities", [False, True])
def test_two_labels_for_one_example_in_one_batch_are_refused(probabilities):
    """Whichever came last would be taken for the truth."""
    tracker, labels = DualTracker(2, epochs=2, window=2), torch.tensor([0, 1, 0])
    values = ([0.5, 0.5, 0.5],) if probabilities else (torch.randn(3, 2),)
    credit = tracker.update_probability if probabilities else tracker.update
    with pytest.raises(ValueError, match="example 0 comes with the labels 0 and 1 in one batch"):
        credit([0, 0, 1], *values, labels)
    assert not tracker.recording
    tracker.update([0, 0, 1], torch.randn(3, 2), torch.tensor([1, 1, 0]))
    assert tracker.recording


@pytest.mark.parametrize(
    ("label", "error", "message"),
    [
        ([0.5, 1.0], TypeError, "label must hold integers"),
        ([0], ValueError, r"label has shape \(1,\), index \(2,\)"),
        ([0, -2], ValueError, r"label must be in \[-1, 2\*\*31\), got -2 to 0"),
        ([0, 2**31], ValueError, "label must be in"),
    ],
)
def test_labels_beside_probabilities_are_checked(label, error, message):
    """A label that is rounded or broadcast would belong to another class."""
    tracker = DualTracker(2, epochs=2, window=2)
    with pytest.raises(error, match=message):
        tracker.update_probability([0, 1], [0.5, 0.5], label)
    assert not tracker.recording
