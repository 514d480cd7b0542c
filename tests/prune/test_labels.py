"""Scores are used on the data that they belong to: labels are compared where both know them."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from data_prune import DualScoreSampler, ScoreTable, prune_dataset
from data_prune.load.labels import known_labels

LABELS = np.arange(60) % 7


def table(labels=LABELS):
    rng = np.random.default_rng(0)
    n = len(labels)
    return ScoreTable(np.arange(n), labels, rng.uniform(size=n), rng.uniform(size=n), np.full(n, 9))


class Pictures(torch.utils.data.Dataset):
    """As torchvision's: a list of labels beside the examples."""

    def __init__(self, labels):
        self.targets = list(labels)

    def __len__(self):
        return len(self.targets)


def tensors(labels):
    return TensorDataset(torch.zeros(len(labels), 2), torch.as_tensor(labels))


KINDS = {
    "targets": lambda y: Pictures(y.tolist()),
    "tensors": tensors,
    "subset": lambda y: Subset(tensors(y[::-1].copy()), list(range(len(y)))[::-1]),
    "joined": lambda y: ConcatDataset([tensors(y[:20]), Pictures(y[20:].tolist())]),
    "datasets": lambda y: Dataset.from_dict({"text": ["a"] * len(y), "label": y.tolist()}),
    "formatted": lambda y: Dataset.from_dict({"labels": y.tolist()}).with_format("torch"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_another_order_of_the_data_is_refused(kind):
    """After a shuffle 47 % of the kept examples were the right ones, without a word."""
    assert known_labels(KINDS[kind](LABELS)).tolist() == LABELS.tolist()
    DualScoreSampler(KINDS[kind](LABELS), 0.5, table=table())
    mixed = np.random.default_rng(0).permutation(LABELS)
    with pytest.raises(ValueError, match=r"of 60 examples have another label in the data set"):
        DualScoreSampler(KINDS[kind](mixed), 0.5, table=table())
    DualScoreSampler(KINDS[kind](mixed), 0.5, table=table(), check_labels=False)


def test_a_pruned_data_set_is_the_one_that_was_scored():
    data = KINDS["datasets"](LABELS)
    prune_dataset(data, table(), 0.5)
    with pytest.raises(ValueError, match="another order"):
        prune_dataset(data.shuffle(seed=1), table(), 0.5)
    assert len(prune_dataset(data.shuffle(seed=1), table(), 0.5, check_labels=False)) == 30


@pytest.mark.parametrize(
    "data",
    [
        range(60),
        TensorDataset(torch.zeros(60, 2), torch.rand(60)),
        TensorDataset(torch.zeros(60), torch.zeros(60, 3, dtype=torch.int64)),
        TensorDataset(torch.zeros(60)),
        Dataset.from_dict({"label": ["a"] * 60}),
    ],
)
def test_what_has_no_known_labels_is_not_judged(data):
    """Soft labels, names, bare ranges: nothing to compare."""
    assert known_labels(data) is None
    DualScoreSampler(data, 0.5, table=table())


def test_labels_that_one_side_does_not_know_are_passed_over():
    """-1 means unknown on either side."""
    some = LABELS.copy()
    some[::3] = -1
    DualScoreSampler(tensors(LABELS), 0.5, table=table(some))
    DualScoreSampler(tensors(some), 0.5, table=table())
