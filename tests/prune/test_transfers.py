"""Values on their way from an accelerator are credited when they are there."""

import math
from typing import ClassVar

import pytest
import torch

from data_prune import DualTracker
from data_prune.record.observe import UNLABELLED
from data_prune.record.transfers import Transfers, pack, unpack


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
    transfers = Transfers()
    for i in range(4):
        transfers.send(torch.tensor([i]), {"prob": torch.tensor([i / 10])}, torch.tensor([i]))
    assert Event.made == ["cpu"] * 4
    assert list(transfers.ready()) == []
    Event.arrived = 2
    assert [(int(i), float(v["prob"]), int(y)) for i, v, y in transfers.ready()] == [
        (0, 0.0, 0),
        (1, pytest.approx(0.1), 1),
    ]
    assert len(transfers) == 2
    assert [int(i) for i, _, _ in transfers.all()] == [2, 3]
    assert Event.arrived == 4
    assert len(transfers) == 0


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


def test_a_label_that_does_not_count_arrives_late_as_well():
    """On a device its number is known when the values are on the host."""
    tracker = DualTracker(3, epochs=2, window=2)
    tracker._store.set_classes(2)
    values = {"prob": torch.tensor([0.5, UNLABELLED])}
    batch = torch.tensor([1, 2]), values, torch.tensor([1, -100])

    class Waiting(Transfers):
        def all(self):
            yield batch

    tracker._transfers = Waiting([None])
    tracker.end_epoch()
    assert tracker._store.arrays["label"].tolist() == [-1, 1, -1]
    assert tracker.coverage()["unlabelled"] == 1


def test_labels_that_arrive_late_are_checked_before_they_count():
    """Labels on a device are checked when they are on the host, at the latest in end_epoch."""
    tracker = DualTracker(3, epochs=2, window=2)
    tracker._store.set_classes(2)

    class Waiting(Transfers):
        def all(self):
            yield torch.tensor([1]), {"prob": torch.tensor([0.5])}, torch.tensor([7])

    tracker._transfers = Waiting([None])
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\), got 7 to 7"):
        tracker.end_epoch()
