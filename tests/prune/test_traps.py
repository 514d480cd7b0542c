"""Conditions under which a recording or a comparison misleads, and what then is done about it."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from data_prune import DualScoreSampler, DualTracker, ScoreTable

ROOT = Path(__file__).parents[2]


def scores_of(history, window):
    """Scores from a (T, N) history of probabilities."""
    tracker = DualTracker(len(history[0]), epochs=len(history), window=window)
    for row in history:
        tracker.update_probability(np.arange(len(row)), np.asarray(row, dtype=np.float32))
        tracker.end_epoch()
    return tracker.table().score


def test_wrong_labels_learned_late_gain_with_a_longer_recording():
    """Never learned within T: near zero. Learned after it: a longer T takes them for uncertain."""
    epochs = np.arange(40)[:, None]
    learned_at = np.array([3.0, 25.0])  # an ordinary example, and one with a wrong label
    history = 1 / (1 + np.exp(-(epochs - learned_at)))
    short, long = scores_of(history[:12], 5), scores_of(history, 5)
    assert short[1] < 1e-3 * short[0]
    assert long[1] > 0.5 * long[0]


def test_share_of_wrong_labels_is_reported_for_every_number_of_epochs():
    """The table of docs/pruning_results.md is the mean over the seeds of the recorded rows."""
    with (ROOT / "experiments" / "results" / "prune_noise_epochs.csv").open() as file:
        rows = list(csv.DictReader(file))
    text = (ROOT / "docs" / "pruning_results.md").read_text()
    for method in ("random", "EL2N", "DUAL top-k", "DUAL + Beta"):
        shares = [
            np.mean(
                [
                    100 * float(r["wrong_labels"])
                    for r in rows
                    if (r["method"], r["prune_ratio"], r["epochs"]) == (method, "0.9", epochs)
                ]
            )
            for epochs in ("5", "10", "20", "40")
        ]
        line = next(x for x in text.splitlines() if x.startswith(f"| {method}, 0.9 |"))
        shown = [float(cell) for cell in line.split("|")[2:-1]]
        np.testing.assert_allclose(shown, shares, atol=0.0501)


def test_the_label_of_the_loss_counts_not_that_of_the_data_set():
    """Noise put on the labels in the loop: the probability of the noisy label is recorded."""
    clean, used = torch.arange(8) % 4, (torch.arange(8) + 1) % 4
    data = TensorDataset(torch.arange(8)[:, None].float(), clean)
    loader = DualScoreSampler.wrap(
        DataLoader(data, batch_size=3, shuffle=True), 0.5, score_epochs=2, window=2
    )
    for _ in range(2):
        for x, _ in loader:
            index = x.squeeze(-1).long()
            logits = torch.zeros(len(x), 4)
            logits[torch.arange(len(x)), used[index]] = index + 1.0
            loader.record(logits, used[index])
    assert loader.table.label.tolist() == used.tolist()
    z = np.exp(np.arange(1.0, 9.0))
    np.testing.assert_allclose(loader.table.mean_prob, z / (z + 3), rtol=1e-5)


def test_dropout_inflates_the_uncertainty_and_an_evaluation_pass_does_not():
    """The documented way out: hand the logits of an evaluation pass to the tracker."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(20, 3))
    x, y, index = torch.randn(30, 20), torch.arange(30) % 3, torch.arange(30)
    spread = {}
    for training in (True, False):
        model.train(training)
        tracker = DualTracker(30, epochs=6, window=3)
        for _ in range(6):
            tracker.update(index, model(x), y)
            tracker.end_epoch()
        spread[training] = tracker.table().score
    assert spread[True].min() > 1e-3
    assert spread[False].max() < 1e-6


def test_a_tiny_last_batch_is_measured_by_itself_unless_it_is_dropped():
    """Two examples normalized by each other have other probabilities; drop_last leaves a gap."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    x, y = torch.randn(10, 4), torch.arange(10) % 3
    table = {}
    for size in (8, 10):
        tracker = DualTracker(10, epochs=2, window=2)
        for _ in range(2):
            for start in range(0, 10, size):
                part = torch.arange(start, min(start + size, 10))
                tracker.update(part, model(x[part]), y[part])
            tracker.end_epoch()
        table[size] = tracker.table()
    moved = np.abs(table[8].mean_prob - table[10].mean_prob)
    assert moved[8:].max() > 0.05
    dropping = DualScoreSampler.wrap(
        DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True, drop_last=True),
        0.1, score_epochs=2, window=2,
    )  # fmt: skip
    for _ in range(2):
        for a, b in dropping:
            dropping.record(model(a), b)
    assert dropping.coverage()["missing_per_epoch"] == [2, 2]


@pytest.mark.parametrize("anchor", [1, 10, 100])
def test_the_anchor_is_the_mean_over_as_many_top_scores_as_asked_for(anchor):
    """Ten odd examples of a noisy data set need not decide; ties at the edge go to lower keys."""
    rng = np.random.default_rng(0)
    score = np.round(rng.uniform(0, 0.3, 500), 2)
    prob = rng.beta(5, 2, 500)
    table = ScoreTable(np.arange(500), np.zeros(500, int), score, prob, np.full(500, 30))
    top = np.lexsort((np.arange(500), -score))[:anchor]
    assert table.plan(0.7, anchor=anchor).settings["mu_d"] == pytest.approx(prob[top].mean())


def test_every_compared_run_has_the_same_number_of_steps():
    """Apparent gains come from longer training: the published grid fixes the optimizer steps."""
    with (ROOT / "experiments" / "results" / "prune_fashion_mnist.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "report"]
    assert len(rows) > 100
    for noise in {row["noise"] for row in rows}:
        assert len({row["steps"] for row in rows if row["noise"] == noise}) == 1
