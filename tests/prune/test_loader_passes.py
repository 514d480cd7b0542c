"""Passes over a wrapped loader: what counts, what is refused, what a resume goes on with."""

import pickle

import pytest
import torch
from torch.utils.data import (
    DataLoader,
)

from data_prune import DualScoreSampler, index_batches
from prune.loops import C, Items, Stream, logits_of, run


def test_len_belongs_to_the_pass_that_is_going_on():
    """Progress bars ask before a pass, schedulers within it; both must get that pass's length."""
    inner = DataLoader(Items(), batch_size=5, shuffle=True, num_workers=1)
    loader = DualScoreSampler.wrap(inner, 0.5, score_epochs=2, window=2)
    lengths = []
    for epoch in range(3):
        lengths.append(len(loader))
        for x, y in loader:
            loader.record(logits_of(x, y, epoch), y)
            assert len(loader) == lengths[-1]
    assert lengths == [5, 5, 3]
    assert [loader.sampler.steps_per_epoch(e, 5) for e in range(4)] == [5, 5, 3, 3]


def test_record_refuses_what_it_cannot_credit():
    """A batch-size check alone is not enough: a batch recorded twice is refused as well."""
    inner = DataLoader(Items(), batch_size=5, shuffle=True)
    loader = DualScoreSampler.wrap(inner, 0.5, score_epochs=2, window=2)
    with pytest.raises(RuntimeError, match="no batch to credit"):
        loader.record(torch.zeros(5, C), torch.zeros(5, dtype=torch.int64))
    x, y = next(iter(loader))
    with pytest.raises(ValueError, match=r"got 4 examples, the batch handed out last has 5"):
        loader.record(torch.zeros(4, C), y[:4])
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\)"):
        loader.record(torch.zeros(5, 2), torch.full((5,), 3))
    loader.record(logits_of(x, y, 0), y)
    with pytest.raises(RuntimeError, match="recorded before"):
        loader.record(logits_of(x, y, 0), y)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_batch_may_be_recorded_in_pieces(size):
    """Micro-batches of gradient accumulation give the same scores as whole batches."""
    inner = DataLoader(Items(), batch_size=5, shuffle=True)
    whole, pieces = (DualScoreSampler.wrap(inner, 0.5, score_epochs=3, window=2) for _ in range(2))
    run(whole, 3)
    for epoch in range(3):
        for x, y in pieces:
            logits = logits_of(x, y, epoch)
            for start in range(0, len(y), size):
                part = slice(start, start + size)
                pieces.record(logits[part], y[part], part=part)
    assert pieces.table.digest() == whole.table.digest()
    loader = DualScoreSampler.wrap(inner, 0.5, score_epochs=3, window=2)
    x, y = next(iter(loader))
    loader.record(logits_of(x, y, 0)[:3], y[:3], part=slice(0, 3))
    for part in (slice(2, 5), None, slice(5, 9)):
        with pytest.raises(RuntimeError, match="recorded before"):
            loader.record(torch.zeros(3, C), y[:3], part=part)
    with pytest.raises(ValueError, match=r"got 3 examples, the part slice\(3, 5, None\) .* has 2"):
        loader.record(torch.zeros(3, C), y[:3], part=slice(3, 5))
    loader.record(logits_of(x, y, 0)[3:], y[3:], part=slice(3, 5))
    assert loader.sampler.tracker.coverage()["duplicates"] == 0


def test_a_look_within_a_pass_ends_it_aloud():
    """Two iterations of one loader would credit each other's batches."""
    loader = DualScoreSampler.wrap(
        DataLoader(Items(), batch_size=5, shuffle=True), 0.5, score_epochs=3, window=2
    )
    with pytest.raises(RuntimeError, match=r"iterated anew.* a loader of its own"):  # noqa: PT012
        for x, y in loader:
            loader.record(logits_of(x, y, 0), y)
            next(iter(loader))


def test_two_loaders_over_one_data_set_keep_apart():
    """Two models scored side by side: neither sees what the other has recorded."""
    data = Items()
    inner = DataLoader(data, batch_size=5, shuffle=True)
    loaders = [DualScoreSampler.wrap(inner, 0.5, score_epochs=3, window=2) for _ in range(2)]
    for epoch in range(3):
        for pairs in zip(*loaders, strict=True):
            for sign, loader, (x, y) in zip((1, -1), loaders, pairs, strict=True):
                loader.record(sign * logits_of(x, y, epoch), y)
    for sign, loader in zip((1, -1), loaders, strict=True):
        alone = DualScoreSampler.wrap(inner, 0.5, score_epochs=3, window=2)
        for epoch in range(3):
            for x, y in alone:
                alone.record(sign * logits_of(x, y, epoch), y)
        assert loader.table.digest() == alone.table.digest()
    assert loaders[0].table.digest() != loaders[1].table.digest()


def test_forgotten_record_is_said_aloud_and_counts_nothing():
    """Without record() the loader would train on everything for ever, silently."""
    loader = DualScoreSampler.wrap(
        DataLoader(Items(), batch_size=5, shuffle=True), 0.5, score_epochs=2, window=2
    )
    with pytest.warns(UserWarning, match=r"without one record\(logits, target\)"):
        assert len(list(loader)) == 5
    seen = run(loader, 3)
    assert [len(e) for e in seen] == [23, 23, 12]
    with pytest.raises(RuntimeError, match="0 of 2 scoring epochs"):
        _ = DualScoreSampler.wrap(
            DataLoader(Items()), 0.5, shuffle=True, score_epochs=2, window=2
        ).table


def test_a_pass_left_early_counts_and_a_peek_does_not():
    """Limits on batches, and next(iter(loader)) to look at the data, are everyday."""
    loader = DualScoreSampler.wrap(
        DataLoader(Items(), batch_size=5, shuffle=True), 0.5, score_epochs=3, window=2
    )
    for epoch in range(3):
        for step, (x, y) in enumerate(loader):
            if epoch == 0 and step == 3:
                break
            loader.record(logits_of(x, y, epoch), y)
    assert loader.coverage()["missing_per_epoch"] == [8, 0, 0]
    fresh = DualScoreSampler.wrap(
        DataLoader(Items(), batch_size=5, shuffle=True), 0.5, score_epochs=3, window=2
    )
    next(iter(fresh))
    next(iter(fresh))
    assert fresh.sampler.epoch == 0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DataLoader(Stream()), TypeError, "Stream is an iterable-style.*KeyedTracker"),
        (lambda: DataLoader(Items(0), batch_size=5), ValueError, "has no examples"),
        (lambda: DataLoader(Items(3), batch_size=5, drop_last=True), ValueError, "drop_last=True"),
        (lambda: DataLoader(Items(), batch_size=None), ValueError, "batch_size=None"),
        (lambda: [1, 2, 3], TypeError, "must be a torch DataLoader, got list"),
        (lambda: index_batches(DataLoader(Items())), TypeError, "already carries indices"),
    ],
)
def test_loaders_that_cannot_be_wrapped_are_refused(make, error, message):
    """The message says what to do instead."""
    with pytest.raises(error, match=message):
        DualScoreSampler.wrap(make(), 0.5)


def test_loader_state_resumes_in_the_middle_of_a_pass():
    """A killed run loses nothing: same remaining batches, same scores, same subset."""

    def fresh():
        inner = DataLoader(Items(), batch_size=5, shuffle=True)
        return DualScoreSampler.wrap(inner, 0.5, score_epochs=3, window=2)

    whole = fresh()
    expected = run(whole, 5)
    for stop_epoch, stop_step in ((0, 2), (1, 5), (2, 1), (4, 2)):
        loader, state = fresh(), None
        for epoch in range(stop_epoch + 1):
            for step, (x, y) in enumerate(loader):
                loader.record(logits_of(x, y, epoch), y)
                if (epoch, step + 1) == (stop_epoch, stop_step):
                    state = pickle.loads(pickle.dumps(loader.state_dict()))
                    break
        resumed = fresh()
        resumed.load_state_dict(state)
        rest = []
        for x, y in resumed:
            rest += x.squeeze(-1).long().tolist()
            resumed.record(logits_of(x, y, stop_epoch), y)
        assert rest == expected[stop_epoch][stop_step * 5 :]
        for epoch in range(stop_epoch + 1, 5):
            seen = []
            for x, y in resumed:
                seen += x.squeeze(-1).long().tolist()
                resumed.record(logits_of(x, y, epoch), y)
            assert seen == expected[epoch]
        assert resumed.table.digest() == whole.table.digest()


def test_workers_receive_the_data_set_and_not_the_tracker():
    """Spawned workers get a pickle of the data set: a tracker in it would be copied into each."""
    loader = DualScoreSampler.wrap(DataLoader(Items(), batch_size=5, shuffle=True), 0.5)
    pickled = pickle.dumps((loader.loader.dataset, loader.loader.collate_fn))
    assert b"DualTracker" not in pickled
    assert pickle.loads(pickled)[0][3][0] == 3


def test_attributes_of_the_wrapped_loader_stay_visible():
    """Code that asks for loader.batch_size or loader.dataset goes on working."""
    data = Items()
    loader = DualScoreSampler.wrap(DataLoader(data, batch_size=5, shuffle=True), 0.5)
    assert loader.dataset is data
    assert loader.batch_size == 5
    assert loader.num_workers == 0
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = loader.no_such_thing
