"""Rows that stay or go together: one row for each group, and which of them fill the quotas."""

from functools import reduce

import numpy as np
import pytest

from data_prune.select import together
from data_prune.select.planner import Options
from data_prune.select.survey import FORCED, GROUP, WEIGHT
from data_prune.select.together import Members, fill, plan_groups

NAMES = ["score", "mean_prob", WEIGHT]
ROWS = {
    "id": np.arange(6, dtype=np.uint64),
    GROUP: np.array([7, 3, 7, 3, 9, 7], dtype=np.uint64),
    "label": np.array([1, 0, 0, 2, -1, 1]),
    "score": np.array([0.1, 0.2, 0.3, np.nan, np.nan, 0.5]),
    "mean_prob": np.array([0.5, 0.6, 0.7, 0.2, np.nan, 0.9]),
    WEIGHT: np.array([1.0, 2.0, 3.0, 4.0, 5.0, 5.0]),
    FORCED: np.array([0, 1, 0, 0, -1, 0]),
}


def parts(pieces: int) -> list[dict[str, np.ndarray]]:
    cuts = np.array_split(np.arange(6), pieces)
    return [{name: values[cut] for name, values in ROWS.items()} for cut in cuts]


@pytest.mark.parametrize("pieces", [1, 2, 6])
@pytest.mark.parametrize("enough", [0, 1 << 19])
def test_a_group_is_the_mean_of_its_rows(monkeypatch, pieces: int, enough: int) -> None:
    """By hand, in however many chunks the rows come, and however often sums are added up."""
    monkeypatch.setattr(together, "ENOUGH", enough)
    members = [Members.of(chunk, NAMES) for chunk in parts(pieces)]
    rows = reduce(lambda a, b: a.merge(b), members).added_up()
    columns = rows.columns(NAMES)
    assert columns["id"].tolist() == [3, 7, 9]
    assert rows.sums["size"].tolist() == [2, 3, 1]
    np.testing.assert_allclose(columns["score"], [0.2, 0.3, np.nan])
    np.testing.assert_allclose(columns["mean_prob"], [0.4, 0.7, np.nan])
    np.testing.assert_allclose(columns[WEIGHT], [3.0, 3.0, 5.0])
    assert columns["label"].tolist() == [0, 1, -1]  # of two alike the smaller
    assert rows.forced().tolist() == [1, 0, -1]


def test_sums_are_added_up_when_their_pairs_have_doubled(monkeypatch) -> None:
    """Memory holds the groups and never the rows; more often would take quadratic time."""
    monkeypatch.setattr(together, "ENOUGH", 2)
    one = Members.of({GROUP: np.array([1, 2], np.uint64), "label": np.array([0, 0])}, [])
    twice = one.merge(one)  # four pairs: not above twice two
    assert (len(twice.ids), twice.done) == (4, 0)
    thrice = twice.merge(one)
    assert (len(thrice.ids), thrice.done) == (2, 2)
    assert thrice.sums["size"].tolist() == [3, 3]


def test_a_group_of_both_lists_is_refused() -> None:
    """Half of a patient cannot stay."""
    both = {**ROWS, FORCED: np.array([1, 0, -1, 0, 0, 0])}
    with pytest.raises(ValueError, match="1 groups have examples in keep and in drop"):
        Members.of(both, NAMES).forced()


class Ranked:
    """A plan that ranks by a number, in classes by label."""

    def __init__(self, priority: list[int], index: list[int], classes: int, believed) -> None:
        self.priority, self.index = np.array(priority, dtype=np.uint64), np.array(index)
        self.believed = np.ones(len(index), dtype=bool) if believed is None else believed
        self.quotas, self.least = np.zeros(classes, dtype=np.int64), 0

    def chunk(self, columns):
        return self.priority, columns["id"], None

    def place(self, columns):
        return self.index, self.believed


def filled(priority, index, size, forced, kept, believed=None) -> list[int]:
    columns = {"id": np.arange(len(size), dtype=np.uint64)}
    size, forced = np.array(size), np.array(forced, dtype=np.int8)
    plan = Ranked(priority, index, max(index) + 1, believed)
    return np.flatnonzero(fill(plan, columns, size, forced, kept)).tolist()


def test_groups_fill_their_classes_in_the_order_of_their_priority() -> None:
    """A group is taken if that brings the number nearer than leaving it out."""
    # Of one class: 4 rows to keep. 5 are nearer to it than none; then nothing is left.
    assert filled([9, 8, 7], [0, 0, 0], [5, 2, 2], [0, 0, 0], 4) == [0]
    # 9 would be further away than none is; 2 and 2 fit.
    assert filled([9, 8, 7], [0, 0, 0], [9, 2, 2], [0, 0, 0], 4) == [1, 2]
    # Exactly twice what is left is as near as none: it is taken.
    assert filled([9, 8, 7], [0, 0, 0], [8, 2, 2], [0, 0, 0], 4) == [0]
    # Ties go by the smaller identity.
    assert filled([5, 5, 5], [0, 0, 0], [2, 2, 2], [0, 0, 0], 4) == [0, 1]
    # Two classes of four rows: each keeps two, whatever the other's priorities are.
    assert filled([9, 8, 1, 2], [0, 0, 1, 1], [2, 2, 2, 2], [0, 0, 0, 0], 4) == [0, 3]
    # Of a class that is believed in nothing, nothing has to stay while others have enough.
    doubted = np.array([False, False, True, True])
    assert filled([9, 8, 1, 2], [0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], 2, doubted) == [2, 3]
    assert filled([9, 8, 1, 2], [0, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0], 2, doubted) == [0, 3]
    assert filled([9, 8, 1, 2], [0, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0], 3, doubted) == [0, 2, 3]
    assert filled([9, 0], [0, 0], [2, 2], [0, 0], 2) == [0]
    # What a class has left over goes to another one.
    assert filled([9, 8, 7], [0, 1, 1], [5, 1, 1], [0, 0, 0], 2) == [1, 2]


def test_lists_of_groups_come_first() -> None:
    """What must stay takes its room, what must go is never taken."""
    assert filled([9, 8, 7], [0, 0, 0], [2, 2, 2], [-1, 0, 1], 4) == [1, 2]
    assert filled([9, 8, 7], [0, 0, 0], [2, 2, 2], [0, 0, 1], 2) == [2]
    with pytest.raises(ValueError, match="keep names 4 examples"):
        filled([9, 8], [0, 0], [4, 4], [1, 0], 3)
    # Each is more than twice what is to be kept: the smallest, never one that must go.
    assert filled([9, 8, 7, 6], [0] * 4, [9, 7, 7, 3], [0, 0, 0, -1], 2) == [1]


def test_a_plan_of_groups_counts_rows_and_groups(monkeypatch) -> None:
    """A report says how many rows stay, and in how many groups."""
    columns = {name: values for name, values in ROWS.items() if name not in (FORCED, WEIGHT)}
    how = Options(method="top", columns=("score", "mean_prob"))
    plan = plan_groups(lambda f, merge: f(columns), 0.5, how)
    assert plan.together.tolist() == [7]
    assert plan.quotas.tolist() == [3]
    told = {name: plan.settings[name] for name in ("examples", "kept", "groups", "kept_groups")}
    assert told == {"examples": 6, "kept": 3, "groups": 3, "kept_groups": 1}
    drafted = []
    plan_all = together.plan_rows
    monkeypatch.setattr(
        together, "plan_rows", lambda *a, kept: drafted.append(kept) or plan_all(*a, kept=kept)
    )
    for ratio in (0.5, 0.1, 0.8):  # of the three groups as many as of the rows, and never none
        plan_groups(lambda f, merge: f(columns), ratio, how)
    assert drafted == [2, 3, 1]
    with pytest.raises(ValueError, match="groups do not combine with method 'ccs'"):
        plan_groups(lambda f, merge: f(columns), 0.5, Options(method="ccs", columns=("aum",)))
