"""Shares of classes and strata."""

import itertools

import numpy as np
import pytest

from prune.tables import make_table


def test_quotas_that_grow_with_fewer_examples_stay_inside_the_pool():
    """By largest remainder a class may gain while the total shrinks: more than the pool has."""
    from data_prune.select.planner import class_quotas

    sizes = np.array([6, 6, 2])
    for larger in range(14, 0, -1):
        pool = class_quotas(sizes, larger)
        for smaller in range(1, larger):
            quotas = class_quotas(sizes, smaller, [pool])
            assert quotas.sum() == smaller
            assert (quotas <= pool).all()
    # The paradox is real for these sizes: without the limit one class would gain.
    plain = [class_quotas(sizes, total) for total in range(1, 15)]
    assert any((a > b).any() for a, b in itertools.pairwise(plain))


def test_per_class_keeps_every_class_in_proportion():
    """Without quotas whole classes can vanish at 90 percent."""
    label = np.repeat(np.arange(3), [700, 200, 100])
    score = np.where(label == 0, 0.3, 0.001) + np.arange(1000) * 1e-6
    table = make_table(label=label, score=score)
    assert set(label[table.select(0.9, method="top")]) == {0}
    for method in ("top", "beta", "random", "weighted"):
        kept = table.select(0.9, method=method, per_class=True)
        assert np.bincount(label[kept], minlength=3).tolist() == [70, 20, 10]
    with pytest.raises(ValueError, match="per_class needs labels"):
        make_table(label=np.full(1000, -1)).select(0.5, per_class=True)


def test_ccs_cuts_the_hardest_and_spreads_over_strata():
    """Coverage-centric: none of the cut examples, nearly equal counts per stratum."""
    aum = np.random.default_rng(0).normal(size=5000)
    table = make_table(5000, peers={"aum": aum})
    kept = table.select(0.9, method="ccs", cutoff=0.3, strata=10)
    assert aum[kept].min() > np.quantile(aum, 0.3) - 1e-9
    rest = np.sort(aum)[1500:]
    edges = np.linspace(rest[0], rest[-1] + 1e-3, 11)
    counts = np.histogram(aum[kept], edges)[0]
    sizes = np.histogram(rest, edges)[0]
    # Equal budgets wherever a stratum is large enough; hand-made edges may shift a few examples.
    full = sizes > counts.max() + 5
    assert np.ptp(counts[full]) <= 5
    with pytest.raises(ValueError, match="leaves 3500 examples, 4000 are to be kept"):
        table.select(0.2, method="ccs", cutoff=0.3)


@pytest.mark.parametrize(
    ("ratio", "cutoff"), [(0.2, 0), (0.4, 0), (0.6, 0.05), (0.75, 0.1), (0.85, 0.2), (0.95, 0.3)]
)
def test_ccs_takes_the_published_cutoff_of_its_ratio(ratio: float, cutoff: float) -> None:
    """Who names no cutoff gets the paper's: 0, 0, 0.1, 0.1, 0.3 at 0.3, 0.5, 0.7, 0.8, 0.9."""
    table = make_table(2000, peers={"aum": np.random.default_rng(0).normal(size=2000)})
    kept = table.select(ratio, method="ccs")
    np.testing.assert_array_equal(kept, table.select(ratio, method="ccs", cutoff=cutoff))
    other = table.select(ratio, method="ccs", cutoff=cutoff + 0.02)
    assert not np.array_equal(kept, other)
