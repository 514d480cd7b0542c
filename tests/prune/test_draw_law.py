"""The draw follows the paper's law."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data_prune import beta_parameters
from data_prune.select.beta import log_beta_density
from data_prune.select.noise import gumbel, uniform
from prune.tables import make_table
from reference import dual as naive


@pytest.mark.parametrize("seed", [0, 1, 2**63, -5])
def test_uniform_numbers_are_open_uniform_and_independent_of_company(seed):
    """The draw of an example must not depend on which other examples are in the array."""
    ids = np.arange(200_000, dtype=np.uint64)
    u = uniform(seed, ids)
    assert u.min() > 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.01
    np.testing.assert_array_equal(u[::-7], uniform(seed, ids[::-7]))
    assert abs(np.corrcoef(u, uniform(seed + 1, ids))[0, 1]) < 0.01


def test_extreme_hash_values_stay_finite():
    """With 53 bits the largest uniform number would round to 1 and its noise to infinity."""
    largest = ((np.uint64(2**64 - 1) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    assert 0 < -np.log(largest) < np.inf
    assert np.isfinite(gumbel(0, np.array([0, 2**64 - 1], np.uint64))).all()


def test_inclusion_frequencies_are_those_of_successive_sampling():
    """The draw must follow the paper's law: numpy's choice without replacement."""
    weights = np.array([0.5, 0.2, 0.1, 0.1, 0.06, 0.04])
    rounds, size = 4000, 3
    table = make_table(6, score=weights, mean_prob=np.full(6, 0.5))
    ours, theirs, rng = {}, {}, np.random.default_rng(0)
    for seed in range(rounds):
        key = tuple(table.select(0.5, method="weighted", seed=seed))
        ours[key] = ours.get(key, 0) + 1
        key = tuple(np.sort(rng.choice(6, size, replace=False, p=weights)))
        theirs[key] = theirs.get(key, 0) + 1
    subsets = sorted(set(ours) | set(theirs))
    counts = np.array([[d.get(s, 0) for s in subsets] for d in (ours, theirs)])
    common = counts.sum(0) >= 20
    assert stats.chi2_contingency(counts[:, common]).pvalue > 1e-3


def test_beta_weights_are_density_times_score():
    """The same chi-square for the whole Beta weight, against weights made by scipy."""
    prob = np.array([0.1, 0.4, 0.6, 0.8, 0.95])
    score = np.array([0.02, 0.08, 0.10, 0.05, 0.03])
    table = make_table(5, score=score, mean_prob=prob)
    plan = table.plan(0.6, method="beta", anchor=1)
    alpha, beta = plan.settings["alpha"], plan.settings["beta"]
    assert (alpha, beta) == beta_parameters(0.6, 0.6, 4.0)
    w = stats.beta.pdf(prob, alpha, beta) * score
    rng, rounds = np.random.default_rng(1), 4000
    ours = np.zeros(5)
    theirs = np.zeros(5)
    for seed in range(rounds):
        ours[table.select(0.6, method="beta", anchor=1, seed=seed)] += 1
        theirs[naive.draw_without_replacement(w, 2, rng)] += 1
    # Inclusion counts of two independent samples of `rounds` draws: five standard deviations.
    spread = np.sqrt(2 * rounds * 0.25)
    assert np.abs(ours - theirs).max() < 5 * spread


@given(st.floats(0.01, 0.95), st.floats(0.5, 12), st.floats(0, 0.98), st.floats(0, 0.98))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_beta_mean_slides_to_easy_examples(mu_d, c_d, r1, r2):
    """The mean is mu_D + (1 - mu_D) r^c: a swapped alpha and beta would turn it around."""
    r1, r2 = sorted((r1, r2))
    means = []
    for r in (r1, r2):
        alpha, beta = beta_parameters(r, mu_d, c_d)
        assert alpha + beta == pytest.approx(15)
        means.append(alpha / (alpha + beta))
        assert means[-1] == pytest.approx(mu_d + (1 - mu_d) * r**c_d, abs=1e-12)
    assert means[0] <= means[1] + 1e-12
    alpha16, beta16 = beta_parameters(r1, mu_d, c_d, beta_sum=16)
    assert alpha16 + beta16 == pytest.approx(16)


def test_density_is_scipys_up_to_a_constant_and_finite_at_the_ends():
    """BetaPDF is infinite or underflows at 0 and 1; its logarithm here is neither."""
    p = np.linspace(0.01, 0.99, 50)
    difference = log_beta_density(p, 6.5, 8.4) - stats.beta.logpdf(p, 6.5, 8.4)
    assert np.ptp(difference) < 1e-9
    assert np.isfinite(log_beta_density(np.array([0.0, 1.0]), 16.0, 0.01)).all()
