"""Mode "dynamic": the expected gradient is the full one, in every loop and after every resume."""

import itertools
import json
import pickle
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from data_prune import DualScoreSampler, index_batches
from data_prune.load import dynamic
from prune.loops import Items
from ranks import leave

N, EPOCHS = 23, 6
DATA = TensorDataset(torch.arange(float(N))[:, None], torch.arange(N) % 4)


def logits_of(x, y, epoch):
    """Each example is learned at a speed of its own."""
    z = torch.zeros(len(y), 4)
    z[torch.arange(len(y)), y] = (epoch + 1) * (x.flatten() % 7) / 3
    return z


def fresh(workers=0, **options):
    inner = DataLoader(DATA, batch_size=5, shuffle=True, num_workers=workers)
    options = {"prune_ratio": 0.5, "mode": "dynamic", "epochs": EPOCHS, **options}
    return DualScoreSampler.wrap(inner, **options)


def one_pass(loader, batches=None):
    """Go through (a part of) a pass; return numbers and weights as they came."""
    seen, epoch = [], loader.sampler.epoch
    for step, (x, y) in enumerate(loader, start=1):
        seen += zip(x.flatten().int().tolist(), loader.weight.tolist(), strict=True)
        loader.record(logits_of(x, y, epoch), y)
        assert len(loader.weight) == len(y)  # before and after record()
        if step == batches:
            break
    return seen


@pytest.mark.parametrize(("well", "ratio"), [(4, 0.5), (4, 0.75), (5, 0.2), (6, 0.5), (3, 0.9)])
def test_the_expected_gradient_is_the_full_one_exactly(monkeypatch, well, ratio):
    """Over every order in which the well-learned can be drawn: no rounding, no sampling error."""
    prob = np.array([0.9 + i / 100 for i in range(well)] + [0.05, 0.2, np.nan])
    gradient = [Fraction(7 * i * i - 3, 1 + i) for i in range(len(prob))]
    total, orders = Fraction(0), list(itertools.permutations(range(well)))
    for order in orders:
        keys = (np.array(order) + 0.5) / well
        monkeypatch.setattr(dynamic, "uniform", lambda seed, ids, keys=keys: keys[ids.astype(int)])
        drawn = dynamic.draw(prob, ratio, seed=0)
        members = range(len(prob)) if drawn.members is None else drawn.members.tolist()
        assert set(range(well, len(prob))) <= set(members)  # what is not well learned stays
        for i in members:
            assert (drawn.light is not None and drawn.light[i]) == (i < well)
            # The weight is a whole number or a quarter in these cases: floats hold it exactly.
            total += Fraction(float(drawn.weights(torch.tensor([i]))[0])) * gradient[i]
    assert total / len(orders) == sum(gradient)


def test_an_example_is_left_out_as_often_as_the_ratio_says():
    """The draws of real epochs differ from each other and favour nobody."""
    prob = np.full(40, 0.9)
    prob[30:] = 0.1
    left = np.zeros(40)
    for epoch in range(600):
        drawn = dynamic.draw(prob, 0.3, seed=epoch)
        assert len(drawn.members) == 40 - 9
        assert drawn.weight == 30 / 21
        left += 1 - np.isin(np.arange(40), drawn.members)
    assert left[30:].sum() == 0
    # 600 draws at 0.3 have a standard deviation of 11.2: five of them.
    assert abs(left[:30] - 180).max() < 56


def test_a_training_sees_all_then_draws_and_ends_with_all():
    """First and last epochs are whole; in between only examples below the mean loss are missing."""
    loader, before = fresh(full_epochs=2), None
    for epoch in range(EPOCHS):
        expected = len(loader)
        seen = one_pass(loader)
        numbers = {i for i, _ in seen}
        assert -(-len(seen) // 5) == expected
        if epoch in (0, 4, 5):
            assert numbers == set(range(N))
            assert {w for _, w in seen} == {1.0}
        else:
            light = dynamic.well_learned(before)
            assert light.sum() > 4
            missing = sorted(set(range(N)) - numbers)
            assert len(missing) == round(light.sum() * 0.5)
            assert light[missing].all()
            heavy = light.sum() / (light.sum() - len(missing))
            for i, w in seen:
                assert w == pytest.approx(heavy if light[i] else 1.0, rel=1e-6)
        before = loader.sampler.tracker.last_seen()
    assert loader.progress == 1.0
    assert len(loader.table) == N


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_is_the_same_bit_for_bit(workers):
    """Wherever it stops: the same examples with the same weights in the same order."""
    whole = fresh(workers)
    expected = [one_pass(whole) for _ in range(EPOCHS)]
    assert any(len(e) < N for e in expected)
    for epoch, batches in ((0, 2), (1, 1), (2, 3), (2, len(expected[2]) // 5 + 1), (5, 4)):
        loader = fresh(workers)
        for _ in range(epoch):
            one_pass(loader)
        begun = one_pass(loader, batches)
        state = pickle.loads(pickle.dumps(loader.state_dict()))
        resumed = fresh(workers)
        resumed.load_state_dict(state)
        assert begun + one_pass(resumed) == expected[epoch]
        assert [one_pass(resumed) for _ in range(epoch + 1, EPOCHS)] == expected[epoch + 1 :]
        assert resumed.table.digest() == whole.table.digest()


def test_a_framework_that_reads_ahead_gets_the_weights_of_its_batch():
    """At the last batch of an epoch the sampler stands in the next one already."""
    options = {"mode": "dynamic", "epochs": EPOCHS, "prune_ratio": 0.5}
    sampler = DualScoreSampler(DATA, **options)
    loader, plain = index_batches(DataLoader(DATA, batch_size=5), sampler), fresh()
    for epoch in range(EPOCHS):
        batches, seen = iter(loader), []
        ahead = next(batches)
        while ahead is not None:
            x, y, index = ahead
            ahead = next(batches, None)
            assert len(sampler) >= 0  # asked in between by progress bars
            seen += zip(index.tolist(), sampler.weight(index).tolist(), strict=True)
            sampler.update(index, logits_of(x, y, epoch), y)
        assert seen == one_pass(plain)


class Backwards:
    """A user's own batches."""

    def __iter__(self):
        yield from torch.arange(N - 1, -1, -1).split(5)

    def __len__(self):
        return -(-N // 5)


def test_batches_of_ones_own_are_filtered():
    """The order stays the user's; what is left out and what it weighs is drawn as ever."""
    inner = DataLoader(DATA, batch_sampler=[b.tolist() for b in Backwards()])
    loader = DualScoreSampler.wrap(inner, 0.5, mode="dynamic", epochs=EPOCHS)
    plain = fresh()
    for _ in range(EPOCHS):
        seen = one_pass(loader)
        numbers = [i for i, _ in seen]
        assert numbers == sorted(numbers, reverse=True)
        assert sorted(seen) == sorted(one_pass(plain))


def test_a_schedule_follows_the_progress():
    """The number of steps is not known ahead, and a rate must still end at zero."""
    loader, done = fresh(), []
    with pytest.raises(RuntimeError, match="progress of the wrapped loader"):
        loader.total_steps(EPOCHS)
    for _ in range(EPOCHS):
        for x, y in loader:
            loader.record(logits_of(x, y, 0), y)
            done.append(loader.progress)
    assert done == sorted(set(done))
    assert done[-1] == 1.0
    with pytest.raises(RuntimeError, match="total_steps"):
        _ = DualScoreSampler.wrap(DataLoader(Items(), shuffle=True), 0.5).progress


def _rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    order = DistributedSampler(DATA, num_replicas=2, rank=rank)
    loader = DualScoreSampler.wrap(
        DataLoader(DATA, batch_size=4, sampler=order), 0.5, mode="dynamic", epochs=EPOCHS
    )
    seen = [one_pass(loader) for _ in range(EPOCHS)]
    Path(f"{folder}/{rank}.json").write_text(json.dumps([seen, loader.table.digest()]))
    leave()


def test_two_ranks_draw_alike(tmp_path):
    """Each trains on its half of one draw, in as many batches as the other."""
    mp.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    (a, digest), (b, other) = (json.loads((tmp_path / f"{r}.json").read_text()) for r in (0, 1))
    assert digest == other
    alone = fresh()
    for mine, theirs in zip(a, b, strict=True):
        assert len(mine) == len(theirs)
        together = {tuple(pair) for pair in mine + theirs}
        assert sorted(together) == sorted(one_pass(alone))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "soft"}, ValueError, r"mode must be one of \('static', 'dynamic'\), got 'soft'"),
        ({"epochs": None}, TypeError, "epochs must be the number of passes .* got None"),
        ({"epochs": 1}, ValueError, "epochs must be at least 2 for mode 'dynamic', got 1"),
        ({"full_epochs": 7}, ValueError, r"full_epochs must be in \[0, 6\], got 7"),
        ({"score_epochs": 3}, ValueError, "score_epochs must not be given for mode 'dynamic'"),
        ({"redraw": True}, ValueError, "redraw must not be given for mode 'dynamic'"),
        ({"mode": "static"}, ValueError, "epochs must not be given for mode 'static', got 6"),
        ({"c_d": "cifar"}, ValueError, "c_d must be a positive number or one of"),
        ({"select_options": {"by": "aum"}}, ValueError, "the table has no column 'aum'"),
    ],
)
def test_what_does_not_fit_the_mode_is_refused(options, error, message):
    """Before an epoch is spent, not when its scores are wanted."""
    with pytest.raises(error, match=message):
        fresh(**options)


def test_states_of_the_other_mode_are_refused():
    """A run that goes on by other rules would look like one that has been resumed."""
    static = DualScoreSampler.wrap(
        DataLoader(DATA, batch_size=5, shuffle=True), 0.5, score_epochs=EPOCHS, window=EPOCHS
    )
    with pytest.raises(ValueError, match="mode"):
        static.load_state_dict(fresh().state_dict())
