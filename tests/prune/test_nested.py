"""Which selections at several ratios lie inside each other."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prune.tables import make_table
from reference import dual as naive

RATIOS = st.lists(
    st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.55, 0.8, 0.9, 0.97]), min_size=2, unique=True
)


@given(st.sampled_from(["top", "random", "weighted"]), RATIOS, st.integers(0, 2**63))
@settings(max_examples=40, derandomize=True, deadline=None)
def test_methods_that_ignore_the_ratio_are_nested_for_one_seed(method, ratios, seed):
    """One seed, one noise, and weights that do not depend on the ratio: pruning only removes."""
    table = make_table()
    sets = [set(table.select(r, method=method, seed=seed).tolist()) for r in sorted(ratios)]
    for larger, smaller in itertools.pairwise(sets):
        assert smaller < larger


@given(
    st.sampled_from(["plausible", "beta", "weighted", "top", "random"]),
    st.booleans(),
    RATIOS,
    st.integers(0, 2**63),
)
@settings(max_examples=60, derandomize=True, deadline=None)
def test_a_sweep_that_chooses_within_the_last_step_is_nested(method, per_class, ratios, seed):
    """The documented loop over ratios, for every method that takes `within`; counts stay exact."""
    table = make_table()
    kept = None
    for r in sorted(ratios):
        options = {"method": method, "per_class": per_class, "seed": seed}
        last, kept = kept, table.select(r, within=kept, **options)
        assert len(kept) == round(1000 * (1 - r))
        assert last is None or set(kept.tolist()) < set(last.tolist())


def test_beta_alone_is_not_nested_but_nearly_so():
    """The paper's weights change with the ratio: whoever needs nested sets must use `within`."""
    table = make_table()
    half, tenth = (set(table.select(r, preset="paper").tolist()) for r in (0.5, 0.9))
    assert 0 < len(tenth - half) < 30  # of 100
    tenth = table.select(0.9, within=sorted(half), preset="paper")
    with pytest.raises(ValueError, match="at least 500 positions"):
        table.select(0.5, within=tenth, preset="paper")
    with pytest.raises(ValueError, match="within, keep and drop do not combine with method 'ccs'"):
        table.select(0.95, method="ccs", within=tenth)


def test_no_draw_by_the_papers_law_could_be_nested():
    """An example with a larger chance to be in the smaller set cannot always be in the larger.

    Exact probabilities for eight examples: the one with mean probability 0.8 is in two of eight
    in 15 % of the draws and in four of eight in 2 %, whatever noise the draws share.
    """
    prob = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.95])
    score = np.array([0.05, 0.08, 0.1, 0.1, 0.1, 0.08, 0.05, 0.02])
    table, rounds, chances = make_table(8, score=score, mean_prob=prob), 1000, []
    for r, kept in ((0.5, 4), (0.75, 2)):
        plan = table.plan(r, method="beta", anchor=3)
        w = stats.beta.pdf(prob, plan.alpha, plan.beta) * score
        exact = np.array(naive.inclusion_probabilities(w, kept))
        drawn = np.zeros(8)
        for seed in range(rounds):
            drawn[table.select(r, method="beta", anchor=3, seed=seed)] += 1
        # Five standard deviations, and one draw for chances too small to be seen.
        spread = np.sqrt(exact * (1 - exact) / rounds)
        assert (np.abs(drawn / rounds - exact) <= 5 * spread + 1 / rounds).all()
        chances.append(exact[6])
    assert chances[0] < 0.02
    assert chances[1] > 0.15
