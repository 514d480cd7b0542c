"""The three lines in a user's loop credit the right examples, whatever the loader looks like."""

import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from data_prune import DualScoreSampler, ScoreTable, index_batches
from prune.loops import C, Items, N, custom_collate, logits_of, run, true_history
from reference import dual as naive

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
    assert len(pinned) == 2 * 5 * 2  # x and y of five batches in two epochs; positions need none
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


def test_sequential_sampler_type_is_recognized():
    """Evaluation-style order stays in order after pruning."""
    table = ScoreTable(
        np.arange(N), np.zeros(N, int), np.linspace(0.1, 0.2, N), np.full(N, 0.5), np.full(N, 3)
    )
    inner = DataLoader(Items(), batch_size=5, sampler=SequentialSampler(range(N)))
    loader = DualScoreSampler.wrap(inner, 0.5, table=table)
    order = [int(i) for x, _ in loader for i in x]
    assert order == sorted(order)


def test_samples_without_a_tuple_and_concatenated_data():
    """A data set of bare tensors, joined from two: positions are those of the whole."""
    data = torch.utils.data.ConcatDataset([TensorDataset(torch.arange(7)), list(range(7, 12))])
    seen = [int(i) for batch in index_batches(DataLoader(data, batch_size=1)) for i in batch[-1]]
    assert seen == list(range(12))
