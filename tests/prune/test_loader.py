"""The three lines in a user's loop credit the right examples, whatever the loader looks like."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from data_prune import DualScoreSampler, ScoreTable, index_batches
from reference import dual as naive

N, C = 23, 4


class Items(Dataset):
    """Example i is the number i with label i % C; at module level so that workers can load it."""

    def __init__(self, n=N, as_dict=False, batched=False):
        self.n, self.as_dict = n, as_dict
        self.batched_reads = 0
        if batched:
            self.__getitems__ = self._many

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        x, y = torch.tensor([float(i)]), i % C
        return {"x": x, "y": y} if self.as_dict else (x, y)

    def _many(self, indices):
        self.batched_reads += 1
        return [self[i] for i in indices]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(4))


def custom_collate(examples):
    return {"x": torch.stack([x for x, _ in examples]), "y": torch.tensor([y for _, y in examples])}


def logits_of(x, y, epoch):
    """Each example's logits encode its own number and the epoch, so that a mix-up shows."""
    z = torch.zeros(len(x), C)
    z[torch.arange(len(x)), y] = torch.sin(x.squeeze(-1) * 3 + epoch) * 2
    return z


def true_history(epochs, n=N):
    i = np.arange(n)
    z = np.sin(np.float32(i * 3)[None] + np.arange(epochs)[:, None]) * 2
    return np.exp(z) / (np.exp(z) + C - 1)


def run(loader, epochs):
    """A user's loop; returns the examples seen in each epoch."""
    seen = []
    for epoch in range(epochs):
        seen.append([])
        steps = 0
        for batch in loader:
            steps += 1
            x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch
            loader.record(logits_of(x, y, epoch), y)
            seen[-1] += x.squeeze(-1).long().tolist()
        assert steps == -(-len(seen[-1]) // 5) or loader.drop_last
    return seen


LOADERS = {
    "plain": lambda: DataLoader(Items(), batch_size=5, shuffle=True),
    "dict": lambda: DataLoader(Items(as_dict=True), batch_size=5, shuffle=True),
    "collate": lambda: DataLoader(Items(), batch_size=5, shuffle=True, collate_fn=custom_collate),
    "batched reads": lambda: DataLoader(Items(batched=True), batch_size=5, shuffle=True),
    "batch sampler": lambda: DataLoader(
        Items(), batch_sampler=BatchSampler(RandomSampler(range(N)), 5, False)
    ),
    "tensor dataset": lambda: DataLoader(
        TensorDataset(torch.arange(N)[:, None].float(), torch.arange(N) % C), 5, shuffle=True
    ),
    "two workers": lambda: DataLoader(Items(), batch_size=5, shuffle=True, num_workers=2),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_three_lines_score_and_prune(kind):
    """The promise of the README: batches as before, right scores, then only the kept part."""
    loader = DualScoreSampler.wrap(LOADERS[kind](), prune_ratio=0.5, score_epochs=3, window=2)
    assert len(loader) == 5
    seen = run(loader, 5)
    assert [sorted(e) for e in seen[:3]] == [list(range(N))] * 3
    table = loader.table
    np.testing.assert_allclose(table.score, naive.dual(true_history(3), 2), atol=1e-6)
    assert table.label.tolist() == [i % C for i in range(N)]
    kept = table.select(0.5).tolist()
    assert len(kept) == 12
    assert sorted(seen[3]) == sorted(seen[4]) == kept
    assert seen[3] != seen[4]
    assert len(loader) == 3
    np.testing.assert_array_equal(loader.kept, kept)


def test_persistent_workers():
    """Workers that stay alive must not keep the full epoch's indices."""
    inner = DataLoader(Items(), batch_size=5, shuffle=True, num_workers=1, persistent_workers=True)
    loader = DualScoreSampler.wrap(inner, 0.5, score_epochs=2, window=2)
    seen = run(loader, 4)
    assert [len(e) for e in seen] == [23, 23, 12, 12]
    np.testing.assert_allclose(loader.table.score, naive.dual(true_history(2), 2), atol=1e-6)


class Batch:
    """A user's own batch type, which knows how to pin itself."""

    def __init__(self, x, y, pinned=False):
        self.x, self.y, self.pinned = x, y, pinned

    def pin_memory(self):
        return Batch(self.x.pin_memory(), self.y.pin_memory(), pinned=True)


def batch_of_own_type(examples):
    return Batch(torch.stack([x for x, _ in examples]), torch.tensor([y for _, y in examples]))


# Without an accelerator torch says so and pins nothing; the loop must go on all the same.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no acc:UserWarning")
@pytest.mark.parametrize("kind", ["plain", "dict"])
def test_pin_memory_is_handed_on_and_batches_keep_their_indices(kind):
    """A loader that pins must still pin after it is wrapped, and credit the right examples."""
    inner = LOADERS[kind]()
    inner.pin_memory = True
    loader = DualScoreSampler.wrap(inner, 0.5, score_epochs=2, window=2)
    assert loader.loader.pin_memory
    assert loader.pin_memory
    run(loader, 3)
    np.testing.assert_allclose(loader.table.score, naive.dual(true_history(2), 2), atol=1e-6)


@pytest.mark.parametrize("workers", [0, 1])
def test_pinned_batches_of_an_own_type(monkeypatch, workers):
    """torch pins what it finds inside (index, batch): a batch type's own method must be called."""
    pinned = []
    device = torch.device("cpu")  # stands in for an accelerator, whose pinning copies as well
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *a, **k: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *a, **k: device)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda self, device=None: pinned.append(self) or self.clone()
    )
    inner = DataLoader(
        Items(), 5, shuffle=True, collate_fn=batch_of_own_type, pin_memory=True, num_workers=workers
    )
    loader = DualScoreSampler.wrap(inner, 0.5, score_epochs=2, window=2)
    for epoch in range(2):
        for batch in loader:
            assert isinstance(batch, Batch)
            assert batch.pinned
            assert loader.index.tolist() == batch.x.squeeze(-1).long().tolist()
            loader.record(logits_of(batch.x, batch.y, epoch), batch.y)
    assert len(pinned) == 2 * 5 * 3  # index, x and y of five batches in two epochs
    np.testing.assert_allclose(loader.table.score, naive.dual(true_history(2), 2), atol=1e-6)


def test_subset_positions_are_those_of_the_subset():
    """Position i of the table is example i of the data set that the loader was given."""
    chosen = [22, 3, 7, 11, 2, 5, 20, 9]
    inner = DataLoader(Subset(Subset(Items(), list(range(N))), chosen), batch_size=3, shuffle=True)
    loader = DualScoreSampler.wrap(inner, 0.5, score_epochs=2, window=2)
    run_epochs = 2
    for epoch in range(run_epochs):
        for x, y in loader:
            loader.record(logits_of(x, y, epoch), y)
    expected = naive.dual(true_history(2)[:, chosen], 2)
    np.testing.assert_allclose(loader.table.score, expected, atol=1e-6)


def test_batched_reads_stay_batched():
    """HF data sets and Subset read a whole batch at once; a wrapper must not lose that."""
    data = Items(batched=True)
    loader = DualScoreSampler.wrap(DataLoader(data, batch_size=5, shuffle=True), 0.5)
    run(loader, 1)
    assert data.batched_reads == 5


def test_drop_last_and_sequential_order_are_kept():
    """drop_last examples are missing in that epoch; a fixed order is warned about."""
    inner = DataLoader(Items(), batch_size=5, drop_last=True)
    with pytest.warns(UserWarning, match="shuffle=False"):
        loader = DualScoreSampler.wrap(inner, 0.5, score_epochs=2, window=2)
    assert len(loader) == 4
    seen = run(loader, 2)
    assert seen[0] == list(range(20))
    assert loader.coverage()["missing_per_epoch"] == [3, 3]
    assert loader.coverage()["unscored"] == 3
    with pytest.warns(UserWarning, match="3 of 23 examples have no complete window"):
        assert run(loader, 1)[0][-1] < 20
    assert len(loader) == 2


def test_a_samplers_own_order_is_filtered():
    """A sampler that torch did not make keeps its law; only pruned examples leave it."""
    weights = torch.ones(N)
    sampler = WeightedRandomSampler(weights, 40, generator=torch.Generator().manual_seed(0))
    inner = DataLoader(Items(), batch_size=5, sampler=sampler)
    loader = DualScoreSampler.wrap(inner, 0.5, score_epochs=8, window=2)
    seen = run(loader, 8)
    assert [len(e) for e in seen] == [40] * 8
    assert loader.coverage()["duplicates"] > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a few examples may never have two epochs in a row
        kept, length = set(loader.kept.tolist()), len(loader)
        after = []
        batches = 0
        for x, y in loader:
            loader.record(logits_of(x, y, 8), y)
            after += x.squeeze(-1).long().tolist()
            batches += 1
    assert set(after) <= kept
    assert batches == length


def test_distributed_sampler_hands_its_ranks_over():
    """A hand-written DDP loop: each rank its share, together everything once, equal lengths."""
    union = []
    for rank in range(2):
        inner = DataLoader(
            Items(), batch_size=5, sampler=DistributedSampler(Items(), 2, rank, seed=1)
        )
        loader = DualScoreSampler.wrap(inner, 0.5, score_epochs=2, window=2)
        seen = run(loader, 1)[0]
        assert len(seen) == 12
        assert len(loader) == 3
        union += seen
    assert len(union) == 24
    assert set(union) == set(range(N))


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


def test_a_fresh_run_on_the_kept_part():
    """The paper's protocol: train from scratch on what an earlier run has chosen."""
    loader = DualScoreSampler.wrap(
        DataLoader(Items(), batch_size=5, shuffle=True), 0.5, score_epochs=2, window=2
    )
    run(loader, 2)
    sampler = DualScoreSampler(Items(), 0.7, table=loader.table, seed=0)
    assert sorted(sampler) == loader.table.select(0.7).tolist()
    assert len(DataLoader(Items(), batch_size=5, sampler=sampler)) == 2
    again = DualScoreSampler.wrap(DataLoader(Items(), batch_size=5), 0.7, table=loader.table)
    assert len(again) == 2
    for x, y in again:
        again.record(logits_of(x, y, 0), y)  # harmless
    with pytest.raises(ValueError, match="table scores 23 examples, the data set has 24"):
        DualScoreSampler(Items(24), 0.7, table=loader.table)


def test_indexed_batches_carry_the_index_where_the_batch_goes():
    """For frameworks that read ahead: the credit travels with the data."""
    batch = next(iter(index_batches(DataLoader(Items(as_dict=True), batch_size=4), name="row")))
    assert batch["row"].tolist() == batch["x"].squeeze(-1).tolist() == [0, 1, 2, 3]
    x, y, index = next(iter(index_batches(DataLoader(Items(), batch_size=4))))
    assert index.tolist() == x.squeeze(-1).tolist()
    assert y.tolist() == [0, 1, 2, 3]


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


def test_sequential_sampler_type_is_recognized():
    """Evaluation-style order stays in order after pruning."""
    table = ScoreTable(
        np.arange(N), np.zeros(N, int), np.linspace(0.1, 0.2, N), np.full(N, 0.5), np.full(N, 3)
    )
    inner = DataLoader(Items(), batch_size=5, sampler=SequentialSampler(range(N)))
    loader = DualScoreSampler.wrap(inner, 0.5, table=table)
    order = [int(i) for x, _ in loader for i in x]
    assert order == sorted(order)


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


def test_samples_without_a_tuple_and_concatenated_data():
    """A data set of bare tensors, joined from two: positions are those of the whole."""
    data = torch.utils.data.ConcatDataset([TensorDataset(torch.arange(7)), list(range(7, 12))])
    seen = [int(i) for batch in index_batches(DataLoader(data, batch_size=1)) for i in batch[-1]]
    assert seen == list(range(12))
