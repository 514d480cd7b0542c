"""Loaders of other libraries and of a user's own: right, or refused before a batch is spent."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Sampler, SubsetRandomSampler

from data_prune import DualScoreSampler, index_batches
from prune.loops import Items, N, custom_collate, logits_of, run, true_history
from reference import dual as naive

OPTIONS = {"score_epochs": 2, "window": 2}


class Graphs(DataLoader):
    """Puts its own collate function in the place of any other, as PyTorch Geometric does."""

    def __init__(self, dataset, batch_size=1, shuffle=False, follow=None, **options):
        options.pop("collate_fn", None)
        self.follow = follow
        super().__init__(dataset, batch_size, shuffle, collate_fn=custom_collate, **options)


class Placed(DataLoader):
    """Takes an argument that torch's loader does not know."""

    def __init__(self, device, dataset, **options):
        self.device = device
        super().__init__(dataset, **options)


class Moving(DataLoader):
    """Changes batches on their way."""

    def __iter__(self):
        for batch in super().__iter__():
            yield [part.to("cpu") for part in batch]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("own_order", [False, True])
@pytest.mark.parametrize("kind", [Graphs, Placed])
def test_a_loader_with_a_constructor_of_its_own(kind, own_order, workers):
    """It is not built again, which would lose the indices or an argument."""
    how = {"batch_size": 5, "num_workers": workers, "persistent_workers": workers > 0}
    how |= {"sampler": SubsetRandomSampler(range(N))} if own_order else {"shuffle": True}
    inner = kind(Items(), **how) if kind is Graphs else kind("cpu", Items(), **how)
    list(inner)  # workers that are alive belong to the user's own loader
    loader = DualScoreSampler.wrap(inner, 0.5, **OPTIONS)
    assert type(loader.loader) is kind
    seen = run(loader, 4)
    assert [sorted(epoch) for epoch in seen[:2]] == [list(range(N))] * 2
    np.testing.assert_allclose(loader.table.score, naive.dual(true_history(2), 2), atol=1e-6)
    assert sorted(seen[2]) == sorted(seen[3]) == loader.kept.tolist()
    assert sum(len(batch["y"] if kind is Graphs else batch[1]) for batch in inner) == N


def test_what_lightning_has_noted_of_a_loader_is_not_handed_on():
    """It would build the loader again from the arguments of the user's: without indices."""
    inner = Graphs(Items(), 5)
    inner.__pl_saved_args = (inner.dataset,)
    indexed = index_batches(inner, DualScoreSampler(Items(), 0.5, **OPTIONS))
    assert not [name for name in vars(indexed) if name.startswith("__pl_saved")]
    assert [name for name in vars(inner) if name.startswith("__pl_saved")]
    assert sorted(i for batch in indexed for i in batch["index"].tolist()) == list(range(N))


def test_a_loader_that_changes_batches_is_refused_by_wrap_and_takes_indices():
    """Its own code would meet the index beside the batch; inside the batch it goes along."""
    with pytest.raises(TypeError, match=r"Moving has an __iter__ of its own.*index_batches"):
        DualScoreSampler.wrap(Moving(Items(), batch_size=5, shuffle=True), 0.5)
    sampler = DualScoreSampler(Items(), 0.5, **OPTIONS)
    loader = index_batches(Moving(Items(), batch_size=5, shuffle=True), sampler)
    for epoch in range(2):
        for x, y, index in loader:
            sampler.update(index, logits_of(x, y, epoch), y)
    np.testing.assert_allclose(sampler.table.score, naive.dual(true_history(2), 2), atol=1e-6)


def test_an_order_without_a_length_is_refused():
    """Its passes cannot be counted ahead; torch's own message does not say what is missing."""

    class Endless(Sampler):
        def __iter__(self):
            return iter(range(N))

    with pytest.raises(TypeError, match=r"the loader's sampler must have a length: .*Endless"):
        DualScoreSampler.wrap(DataLoader(Items(), batch_size=5, sampler=Endless()), 0.5)


def test_a_ratio_that_leaves_no_full_batch_is_refused_before_anything_is_spent():
    """Every pass after the scoring was empty, in silence."""
    inner = DataLoader(Items(), batch_size=5, shuffle=True, drop_last=True)
    message = "prune_ratio 0.8 keeps 5 examples, 2 on each rank: fewer than one batch of 5"
    with pytest.raises(ValueError, match=message):
        DualScoreSampler.wrap(inner, 0.8, num_replicas=2, rank=0, drop_last=True)
    with pytest.raises(ValueError, match=r"keeps 2 examples, 2 on each rank.*drop_last=True"):
        index_batches(inner, DualScoreSampler(Items(), 0.9))
    loader = DualScoreSampler.wrap(inner, 0.8, **OPTIONS)
    assert [len(epoch) for epoch in run(loader, 2)] == [20, 20]
    with pytest.warns(UserWarning, match="have no complete window"):
        assert len(run(loader, 1)[0]) == 5


@pytest.mark.filterwarnings("ignore:3 of 23 examples have no complete window:UserWarning")
def test_an_own_order_of_full_batches_keeps_what_is_left():
    """A smaller batch is better than an empty pass."""
    order = torch.utils.data.BatchSampler(SubsetRandomSampler(range(20)), 5, drop_last=True)
    loader = DualScoreSampler.wrap(DataLoader(Items(), batch_sampler=order), 0.85, **OPTIONS)
    assert [len(y) for _, y in _passes(loader, 3)[-1]] == [3]


def _passes(loader, count):
    """Return the batches of each pass of a user's loop."""
    passes = []
    for epoch in range(count):
        passes.append([])
        for x, y in loader:
            loader.record(logits_of(x, y, epoch), y)
            passes[-1].append((x, y))
    return passes


@pytest.mark.filterwarnings("ignore:11 of 23 examples have no complete window:UserWarning")
@pytest.mark.parametrize("method", ["plausible", "beta", "random"])
def test_examples_that_an_order_never_gives_are_kept_last(method):
    """A part held out by SubsetRandomSampler was kept as a class of its own."""
    inner = DataLoader(Items(), batch_size=5, sampler=SubsetRandomSampler(range(0, N, 2)))
    select = {"per_class": True}
    loader = DualScoreSampler.wrap(inner, 0.5, method=method, select_options=select, **OPTIONS)
    last = torch.cat([x for x, _ in _passes(loader, 3)[-1]])
    assert loader.kept.tolist() == sorted(last.flatten().int().tolist()) == list(range(0, N, 2))
