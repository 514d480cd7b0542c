"""The answer to "does it beat random on my data?" must be honest."""

import numpy as np
import pytest
from scipy import stats

from data_prune import ScoreTable, beats_random
from data_prune.report.evaluate import compare, split_holdout, student_quantile


def make_table(n=400):
    rng = np.random.default_rng(0)
    return ScoreTable(
        np.arange(n),
        rng.integers(4, size=n),
        rng.uniform(size=n),
        rng.uniform(size=n),
        np.full(n, 9),
    )


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 30])
@pytest.mark.parametrize("probability", [0.8, 0.95, 0.99])
def test_quantiles_are_students(freedom, probability):
    """A normal quantile would call three lucky runs a proof."""
    exact = stats.t.ppf((1 + probability) / 2, freedom)
    assert student_quantile(probability, freedom) == pytest.approx(exact, rel=1e-4)


def test_interval_is_that_of_the_paired_t_test():
    """Pairing by seed removes what both runs share."""
    a, b = [0.91, 0.90, 0.94, 0.92], [0.90, 0.90, 0.92, 0.90]
    ours, theirs = compare(a, b), stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_no_difference_is_said_to_be_undecided_about_as_often_as_promised():
    """With no real difference, at most about 5 percent of the answers may be decided."""
    rng = np.random.default_rng(0)
    verdicts = [compare(*rng.normal(size=(2, 5))).verdict for _ in range(1000)]
    assert 0.02 < 1 - verdicts.count("undecided") / 1000 < 0.08


def test_runs_are_paired_equal_in_size_and_never_see_the_held_out_part():
    """Unequal sizes are unequal steps; a leak would make every selection look good."""
    calls = []
    table = make_table()

    def metric(kept, held_out, seed):
        calls.append((kept, held_out, seed))
        return float(table.score[kept].mean())

    result = beats_random(metric, table, 0.5, repeats=3, method="top", holdout=0.25)
    assert result.verdict == "yes"
    assert [seed for *_, seed in calls] == [0, 0, 1, 1, 2, 2]
    assert {len(kept) for kept, *_ in calls} == {150}
    for kept, held_out, _ in calls:
        assert len(held_out) == 100
        assert not set(kept.tolist()) & set(held_out.tolist())
    worse = beats_random(lambda k, h, s: -metric(k, h, s), table, 0.5, repeats=3, method="top")
    assert worse.verdict == "no"


def test_bad_input_is_named():
    """Each message says what is accepted."""
    table = make_table()
    with pytest.raises(ValueError, match="repeats must be at least 2, got 1"):
        beats_random(lambda *_: 0.0, table, 0.5, repeats=1)
    with pytest.raises(ValueError, match=r"holdout must be in \(0, 1\), got 1"):
        split_holdout(table, 1)
    with pytest.raises(ValueError, match="metrics must be finite"):
        beats_random(lambda *_: float("nan"), table, 0.5, repeats=2)
    with pytest.raises(ValueError, match="two or more pairs, got 1 and 1"):
        compare([1.0], [0.5])
