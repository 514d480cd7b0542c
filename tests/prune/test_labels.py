"""Scores are used on the data that they belong to: labels are compared where both know them."""

import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from data_prune import DualScoreSampler, ScoreTable, prune_dataset
from data_prune.load.labels import known_labels, matched

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
        Dataset.from_dict({"label": [["a", "b"]] * 60}),
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
    for data, scores in ((tensors(LABELS), table(some)), (tensors(some), table())):
        assert len(DualScoreSampler(data, 0.5, table=scores)) == round(len(LABELS) / 2)


NAMES = np.array(["cat", "dog", "eel"], dtype=object)


def test_names_are_compared_with_names_alone():
    """A data frame has names where the loss had numbers: nothing to compare then."""
    named = Dataset.from_dict({"label": NAMES[LABELS % 3].tolist()})
    assert known_labels(named)[:4].tolist() == ["cat", "dog", "eel", "cat"]
    matched(table(), named)
    matched(table(NAMES[LABELS % 3]), named)
    matched(table(NAMES[LABELS % 3]), Pictures(LABELS.tolist()))
    with pytest.raises(ValueError, match=r"have another label .* \(the first: 0, eel and cat\)"):
        matched(
            table(NAMES[LABELS % 3]), Dataset.from_dict({"label": NAMES[::-1][LABELS % 3].tolist()})
        )


def test_numbers_that_have_names_are_compared_by_them():
    """A ClassLabel of ``datasets`` is a number with a name: another order passed unseen."""
    column = ClassLabel(names=NAMES.tolist())
    data = Dataset.from_dict({"labels": (LABELS % 3).tolist()}).cast_column("labels", column)
    matched(table(NAMES[LABELS % 3]), data)
    matched(table(), Dataset.from_dict({"labels": LABELS.tolist()}))
    with pytest.raises(ValueError, match=r"have another label .* \(the first: 0, cat and eel\)"):
        matched(table(NAMES[::-1][LABELS % 3]), data)


def make_frame(library, columns):
    module = pytest.importorskip("pyarrow" if library == "arrow" else library)
    if library == "datasets":
        return module.Dataset.from_dict(columns)
    return module.table(columns) if library == "arrow" else module.DataFrame(columns)


@pytest.mark.parametrize("library", ["datasets", "pandas", "polars", "arrow"])
def test_rows_are_found_by_their_keys(library, tmp_path):
    """A stream's table is in the order of first sight; by position another example would go."""
    order = np.random.default_rng(1).permutation(60)
    columns = {"id": [f"k{i}" for i in order], "label": LABELS[order].tolist()}
    data, scores = make_frame(library, columns), table()
    named = ScoreTable(**{**scores.arrays(), "key": np.array([f"k{i}" for i in range(60)])})
    pruned = prune_dataset(data, named, 0.5, method="top", keys="id", save_to=tmp_path / "small")
    expected = {f"k{i}" for i in scores.select(0.5, method="top")}
    found = pruned["id"].to_pylist() if library == "arrow" else list(pruned["id"])
    assert set(found) == expected
    assert type(pruned) is type(data)
    assert set(json.loads((tmp_path / "small.json").read_text())["kept"]) == expected
    with pytest.raises(FileExistsError, match="small exists and is not overwritten"):
        prune_dataset(data, named, 0.5, keys="id", save_to=tmp_path / "small")
    with pytest.raises(ValueError, match=r"keys must say which example is whose.*first: 'k0'"):
        prune_dataset(data, named, 0.5)
    with pytest.raises(ValueError, match=r"the data has no column 'uid'; it has \['id', 'label'\]"):
        prune_dataset(data, named, 0.5, keys="uid")
    with pytest.raises(
        ValueError, match="keys must be in the table of 60 examples, got 'x' and 59"
    ):
        prune_dataset(data, named, 0.5, keys=["x", *(f"y{i}" for i in range(59))])


def test_a_sampler_takes_rows_by_key_too():
    """Integers that are all the numbers of the rows say themselves which row is whose."""
    scores, order = table(), np.random.default_rng(1).permutation(60)
    whole = DualScoreSampler(tensors(LABELS), 0.5, table=scores.take(order), method="top")
    assert whole.kept.tolist() == scores.select(0.5, method="top").tolist()
    part = np.arange(0, 60, 2)
    some = DualScoreSampler(tensors(LABELS[part]), 0.5, table=scores, keys=part, method="top")
    assert some.kept.tolist() == scores.take(part).select(0.5, method="top").tolist()
    with pytest.raises(ValueError, match="keys must name 60 examples, got 30"):
        DualScoreSampler(tensors(LABELS), 0.5, table=scores, keys=part)
    with pytest.raises(
        TypeError, match="'id' is a column's name, and TensorDataset has no columns"
    ):
        DualScoreSampler(tensors(LABELS), 0.5, table=scores, keys="id")
    with pytest.raises(ValueError, match="there is no table"):
        DualScoreSampler(tensors(LABELS), 0.5, keys=part)
