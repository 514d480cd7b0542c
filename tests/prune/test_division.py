"""Several processes: an order is divided by somebody, or refused before a batch is spent."""

import sys
import types

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from data_prune import DualScoreSampler, index_batches
from data_prune.load import division
from data_prune.load.division import accelerate_runs as asked

DATA = TensorDataset(torch.arange(64.0), torch.arange(64) % 4)
OPTIONS = {"prune_ratio": 0.5, "score_epochs": 2, "window": 2}


@pytest.fixture
def two_ranks(monkeypatch):
    """This process takes itself for the second of two, in which no Accelerator is at work."""
    monkeypatch.setattr(division, "accelerate_runs", lambda: False)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 2)
    monkeypatch.setattr(dist, "get_rank", lambda group=None: 1)


def wrapped(cls=DataLoader, **options):
    options = {"batch_size": 8, "shuffle": True, **options}
    return DualScoreSampler.wrap(cls(DATA, **options), **OPTIONS)


def numbers(loader):
    return [i for x, *_ in loader for i in x.int().tolist()]


class Own(DistributedSampler):
    """A user's own order."""

    def __iter__(self):
        return iter([0, 0, 1, 1])

    def __len__(self):
        return 4


def test_a_subclass_of_the_distributed_sampler_keeps_its_order():
    """Its name was taken for torch's own, and its order thrown away."""
    own = Own(DATA, num_replicas=1, rank=0)
    loader = DualScoreSampler.wrap(DataLoader(DATA, batch_size=4, sampler=own), **OPTIONS)
    for x, y in loader:
        assert x.tolist() == [0, 0, 1, 1]
        loader.record(torch.randn(4, 4), y)


def test_nothing_is_iterated_whole_by_every_rank(two_ranks):
    """Both ranks would train on everything, and every sighting count twice."""
    with pytest.raises(RuntimeError, match=r"2 processes.*DistributedSampler before it is wrapped"):
        next(iter(wrapped()))
    sampler = DualScoreSampler(DATA, **OPTIONS)
    with pytest.raises(RuntimeError, match="give num_replicas='auto' to the sampler"):
        next(iter(index_batches(DataLoader(DATA, batch_size=8), sampler)))
    own = DualScoreSampler(DATA, num_replicas=1, rank=0, **OPTIONS)
    assert len(list(own)) == 64
    alone = DualScoreSampler(DATA, tracker_options={"process_group": False}, **OPTIONS)
    assert len(list(alone)) == 64


def test_accelerate_divides_and_a_wrapped_loader_it_does_not(two_ranks, monkeypatch):
    """prepare() leaves what is no DataLoader as it is."""
    state = types.ModuleType("accelerate.state")
    state.AcceleratorState = types.SimpleNamespace(_shared_state={"device": "cpu"})
    monkeypatch.setitem(sys.modules, "accelerate.state", state)
    monkeypatch.setattr(division, "accelerate_runs", asked)
    assert len(list(DualScoreSampler(DATA, **OPTIONS))) == 64
    with pytest.raises(RuntimeError, match=r"Accelerate divides index_batches\(loader, sampler\)"):
        next(iter(wrapped()))


def test_lightnings_own_division_is_refused(two_ranks):
    """It asks for the length once: after pruning each rank would go on with whole epochs."""
    distributed = pytest.importorskip("lightning.fabric.utilities.distributed")
    sampler = DualScoreSampler(DATA, **OPTIONS)
    theirs = distributed.DistributedSamplerWrapper(sampler, num_replicas=2, rank=1)
    with pytest.raises(RuntimeError, match="use_distributed_sampler=False to the Trainer"):
        next(iter(theirs))


def test_auto_asks_when_an_epoch_begins(two_ranks, monkeypatch):
    """Launchers know the ranks later than the sampler is made."""
    sampler = DualScoreSampler(DATA, num_replicas="auto", **OPTIONS)
    whole = DualScoreSampler(DATA, num_replicas=1, rank=0, **OPTIONS)
    assert list(sampler) == list(whole)[1::2]
    assert len(sampler) == 32
    monkeypatch.setattr(division, "world_size", lambda: 1)
    assert len(sampler) == 64
    for wrong in ({"num_replicas": 2}, {"num_replicas": "two", "rank": 0}, {"rank": 0}):
        with pytest.raises(ValueError, match="num_replicas"):
            DualScoreSampler(DATA, **wrong, **OPTIONS)


class Batches:
    """A batch sampler that deals its batches to two ranks."""

    def __init__(self, rank):
        self.rank, self.epoch = rank, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        g = torch.Generator().manual_seed(self.epoch)
        yield from torch.randperm(64, generator=g).view(-1, 8)[self.rank :: 2].tolist()

    def __len__(self):
        return 4


@pytest.mark.parametrize("prune_ratio", [0.3, 0.7, 0.9])
def test_own_batches_stay_equally_many_on_every_rank(monkeypatch, prune_ratio):
    """A rank with a batch more than the others waits for them for ever."""
    table = DualScoreSampler(DATA, **OPTIONS)
    for _ in range(2):
        for i in torch.tensor(list(table)).split(8):
            table.update(i, torch.randn(len(i), 4), i % 4)
    monkeypatch.setattr("data_prune.load.own_order.world_size", lambda: 2)
    lengths, seen = set(), set()
    for rank in range(2):
        inner = DataLoader(DATA, batch_sampler=Batches(rank))
        loader = DualScoreSampler.wrap(inner, prune_ratio, table=table.table)
        for _ in range(5):
            batches = [x.int().tolist() for x, _ in loader]
            assert len(batches) == len(loader)
            lengths.add((len(batches), len(batches[-1])))
            seen |= {i for batch in batches for i in batch}
    assert len(lengths) == 1
    assert seen <= set(loader.kept.tolist())


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.parametrize("cls", [DataLoader, StatefulDataLoader])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_pass_sees_every_example_once(cls, workers):
    """Some loaders make two iterators and use one: the position belongs to the one that is used."""
    loader, seen, state = wrapped(cls, num_workers=workers), [], None
    for x, y in loader:
        loader.record(torch.randn(8, 4), y)
        seen += x.int().tolist()
        if len(seen) == 24:
            state = loader.state_dict()
            break
    loader = wrapped(cls, num_workers=workers)
    loader.load_state_dict(state)
    for x, y in loader:
        loader.record(torch.randn(8, 4), y)
        seen += x.int().tolist()
    assert sorted(seen) == list(range(64))
    assert loader.coverage()["duplicates"] == 0


@pytest.mark.parametrize("first", [0, 2])
def test_numbers_of_a_resumed_loop_that_begin_again_count_on(first):
    """Accelerate calls set_epoch(0) in a run resumed at epoch 2: nothing is scored anew."""
    sampler = DualScoreSampler(DATA, **OPTIONS)
    expected = []
    for _ in range(4):
        expected.append(list(sampler))
        for i in torch.tensor(expected[-1]).split(8):
            sampler.update(i, torch.sin(i[:, None] * torch.arange(1.0, 5.0)), i % 4)
        if sampler.epoch == 2:
            sampler.close_epoch()
            states = sampler.state_dict(), sampler.tracker.state_dict()
    resumed = DualScoreSampler(DATA, **OPTIONS)
    resumed.load_state_dict(states[0])
    resumed.tracker.load_state_dict(states[1])
    for number in (0, 1):
        resumed.set_epoch(first + number)
        assert list(resumed) == expected[2 + number]


def test_steps_of_a_whole_run_are_known_when_it_starts():
    """A schedule that is planned by the first epoch's length never comes to its end."""
    loader = wrapped()
    steps = 0
    for _ in range(5):
        for x, y in loader:
            loader.record(torch.randn(len(x), 4), y)
            steps += 1
    assert steps == wrapped().total_steps(5) == 2 * 8 + 3 * 4
    custom = DataLoader(DATA, batch_sampler=Batches(0))
    with pytest.raises(RuntimeError, match="cannot be counted ahead"):
        DualScoreSampler.wrap(custom, **OPTIONS).total_steps(3)
