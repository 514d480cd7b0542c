"""The order of examples: a pure function of seed, epoch and scores, resumable anywhere."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from data_prune import DualScoreSampler, ScoreTable

N = 31


def table(n=N, seed=0):
    rng = np.random.default_rng(seed)
    return ScoreTable(
        np.arange(n), rng.integers(3, size=n), rng.uniform(0.01, 0.3, n), rng.uniform(size=n),
        np.full(n, 30),
    )  # fmt: skip


def pruned(**options):
    return DualScoreSampler(range(N), 0.5, table=table(), **options)


def scoring(**options):
    return DualScoreSampler(range(N), 0.5, score_epochs=3, window=2, **options)


def record(sampler):
    """One epoch of a loop without a model."""
    for index in BatchSampler(sampler, 7, False):
        i = torch.tensor(index)
        sampler.update(i, torch.sin(i[:, None] * torch.arange(1, 4.0) + sampler.epoch), i % 3)


def test_scoring_then_pruning_advances_by_itself():
    """Forgetting set_epoch must not repeat one order for ever."""
    sampler = scoring()
    orders = []
    for _ in range(3):
        record(sampler)
    assert sampler.epoch == 3
    orders = [list(sampler) for _ in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == sampler.kept.tolist()
    assert orders[0] != orders[1]
    assert len(sampler) == len(orders[0]) == 16
    assert all(type(i) is int for i in orders[0])


@given(st.integers(0, 2**40), st.integers(0, 50))
@settings(max_examples=30, derandomize=True, deadline=None)
def test_order_is_a_function_of_seed_and_epoch(seed, epoch):
    """Two ranks, or a restarted run, must compute the same order, and leave generators alone."""
    state = torch.get_rng_state()
    a, b = pruned(seed=seed), pruned(seed=seed)
    b.set_epoch(epoch)
    for _ in range(3):
        a.set_epoch(epoch)
        assert list(a) == list(iter(b))
        b.set_epoch(epoch)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_iter_is_fresh():
    """InfoBatch's sampler starts anew whenever anyone calls iter: its epochs never end."""
    sampler = pruned()
    a, b = iter(sampler), iter(sampler)
    first = [next(a) for _ in range(5)]
    assert [next(b) for _ in range(5)] == first
    assert iter(a) is a
    assert len(first + list(a)) == 16
    assert [len(batch) for batch in BatchSampler(pruned(), 4, False)] == [4, 4, 4, 4]


def test_shuffle_off_is_ascending():
    """Reading from slow disks wants the kept examples in order."""
    assert list(pruned(shuffle=False)) == pruned().kept.tolist()


def test_ranks_share_one_order():
    """A union over ranks that differs from the single run means lost or doubled examples."""
    whole = list(pruned(seed=4))
    shares = [list(pruned(seed=4, num_replicas=3, rank=r)) for r in range(3)]
    assert [len(s) for s in shares] == [6, 6, 6]
    padded = whole + whole[:2]
    assert [i for step in zip(*shares, strict=True) for i in step] == padded
    dropped = [list(pruned(seed=4, num_replicas=3, rank=r, drop_last=True)) for r in range(3)]
    assert [i for step in zip(*dropped, strict=True) for i in step] == whole[:15]
    assert len(pruned(num_replicas=3, rank=0)) == 6


def test_more_ranks_than_examples():
    """Padding repeats as often as needed; no rank may be left with nothing and hang the others."""
    tiny = ScoreTable(*(np.array([v]) for v in (0, 0, 0.1, 0.5, 2)))
    shares = [
        list(DualScoreSampler(range(1), 0.0, table=tiny, num_replicas=3, rank=r)) for r in range(3)
    ]
    assert shares == [[0], [0], [0]]


def test_redraw_changes_the_subset_not_its_size():
    """Redrawing is another budget: over epochs it sees more than the ratio says."""
    sampler = pruned(redraw=True)
    subsets = [set(sampler) for _ in range(3)]
    assert {len(s) for s in subsets} == {16}
    assert len(set.union(*subsets)) > 16
    assert len(set(sampler.kept)) == 16


def test_a_table_may_be_ranked_by_any_of_its_columns():
    """Options are checked when the sampler is made, against the table that it is given."""
    table = ScoreTable(
        np.arange(4), np.zeros(4, int), np.full(4, 0.1), np.full(4, 0.5), np.full(4, 9),
        peers={"aum": np.array([0.3, -1.0, 2.0, 0.1])},
    )  # fmt: skip
    options = {"method": "top", "select_options": {"by": "aum"}}
    assert DualScoreSampler(range(4), 0.5, table=table, **options).kept.tolist() == [1, 3]
    with pytest.raises(ValueError, match="the table has no column 'aum'"):
        DualScoreSampler(range(4), 0.5, **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prune_ratio": 1.0}, ValueError, r"prune_ratio .* must be in \[0, 1\), got 1.0"),
        ({"prune_ratio": -0.5}, ValueError, "got -0.5"),
        ({"window": 5, "score_epochs": 4}, ValueError, "between 2 and epochs = 4, got 5"),
        ({"method": "best"}, ValueError, "method must be one of"),
        ({"num_replicas": 2}, ValueError, "give both or neither"),
        ({"num_replicas": 2, "rank": 2}, ValueError, r"rank must be in \[0, 2\), got 2"),
        ({"data_source": []}, ValueError, "data_source is empty"),
        ({"data_source": iter([])}, TypeError, "must have a length, got list_iterator"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    """Each message names the value and what is accepted."""
    given_ = {"data_source": range(10), "prune_ratio": 0.5, **arguments}
    with pytest.raises(error, match=message):
        DualScoreSampler(given_.pop("data_source"), given_.pop("prune_ratio"), **given_)


def test_scores_asked_for_too_early():
    """Pruning by half a recording would look like any other result."""
    sampler = scoring()
    record(sampler)
    with pytest.raises(RuntimeError, match=r"0 of 3 scoring epochs are recorded"):
        _ = sampler.kept
    sampler.set_epoch(3)
    with pytest.raises(RuntimeError, match="1 of 3 scoring epochs are recorded"):
        iter(sampler)


def test_lengths_are_known_before_the_scores():
    """A cosine schedule needs the number of steps when training starts."""
    sampler = scoring()
    steps = sum(sampler.steps_per_epoch(e, batch_size=8) for e in range(10))
    assert steps == 3 * 4 + 7 * 2
    assert sampler.steps_per_epoch(9, batch_size=5, drop_last=True) == 3


def test_copies_and_pickles():
    """Spawned workers and Lightning copy samplers."""
    sampler = pruned()
    head = [next(iter(sampler)) for _ in range(1)]
    assert list(pickle.loads(pickle.dumps(sampler)))[0:1] == head
    assert list(copy.deepcopy(sampler)) == list(pruned())


@pytest.mark.parametrize("stop", [0, 1, 7, 15, 16])
def test_state_resumes_exactly_a_second_time_and_at_the_end(stop):
    """Resume after `stop` indices, resume again from there, and go on into the next epoch."""
    sampler = pruned()
    whole, following = list(sampler), list(sampler)
    sampler = pruned()
    it = iter(sampler)
    head = [next(it) for _ in range(stop)]
    second = pruned()
    second.load_state_dict(pickle.loads(pickle.dumps(sampler.state_dict())))
    it = iter(second)
    more = [next(it) for _ in range(min(3, 16 - stop))]
    third = pruned()
    third.load_state_dict(second.state_dict())
    assert head + more + list(third) == whole
    assert list(third) == following


def test_state_of_another_run_is_refused():
    """Resuming with other scores would silently mix two subsets."""
    sampler = pruned()
    list(sampler)
    state = sampler.state_dict()
    with pytest.raises(ValueError, match="state has seed = 0, this sampler has 1"):
        pruned(seed=1).load_state_dict(state)
    other = DualScoreSampler(range(N), 0.5, table=table(seed=9))
    with pytest.raises(ValueError, match="other scores"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"prune_ratio = 0\.5, this sampler has 0.7"):
        DualScoreSampler(range(N), 0.7, table=table()).load_state_dict(state)


def numbers(batch):
    return [int(i) for i in batch]


# torchdata 0.11 calls a function that torch 2.13 has deprecated.
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cuts", [(2,), (1, 2), (4,)])
def test_stateful_dataloader_resumes_mid_epoch(workers, cuts):
    """torchdata's loader restores the position; without our state it would replay or skip."""

    def fresh():
        return StatefulDataLoader(
            range(N), batch_size=4, sampler=pruned(seed=2), num_workers=workers
        )

    loader = fresh()
    epochs = [[numbers(b) for b in loader] for _ in range(2)]
    seen, state = [], None
    for cut in cuts:
        loader = fresh()
        if state is not None:
            loader.load_state_dict(state)
        it = iter(loader)
        while len(seen) < cut:
            seen.append(numbers(next(it)))
        state = pickle.loads(pickle.dumps(loader.state_dict()))
    loader = fresh()
    loader.load_state_dict(state)
    seen += [numbers(b) for b in loader]
    assert seen == epochs[0]
    assert [numbers(b) for b in loader] == epochs[1]


def test_workers_do_not_change_the_order():
    """The sampler lives in the main process; workers only read."""
    orders = [
        [
            i
            for b in DataLoader(range(N), batch_size=4, sampler=pruned(), num_workers=w)
            for i in numbers(b)
        ]
        for w in (0, 2)
    ]
    assert orders[0] == orders[1]
