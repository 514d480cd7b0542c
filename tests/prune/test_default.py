"""The default selection: ours, and not the paper's."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader, TensorDataset

from data_prune import DualScoreSampler, DualTracker, ScoreTable
from data_prune.select.survey import BINS, floors, prob_bins
from prune.tables import METHODS, make_table
from reference import dual as naive


def noisy_table(n=2000, wrong=0.2, seed=0, classes=4):
    """Right labels are learned, each class to its own height; wrong ones stay improbable."""
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=n)
    bad = rng.random(n) < wrong
    height = np.array([0.95, 0.8, 0.6, 0.3, 0.9, 0.7])[label]
    prob = np.where(bad, 0.15 * rng.random(n) * height, height * rng.beta(8, 1.5, n))
    score = (1 - prob) * rng.uniform(0.02, 0.2, n)
    return make_table(n, label=label, mean_prob=prob, score=score), bad


def test_what_its_class_hardly_believes_is_left_out():
    """A class that is learned to 0.3 is not the rubbish of one that is learned to 0.95."""
    table, bad = noisy_table()
    aside = naive.set_aside(table.mean_prob, table.label)
    assert aside[bad].all()
    for ratio in (0.3, 0.5, 0.9):
        kept = table.select(ratio)
        # A bin is a hundredth of a probability: only what lies that close to the floor may differ.
        assert aside[kept].mean() < 0.01
        assert not bad[kept].any()
        shares = np.bincount(table.label[kept]) / np.bincount(table.label)
        np.testing.assert_allclose(shares, 1 - ratio, atol=0.01)
    settings = table.plan(0.5).settings
    assert settings["set_aside"] == pytest.approx(aside.sum(), rel=0.02)
    assert (settings["method"], settings["per_class"]) == ("plausible", True)


@pytest.mark.parametrize("options", [{}, {"method": "beta", "per_class": True}, {"keep": [900]}])
def test_a_class_that_was_never_seen_keeps_its_least(options):
    """`min_per_class` holds for labels of a frame that no epoch recorded; -1 is no class."""
    table, _ = noisy_table()
    label, prob, score = table.label.copy(), table.mean_prob.copy(), table.score.copy()
    label[:30], label[30:60] = 9, -1
    prob[:60] = score[:60] = np.nan
    table = dataclasses.replace(table, label=label, mean_prob=prob, score=score)
    with pytest.warns(UserWarning, match="60 of 2000 examples have no complete window"):
        kept = table.select(0.8, min_per_class=2, **options)
    assert (label[kept] == 9).sum() == 2
    assert (label[kept] == -1).sum() == 0
    assert len(kept) == 400


def crowded_table(n=4000, wrong=0.2, seed=0):
    """Wrong labels crowd far below; hard right ones reach down to a fifth of the median."""
    rng = np.random.default_rng(seed)
    label, bad, hard = rng.integers(3, size=n), rng.random(n) < wrong, rng.random(n) < 0.15
    height = np.array([0.95, 0.6, 0.4])[label]
    right = np.where(hard, rng.uniform(0.2, 0.9, n), rng.uniform(0.9, 1.05, n))
    prob = height * np.where(bad, 0.06 * rng.random(n), right)
    score = (1 - prob) * np.where(bad, 0.02, 0.1)
    return make_table(n, label=label, mean_prob=prob, score=score), bad


@pytest.mark.parametrize("wrong", [0.1, 0.2, 0.4])
def test_hard_examples_above_the_gap_stay_eligible(wrong):
    """A long training on much data needs them: without them a random half was better."""
    table, bad = crowded_table(wrong=wrong)
    share = naive.gap(table.mean_prob, table.label)
    assert 0.07 < share < 0.25
    aside = naive.set_aside(table.mean_prob, table.label, share)
    halved = naive.set_aside(table.mean_prob, table.label)
    assert bad[aside].mean() > 0.98 > bad[halved].mean() + 0.01
    assert aside[bad].all()
    # A bin of probabilities that straddles the gap may fall to either side.
    assert table.plan(0.3).settings["set_aside"] == pytest.approx(aside.sum(), abs=0.01 * len(bad))


def test_without_a_crowd_half_the_median_is_the_floor():
    table, _ = crowded_table(wrong=0.0)
    assert naive.gap(table.mean_prob, table.label) == 0.5
    aside = naive.set_aside(table.mean_prob, table.label)
    assert table.plan(0.3).settings["set_aside"] == pytest.approx(
        aside.sum(), abs=0.01 * len(aside)
    )


@pytest.mark.parametrize(("faster", "aside"), [(1.0, True), (1.2, True), (1.4, False)])
def test_hard_labels_that_move_are_not_taken_for_wrong_ones(faster, aside):
    """Clean data have improbable labels too: those that are learned last, and they move most."""
    table, low = noisy_table(wrong=0.1, classes=1)
    moved = np.random.default_rng(1).uniform(0.02, 0.2, len(table))
    moved *= 0.11 / np.where(low, moved[low].mean(), moved[~low].mean())
    score = (1 - table.mean_prob) * np.where(low, faster * moved, moved)
    table = make_table(len(table), label=table.label, mean_prob=table.mean_prob, score=score)
    assert (table.plan(0.5).settings["set_aside"] > 0) == aside
    assert (low[table.select(0.5)].mean() == 0) == aside


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
def test_the_fewer_stay_the_more_typical_they_are(ratio):
    """The equation of the docstring, against draws by score and the mean over the believed."""
    table, _ = noisy_table(classes=1)
    aside = naive.set_aside(table.mean_prob, table.label)
    rest = np.flatnonzero(~aside)
    kept = round(len(table) * (1 - ratio))
    rng = np.random.default_rng(0)
    weight = table.score[rest] / table.score[rest].sum()
    hard = np.mean(
        [table.mean_prob[rng.choice(rest, kept, replace=False, p=weight)].mean() for _ in range(5)]
    )
    wanted = (1 - ratio) * hard + ratio * table.mean_prob[rest].mean()
    got = np.mean([table.mean_prob[table.select(ratio, seed=s)].mean() for s in range(5)])
    assert got == pytest.approx(wanted, abs=0.01)


def test_the_draw_follows_beta_times_score_among_the_believed():
    """Inclusion frequencies of one class against exact ones by scipy's density."""
    prob = np.array([0.02, 0.4, 0.6, 0.8, 0.95, 0.7])
    score = np.array([0.5, 0.08, 0.10, 0.05, 0.03, 0.04])
    table, rounds = make_table(6, classes=1, score=score, mean_prob=prob), 2000
    plan = table.plan(0.5)
    weights = stats.beta.pdf(prob[1:], plan.alpha, plan.beta) * score[1:]
    exact = np.array([0.0, *naive.inclusion_probabilities(weights, 3)])
    drawn = np.zeros(6)
    for seed in range(rounds):
        drawn[dataclasses.replace(plan, seed=seed).draw(table.columns())] += 1
    np.testing.assert_array_equal(plan.draw(table.columns()), table.select(0.5))
    spread = np.sqrt(exact * (1 - exact) / rounds)
    assert (np.abs(drawn / rounds - exact) <= 5 * spread + 1 / rounds).all()


def test_where_the_believed_do_not_suffice_the_more_probable_follow():
    """Keeping 90 % of data that are 40 % wrong must keep wrong ones, and not at random."""
    table, bad = noisy_table(wrong=0.4, classes=1)
    kept = table.select(0.1)
    assert len(kept) == 1800
    assert np.isin(np.flatnonzero(~bad), kept).mean() > 0.999
    left = np.setdiff1d(np.arange(2000), kept)
    wrong_kept = np.intersect1d(kept, np.flatnonzero(bad))
    assert table.mean_prob[left].max() <= table.mean_prob[wrong_kept].min()


def test_without_labels_and_with_unseen_examples():
    """Streams without labels have one median, and what was never seen comes last."""
    table, _ = noisy_table(500, classes=1)
    prob, score = table.mean_prob.copy(), table.score.copy()
    prob[:100] = score[:100] = np.nan
    table = make_table(500, label=np.full(500, -1), mean_prob=prob, score=score)
    with pytest.warns(UserWarning, match="100 of 500 examples have no complete window"):
        kept = table.select(0.5)
    assert len(kept) == 250
    assert kept.min() >= 100
    with pytest.warns(UserWarning, match="no complete window"):
        assert len(table.select(0.1)) == 450


@pytest.mark.parametrize("method", [m for m in METHODS if m != "ccs"])
@pytest.mark.parametrize("ratio", [0.5, 0.8, 0.9, 0.95])
def test_no_class_is_emptied(method, ratio):
    """Four examples of a class are its whole share of a data set: one of them stays."""
    sizes = np.array([5000, 1000, 200, 40, 8, 4])
    label = np.repeat(np.arange(6), sizes)
    table = make_table(len(label), label=label)
    kept = table.select(ratio, method=method, per_class=True)
    counts = np.bincount(label[kept], minlength=6)
    assert counts.min() >= 1
    assert counts.sum() == round(len(label) * (1 - ratio))
    assert np.abs(counts - sizes * (1 - ratio)).max() <= 2
    more = table.select(ratio, method=method, per_class=True, min_per_class=3)
    assert np.bincount(label[more]).min() >= 3
    assert len(more) == len(kept)


def test_more_classes_than_places_take_what_there_is():
    """1,000 classes and 100 places: the count stays exact."""
    table = make_table(2000, label=np.arange(2000) % 1000)
    assert len(table.select(0.95)) == 100
    assert np.bincount(table.label[table.select(0.5)], minlength=1000).min() == 1


def test_the_papers_numbers_take_the_papers_rule():
    """Whoever gives c_D, the authors' sum or the preset gets Cho et al., as before."""
    table = make_table()
    paper = table.select(0.7, method="beta", c_d=4.0)
    for options in ({"preset": "paper"}, {"c_d": 4.0}, {"method": "beta"}, {"c_d": "cifar100"}):
        np.testing.assert_array_equal(table.select(0.7, **options), paper)
    assert table.plan(0.7, beta_sum=16.0).method == "beta"
    assert not np.array_equal(table.select(0.7), paper)
    sampler = DualScoreSampler(range(1000), 0.7, table=table)
    np.testing.assert_array_equal(sampler.kept, table.select(0.7))
    sampler = DualScoreSampler(range(1000), 0.7, table=table, preset="paper")
    np.testing.assert_array_equal(sampler.kept, paper)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "cifar"}, "preset must be 'paper' or None, got 'cifar'"),
        ({"preset": "paper", "method": "top"}, "method must be 'beta' for preset 'paper'"),
        ({"method": "plausible", "c_d": 4.0}, "method must be 'beta' where c_d or beta_sum"),
        ({"min_per_class": -1}, "min_per_class must not be negative, got -1"),
    ],
)
def test_contradictions_are_refused(options, message):
    """Two rules at once are a misunderstanding, not a choice."""
    with pytest.raises(ValueError, match=message):
        make_table(50).select(0.5, **options)


def digits_with_wrong_labels():
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.from_numpy(data.data / 16).float()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], torch.from_numpy(data.target)[order].long()
    g = torch.Generator().manual_seed(1)
    hit = torch.rand(1300, generator=g) < 0.2
    given = torch.where(hit, torch.randint(10, (1300,), generator=g), y[:1300])
    return x[:1300], given, (given != y[:1300]).numpy(), x[1300:], y[1300:]


def train(x, y, epochs, record=None):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(32):
            logits = net(x[rows])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, y[rows]).backward()
            optimizer.step()
            if record is not None:
                record.update(rows, logits.detach(), y[rows])
        if record is not None:
            record.end_epoch()
    return net


def test_wrong_labels_of_real_digits_do_not_beat_us():
    """20 % redrawn: the default keeps hardly any of them, and ends points above random."""
    x, y, wrong, test_x, test_y = digits_with_wrong_labels()
    tracker = DualTracker(len(x), epochs=10, window=5)
    train(x, y, 10, tracker)
    table, share, accuracy = tracker.table(), {}, {}
    for name, options in {"default": {}, "random": {"method": "random"}}.items():
        kept = torch.from_numpy(table.select(0.5, **options))
        share[name] = wrong[kept].mean()
        net = train(x[kept], y[kept], 20)
        accuracy[name] = float((net(test_x).argmax(1) == test_y).float().mean())
    assert share["default"] < 0.02 < 0.1 < share["random"]
    assert accuracy["default"] > accuracy["random"] + 0.03


def test_the_loader_answers_before_the_data_is_thrown_away():
    """One call between scoring and pruning, with the loader's own ratio and rule."""
    data = TensorDataset(torch.randn(400, 3), torch.arange(400) % 2)
    model = torch.nn.Linear(3, 2)
    loader = DualScoreSampler.wrap(
        DataLoader(data, batch_size=50, shuffle=True), 0.5, score_epochs=2, window=2, method="top"
    )
    with pytest.raises(RuntimeError, match="0 of 2 scoring epochs"):
        loader.beats_random(lambda kept, held, seed: 0.0)
    for _ in range(2):
        for x, y in loader:
            loader.record(model(x), y)
    top = loader.table.select(0.5, method="top")

    def metric(kept, held, seed):
        assert not np.intersect1d(kept, held).size
        return float(np.isin(kept, top).mean())

    answer = loader.beats_random(metric, repeats=3)
    assert answer.verdict == "yes"
    assert len(loader.kept) == 200
    assert isinstance(loader.table, ScoreTable)


def test_the_floor_is_half_the_median_of_the_class() -> None:
    """Not of the mean, nor of a third: with other floors other labels are set aside."""
    probabilities = np.array([0.02, 0.1, 0.2, 0.3, 0.8, 0.82, 0.84, 0.86, 0.88])
    counts = np.bincount(prob_bins(probabilities), minlength=BINS)[None]
    lowest, believed = floors(counts)
    assert abs(int(lowest[0]) - int(prob_bins(np.array([0.4]))[0])) <= 1
    assert believed.tolist() == [5]
