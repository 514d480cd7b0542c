"""The pure functions of scores and selection, at their edges and against formulas of their own."""

import numpy as np
import pytest
from scipy.optimize import brentq

from data_prune.score.scores import forgetting, tdds
from data_prune.select.beta import (
    C_D_RANGE,
    LOG_SCORE,
    P_BINS,
    S_BINS,
    auto_c_d,
    beta_parameters,
    expected_mean_prob,
    log_beta_density,
)
from data_prune.select.planner import Options, check_forced, class_quotas
from data_prune.select.wishes import check_weights, forced_rows


def drawn(counts, p, log_weight, kept: float) -> float:
    """Return the mean probability of an exponential race, its time found by another solver."""
    w = np.exp(log_weight - log_weight.mean())

    def missing(log_t: float) -> float:
        return (counts * -np.expm1(-np.exp(log_t) * w)).sum() - kept

    taken = counts * -np.expm1(-np.exp(brentq(missing, -40, 40, xtol=1e-13)) * w)
    return float((taken * p).sum() / taken.sum())


@pytest.mark.parametrize("kept", [1, 7, 40, 99])
def test_a_draw_without_replacement_has_the_mean_of_a_race(kept):
    """The number that c_D rests on, whatever constant the weights have."""
    rng = np.random.default_rng(kept)
    counts, p = np.array([10.0, 30.0, 20.0, 40.0]), np.array([0.1, 0.5, 0.7, 0.95])
    log_weight = rng.normal(0, 2, 4)
    expected = drawn(counts, p, log_weight, kept)
    for constant in (0.0, 300.0, -300.0):
        ours = expected_mean_prob(counts, p, log_weight + constant, kept)
        assert ours == pytest.approx(expected, rel=1e-9)


def test_all_that_is_there_has_the_mean_of_all() -> None:
    """Where everything is kept, weights decide nothing."""
    counts, p = np.array([1.0, 3.0]), np.array([0.2, 0.6])
    for kept in (4, 9):
        assert expected_mean_prob(counts, p, np.array([0.0, 5.0]), kept) == pytest.approx(0.5)
    assert expected_mean_prob(counts, p, np.array([0.0, -60.0]), 1) == pytest.approx(0.2)
    # Of many equal cells few are drawn: by weight, also beside a cell of no weight to speak of.
    many, weight = np.full(3, 1e6), np.array([0.0, -1.0, -400.0])
    expected = (0.2 + 0.6 * np.exp(-1)) / (1 + np.exp(-1))
    drawn_one = expected_mean_prob(many, np.array([0.2, 0.6, 0.9]), weight, 1)
    assert drawn_one == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("typical", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("ratio", [0.3, 0.7])
def test_auto_c_d_meets_its_target(ratio: float, typical: float) -> None:
    """The data's own c_D: the kept examples are as probable as the rule says."""
    rng = np.random.default_rng(0)
    counts = np.zeros((P_BINS, S_BINS), dtype=np.int64)
    p_bin = np.clip(rng.normal(130, 40, 4000), 0, P_BINS - 1).astype(int)
    s_bin = np.clip(110 - p_bin / 9 + rng.normal(0, 4, 4000), 0, S_BINS - 1).astype(int)
    np.add.at(counts, (p_bin, s_bin), 1)
    kept, mu_d = round(4000 * (1 - ratio)), 0.35

    i, j = np.nonzero(counts)
    n, p = counts[i, j].astype(float), (i + 0.5) / P_BINS
    decades = LOG_SCORE[0] + (j + 0.5) * (LOG_SCORE[1] - LOG_SCORE[0]) / S_BINS
    log_score = np.log(10.0**decades)
    hard = drawn(n, p, log_score, kept)
    target = typical * (n @ p) / n.sum() + (1 - typical) * hard

    def mean(c_d: float) -> float:
        alpha, beta = beta_parameters(ratio, mu_d, c_d, C=15.0)
        return drawn(n, p, log_score + log_beta_density(p, alpha, beta), kept)

    ours = auto_c_d(counts, ratio, mu_d, kept, 15.0, typical)
    low, high = C_D_RANGE
    if (mean(low) - target) * (mean(high) - target) < 0:
        assert ours == pytest.approx(brentq(lambda c: mean(c) - target, low, high), rel=1e-3)
    else:
        assert ours == (low if mean(low) < target else high)
    assert ours == round(ours, 3)


def test_auto_c_d_without_a_question_is_the_papers_four() -> None:
    """Nothing removed, or no rows with a score: reports say 4, and nothing divides by zero."""
    one = np.zeros((P_BINS, S_BINS), dtype=np.int64)
    assert auto_c_d(one, 0.5, 0.4, 3, 15.0) == 4.0
    one[10, 10] = 5
    assert auto_c_d(one, 0.0, 0.4, 5, 15.0) == 4.0
    assert auto_c_d(one, 0.5, 0.4, 2, 15.0) != 4.0


def test_beta_parameters_at_the_ends_of_their_ranges() -> None:
    """An anchor of 0 and a ratio of 0 are ordinary; what is outside is refused by name."""
    assert beta_parameters(0.0, 0.0) == (0.0, 15.0)
    assert beta_parameters(0.5, 0.4) == beta_parameters(0.5, 0.4, 4.0, C=15.0)
    # Certain and impossible labels lie a millionth inside.
    ends = log_beta_density(np.array([0.0, 1.0]), 2.0, 4.0)
    assert ends.tolist() == pytest.approx([np.log(1e-6), 3 * np.log(1e-6)], rel=1e-6)
    assert beta_parameters(0.5, 0.4, 1.0, C=0.5, beta_sum=1.0) == pytest.approx((0.85, 0.15))
    assert beta_parameters(0.5, 0.4, 1.0, C=2.0, beta_sum=2.0) == pytest.approx((1.4, 0.6))
    refused = (
        ("prune_ratio", (1.0, 0.4), {}),
        ("prune_ratio", (-0.1, 0.4), {}),
        ("c_d", (0.5, 0.4, 0.0), {}),
        ("mu_d", (0.5, 1.0), {}),
        ("mu_d", (0.5, 1.5), {}),
        ("mu_d", (0.5, -0.1), {}),
        ("C must", (0.5, 0.4), {"C": 0.0}),
        ("beta_sum", (0.5, 0.4), {"beta_sum": 14.9}),
    )
    for name, args, options in refused:
        with pytest.raises(ValueError, match=name):
            beta_parameters(*args, **options)


def test_scores_at_the_ends_of_their_ranges() -> None:
    """Three epochs are enough for TDDS, two are not; half a right answer counts as right."""
    log_probs = np.log(np.random.default_rng(0).dirichlet((1, 1), (3, 2)))
    assert np.isfinite(tdds(log_probs, window=3)).all()
    for window in (2, 4):
        with pytest.raises(ValueError, match="window"):
            tdds(log_probs, window)
    # Seen twice in an epoch, right once: the mean of the two.
    assert forgetting(np.array([[0.5], [0.0]])).tolist() == [1.0]
    assert forgetting(np.array([[0.5, 0.4], [0.0, 0.4]])).tolist() == [1.0, 2.0]


def test_options_at_the_ends_of_their_ranges() -> None:
    """Counts of one and of none are ordinary; what is no count is refused by name."""
    columns = ("score", "mean_prob", "aum")
    plain = Options(columns=columns)
    assert (plain.anchor, plain.seed, plain.strata, plain.min_per_class) == (10, 0, 50, 1)
    assert (plain.forced, plain.weighed, plain.grouped) == (False, False, False)
    Options(min_per_class=0, anchor=1, columns=columns)
    Options(min_per_class=np.int64(2), seed=np.int64(-3), columns=columns)
    Options(method="ccs", strata=1, columns=columns)
    refused = (
        (TypeError, "min_per_class", {"min_per_class": True}),
        (TypeError, "min_per_class", {"min_per_class": 1.0}),
        (ValueError, "min_per_class", {"min_per_class": -1}),
        (TypeError, "seed", {"seed": True}),
        (TypeError, "seed", {"seed": 0.5}),
        (ValueError, "anchor", {"anchor": 0}),
        (ValueError, "strata", {"method": "ccs", "strata": 0}),
    )
    for kind, name, options in refused:
        with pytest.raises(kind, match=f"{name} must"):
            Options(**options, columns=columns)


def test_lists_that_leave_exactly_what_stays_are_enough() -> None:
    """As many to keep as stay, and as many left as stay: a choice without a choice."""
    check_forced(np.array([2, 3]), np.array([5, 5]), 5)
    check_forced(np.array([0]), np.array([5]), 5)
    with pytest.raises(ValueError, match="keep names 6"):
        check_forced(np.array([2, 4]), np.array([9]), 5)
    with pytest.raises(ValueError, match="leave 4 examples"):
        check_forced(np.array([0]), np.array([4]), 5)


def test_quotas_at_their_limits() -> None:
    """The wish for a few of each class holds as long as it can, and what must stay stays."""
    sizes = np.array([6, 3, 1])
    assert class_quotas(np.array([98, 1, 1]), 10).tolist() == [10, 0, 0]
    assert class_quotas(sizes, 3, least=1).tolist() == [1, 1, 1]
    assert class_quotas(sizes, 6, least=2).tolist() == [3, 2, 1]
    assert class_quotas(sizes, 2, least=1).tolist() == [1, 1, 0]
    assert class_quotas(sizes, 5, [np.array([2, 3, 1])]).tolist() == [2, 2, 1]
    must = np.array([0, 2, 1])
    assert class_quotas(sizes, 3, least=1, must=must).tolist() == [0, 2, 1]
    assert class_quotas(sizes, 4, least=1, must=must).tolist() == [1, 2, 1]
    # A wish that just fits is granted; the first choice that just suffices is the limit.
    assert class_quotas(np.array([19, 1]), 2, least=1, must=np.array([1, 0])).tolist() == [1, 1]
    some = np.array([1, 3])
    assert class_quotas(np.array([5, 5]), 4, [some, np.array([5, 5])]).tolist() == [1, 3]
    # By share 60, 30, 9.7 and three times 0.1: the two largest pay for the three smallest.
    sizes = np.array([600, 300, 97, 1, 1, 1])
    assert class_quotas(sizes, 100, least=1).tolist() == [59, 29, 9, 1, 1, 1]


def test_lists_become_a_number_for_each_row() -> None:
    """By hand: what may stay, less what goes, and what has to stay."""
    keep, drop, within = np.array([1]), np.array([2]), np.array([0, 1, 2, 3])
    assert forced_rows(5, keep, drop, within, str).tolist() == [0, 1, -1, 0, -1]
    assert forced_rows(4, keep, drop, None, str).tolist() == [0, 1, -1, 0]
    for lists in ((keep, keep, None), (keep, drop, drop)):
        with pytest.raises(ValueError, match="keep names 1, which drop or within leaves out"):
            forced_rows(4, *lists, str)


def test_weights_of_nothing_are_weights_and_others_are_named() -> None:
    """A weight of zero comes last; the first one that is none is told."""
    assert check_weights(np.array([0, 2])).tolist() == [0.0, 2.0]
    assert check_weights(np.array([])).tolist() == []
    for values, wrong in (([0.0, -1.0, 2.0], "-1"), ([1.0, np.inf], "inf"), ([np.nan, 0.0], "nan")):
        with pytest.raises(ValueError, match=f"at least 0, got {wrong}"):
            check_weights(np.array(values))
