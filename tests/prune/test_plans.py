"""What a plan takes from all rows: strata, believed labels, counts that add up over chunks."""

from functools import reduce

import numpy as np
import pytest

from data_prune.select.beta import P_BINS, S_BINS, auto_c_d
from data_prune.select.planner import Options, plan_rows
from data_prune.select.strata import find_strata, stratum_budgets
from data_prune.select.survey import (
    BINS,
    FORCED,
    SHARE,
    STEPS,
    class_index,
    floors,
    merely_hard,
    movement,
    top_scores,
)


def rows(n: int = 120, unseen: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    score, p = rng.uniform(0.01, 0.3, n), rng.uniform(0.01, 0.99, n)
    score[:unseen] = np.nan
    return {
        "id": np.arange(n, dtype=np.uint64),
        "label": rng.integers(0, 3, n),
        "score": score,
        "mean_prob": p,
    }


def folded(columns: dict[str, np.ndarray], pieces: int):
    """Return how a function of chunks is applied and merged."""
    cuts = np.array_split(np.arange(len(columns["id"])), pieces)
    chunks = [{name: values[cut] for name, values in columns.items()} for cut in cuts]
    return lambda f, merge: reduce(merge, map(f, chunks))


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("cutoff", [0.0, 0.25])
def test_strata_are_ranges_of_equal_width_below_the_cut(cutoff: float, pieces: int) -> None:
    """The hardest go, and each range of difficulty gets the same budget."""
    columns, count, kept = rows(), 5, 40
    value = columns["score"]
    settings = {"by": "score", "strata": count, "examples": 120, "kept": kept, "prune_ratio": 0.6}
    found = find_strata(folded(columns, pieces), cutoff, settings)
    hardest = np.argsort(-np.nan_to_num(value, nan=-1.0), kind="stable")[: round(120 * cutoff)]
    expected = np.full(120, count)
    inside = np.setdiff1d(np.flatnonzero(~np.isnan(value)), hardest)
    low, high = value[inside].min(), value[inside].max()
    expected[inside] = np.minimum((value[inside] - low) / (high - low) * count, count - 1)
    expected[hardest] = count + 1
    assert found["strata"].of(columns, "score").tolist() == expected.tolist()
    budgets = stratum_budgets(np.bincount(expected[inside], minlength=count), kept)
    assert found["quotas"].tolist() == [*budgets.tolist(), 0, 0]
    assert settings["cutoff"] == cutoff


def test_cutoffs_are_the_published_ones_and_leave_enough() -> None:
    """Between the published ratios it is a line; what is not enough is refused."""
    columns = rows(unseen=0)
    for ratio, cutoff in (
        (0.1, 0.0),
        (0.5, 0.0),
        (0.55, 0.025),
        (0.6, 0.05),
        (0.7, 0.1),
        (0.85, 0.2),
        (0.9, 0.3),
    ):
        settings = {"by": "score", "strata": 4, "examples": 120, "kept": 9, "prune_ratio": ratio}
        find_strata(folded(columns, 1), None, settings)
        assert settings["cutoff"] == pytest.approx(cutoff)
    settings = {"by": "score", "strata": 4, "examples": 120, "kept": 90, "prune_ratio": 0.25}
    found = find_strata(folded(columns, 1), 0.25, settings)
    assert found["quotas"].sum() == 90
    for cutoff, message in (
        (0.26, "leaves 89 examples"),
        (1.0, "must be in"),
        (-0.1, "must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            find_strata(folded(columns, 1), cutoff, settings)


@pytest.mark.parametrize("options", [{}, {"c_d": "auto"}, {"c_d": "auto", "per_class": True}])
def test_plans_of_chunks_are_the_plan_of_all_rows(options: dict) -> None:
    """Memory, a stream and a cluster keep the same examples: counts add up."""
    columns = rows(900)
    how = Options(**options, columns=("score", "mean_prob"))
    whole, parts = (plan_rows(folded(columns, pieces), 0.7, how) for pieces in (1, 4))
    assert whole.settings == parts.settings
    assert whole.quotas.tolist() == parts.quotas.tolist()
    assert whole.settings["c_d"] != 4.0
    assert whole.draw(columns).tolist() == parts.draw(columns).tolist()


def test_rows_of_no_class_keep_no_least_number() -> None:
    """A label of -1 is unknown, not a class of which one example has to stay."""
    columns = rows(60, unseen=0)
    columns["label"][:2] = -1
    columns["mean_prob"][:2] = columns["score"][:2] = np.nan
    names = Options(columns=("score", "mean_prob"), class_names=["cat", "dog", "owl"])
    plan = plan_rows(folded(columns, 1), 0.9, names)
    assert plan.settings["quotas"].keys() == {"-1", "cat", "dog", "owl"}
    assert plan.settings["quotas"]["-1"] == 0


def believed_from(counts: np.ndarray) -> tuple[list[int], list[int]]:
    """Return the lowest bins that are believed, and how many rows, by the rule written out."""
    medians = [int((2 * row.cumsum() >= row.sum()).argmax()) for row in counts]
    half = SHARE**0.5
    crowd = np.zeros(STEPS)
    for row, median in zip(counts, medians, strict=True):
        for b, rows_there in enumerate(row):
            place = (b + 0.5) / (median + 0.5)
            if place <= half:
                crowd[min(int(place / half * STEPS), STEPS - 1)] += rows_there
    edge = [crowd[0], *crowd, crowd[-1]]
    smooth = [sum(edge[k : k + 3]) for k in range(STEPS)]
    fullest = smooth.index(max(smooth))
    emptiest = max(k for k in range(fullest, STEPS) if smooth[k] == min(smooth[fullest:]))
    gap = half if emptiest == STEPS - 1 else (emptiest + 0.5) * half / STEPS
    lowest = [int((median + 0.5) * gap) for median in medians]
    return lowest, [int(row[low:].sum()) for row, low in zip(counts, lowest, strict=True)]


@pytest.mark.parametrize("centres", [(60, 120, 200, 250), (6, 30, 12, 20)])
@pytest.mark.parametrize("crowd", [0, 30, 200])
def test_labels_are_believed_from_the_emptiest_place_on(crowd: int, centres: tuple) -> None:
    """One bin more or less decides about labels that are merely hard."""
    rng = np.random.default_rng(crowd)
    counts = np.zeros((4, BINS), dtype=np.int64)
    for row, centre in zip(counts, centres, strict=True):
        np.add.at(row, np.clip(rng.normal(centre, centre / 4, 500), 0, BINS - 1).astype(int), 1)
        np.add.at(row, rng.integers(0, max(centre // 12, 1), crowd), 1)
    lowest, believed = floors(counts)
    assert (lowest.tolist(), believed.tolist()) == believed_from(counts)


def test_a_class_that_is_not_learned_at_all_is_believed() -> None:
    """Half of nothing is nothing: no label lies below it."""
    counts = np.zeros((1, BINS), dtype=np.int64)
    counts[0, 0] = 9
    lowest, believed = floors(counts)
    assert (lowest.tolist(), believed.tolist()) == ([0], [9])


def test_labels_far_apart_or_none_are_found() -> None:
    """Labels may be any integers: a table as wide as their range would fill the memory."""
    assert class_index(np.array([0, 2**40]), np.array([2**40, 0])).tolist() == [1, 0]
    assert class_index(np.array([], dtype=np.int64), np.array([], dtype=np.int64)).tolist() == []
    assert class_index(np.array([-5, 2]), np.array([2, -5, 2])).tolist() == [1, 0, 1]
    assert class_index(np.array([-(2**39), 2**39]), np.array([2**39])).tolist() == [1]


def test_a_chunk_without_a_score_changes_no_stratum() -> None:
    """A file of a stream may hold only rows that were never seen; the order of files is free."""
    columns = rows(unseen=40)
    backwards = {name: values[::-1] for name, values in columns.items()}
    plans = []
    for table in (columns, backwards):
        for pieces in (1, 3):
            settings = {"by": "score", "strata": 5, "examples": 120, "kept": 40, "prune_ratio": 0.6}
            found = find_strata(folded(table, pieces), 0.25, settings)
            plans.append((found["quotas"].tolist(), found["strata"].low, found["strata"].width))
    assert plans == plans[:1] * 4


def test_strata_may_be_as_many_as_a_byte_holds() -> None:
    """Two groups more than strata hold rows without a score, and rows that were cut."""
    columns = rows(600)
    settings = {"by": "score", "strata": 255, "examples": 600, "kept": 40, "prune_ratio": 0.6}
    strata = find_strata(folded(columns, 1), 0.25, settings)["strata"].of(columns, "score")
    assert np.flatnonzero(strata == 255).tolist() == list(range(7))
    assert (strata == 256).sum() == 150


def half_wrong() -> dict[str, np.ndarray]:
    """Two classes of 50, believed at 0.9; twenty rows of the first are not."""
    p = np.full(100, 0.9)
    p[:20] = 0.02
    score = np.where(p < 0.5, 0.001, 0.01) * np.linspace(1, 2, 100)
    label = np.repeat([0, 1], 50)
    return {"id": np.arange(100, dtype=np.uint64), "label": label, "score": score, "mean_prob": p}


def test_a_class_keeps_no_more_than_it_believes_while_others_have_some() -> None:
    """By hand: thirty of one class, all else of the other; a list of keys comes before that."""
    columns = half_wrong()
    how = Options(columns=("score", "mean_prob"))
    plan = plan_rows(folded(columns, 1), 0.3, how)
    assert plan.settings["set_aside"] == 20
    assert plan.quotas.tolist() == [30, 40]
    forced = np.zeros(100, dtype=np.int64)
    forced[[0, 1, 99]], forced[[50, 51]] = 1, -1
    how = Options(columns=("score", "mean_prob"), forced=True)
    plan = plan_rows(folded({**columns, FORCED: forced}, 1), 0.3, how)
    assert plan.quotas.tolist() == [32, 38]
    assert (plan.settings["forced_kept"], plan.settings["left_to_choose"]) == (3, 98)


@pytest.mark.parametrize("pieces", [1, 2])
def test_labels_that_move_are_hard_and_stay(pieces: int) -> None:
    """The improbable move more than the others: none is set aside, in whichever chunk they lie."""
    half = half_wrong()
    half["score"][half["mean_prob"] < 0.5] = 0.3
    columns = {name: np.concatenate([values, values]) for name, values in half.items()}
    columns["id"] = np.arange(200, dtype=np.uint64)
    plan = plan_rows(folded(columns, pieces), 0.5, Options(columns=("score", "mean_prob")))
    assert plan.settings["set_aside"] == 0
    assert plan.quotas.tolist() == [50, 50]
    sums, joint = movement(columns, np.ones(200, dtype=bool))
    settings = plan.settings
    assert sums[0, 1] == 200
    assert settings["c_d"] == auto_c_d(joint[0], 0.5, settings["mu_d"], 100, 15.0, 0.5)


@pytest.mark.parametrize(("method", "typical"), [("plausible", 0.7), ("beta", 0.5)])
def test_c_d_aims_as_far_as_the_method_says(method: str, typical: float) -> None:
    """The default keeps the more typical examples the fewer stay; "auto" aims halfway."""
    columns, rng = rows(900, unseen=0), np.random.default_rng(0)
    columns["mean_prob"] = p = np.clip(rng.normal(0.65, 0.2, 900), 0.01, 0.99)
    columns["score"] = 10.0 ** (-0.9 - 1.8 * p + rng.normal(0, 0.3, 900))
    c_d = "auto" if method == "beta" else None
    how = Options(method=method, c_d=c_d, columns=("score", "mean_prob"))
    plan = plan_rows(folded(columns, 1), 0.7, how)
    _, joint = movement(columns, plan.place(columns)[1])
    mu_d = plan.settings["mu_d"]
    found = [auto_c_d(joint[0], 0.7, mu_d, 270, 15.0, some) for some in (typical, 1.0, 0.6)]
    assert len(set(found)) == 3
    assert plan.settings["c_d"] == found[0]


def test_a_class_that_was_never_seen_keeps_its_least_number() -> None:
    """Also the class of number 0, and one whose labels the model finds all but impossible."""
    columns = rows(60, unseen=0)
    columns["label"] = np.repeat([0, 1, 2], 20)
    for name in ("mean_prob", "score"):
        columns[name][:20] = np.nan
    columns["mean_prob"][20:40] = 1e-9
    plan = plan_rows(folded(columns, 1), 0.9, Options(columns=("score", "mean_prob")))
    assert (plan.quotas >= 1).all()
    assert plan.quotas.sum() == 6
    how = Options(method="random", per_class=True, columns=("score", "mean_prob"))
    assert plan_rows(folded(columns, 1), 0.9, how).quotas.tolist() == [1, 3, 2]


def test_movement_is_counted_at_the_ends_of_its_table() -> None:
    """Certain and impossible labels, the largest score and one below all decades."""
    p, score = np.array([1.0, 0.0, 0.5]), np.array([1e-12, 1.0, 10**-9.99])
    _, joint = movement({"mean_prob": p, "score": score}, np.array([True, True, False]))
    found = [tuple(map(int, cell)) for cell in np.argwhere(joint)]
    assert found == [(0, 0, S_BINS - 1), (0, P_BINS - 1, 0), (1, P_BINS // 2, 0)]


def test_the_highest_scores_come_before_ties_at_the_edge() -> None:
    """The anchor is their mean probability; of equals the smaller id is one of them."""
    scores, ids = np.array([1.0, np.nan, 3.0, 1.0, 0.5]), np.array([9, 0, 8, 4, 1])
    assert top_scores(scores, ids, 2).tolist() == [2, 3]
    assert top_scores(scores, ids, 9).tolist() == [2, 3, 0, 4]


def test_one_label_that_moves_is_hard_as_many_are() -> None:
    """By hand: 0.2 for the one against 0.1 for the fifty, and 0.2 for ten against 0.1 for one."""
    assert merely_hard(np.array([[5.0, 50.0], [0.2, 1.0]]))
    assert merely_hard(np.array([[0.1, 1.0], [2.0, 10.0]]))
    assert not merely_hard(np.array([[5.0, 50.0], [0.12, 1.0]]))
    assert not merely_hard(np.array([[5.0, 50.0], [0.0, 0.0]]))
