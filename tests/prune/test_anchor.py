"""Where the Beta distribution stands: presets, mu_D and c_D from the data."""

import numpy as np
import pytest

from prune.tables import make_table


def test_presets_are_the_papers_values():
    """A preset with another value would be another method under the paper's name."""
    table = make_table()
    for name, value in {"cifar10": 5.5, "cifar100": 4.0, "imagenet": 11.0}.items():
        assert table.plan(0.8, c_d=name).settings["c_d"] == value
        np.testing.assert_array_equal(table.select(0.8, c_d=name), table.select(0.8, c_d=value))
    with pytest.raises(ValueError, match="imagenet"):
        table.select(0.8, c_d="cifar")


def test_fewer_than_ten_examples_have_an_anchor():
    """mu_D is the mean over what there is."""
    assert len(make_table(4).select(0.5)) == 2


def test_median_anchor_is_not_moved_by_a_few_odd_examples():
    """Two wrong labels among the ten highest scores would pull the paper's mean far down."""
    table = make_table(100)
    odd = np.argsort(-table.score)[:10]
    prob = table.mean_prob.copy()
    prob[odd] = [0.01, 0.02, *[0.6] * 8]
    table = make_table(100, mean_prob=prob)
    found = {a: table.plan(0.5, anchor_statistic=a).settings["mu_d"] for a in ("mean", "median")}
    assert found["mean"] == pytest.approx(np.mean(prob[odd], dtype=np.float64))
    assert found["median"] == pytest.approx(0.6)
    assert table.plan(0.5).settings["mu_d"] == found["mean"]
    with pytest.raises(ValueError, match="median"):
        table.select(0.5, anchor_statistic="mode")


@pytest.mark.parametrize("prune_ratio", [0.5, 0.8, 0.9])
def test_auto_c_d_meets_its_target(prune_ratio):
    """Kept examples lie halfway between all examples and a draw by score alone."""
    table = make_table(20_000)
    drawn = [table.select(prune_ratio, method="weighted", seed=s) for s in range(5)]
    target = (table.mean_prob.mean() + np.mean([table.mean_prob[d].mean() for d in drawn])) / 2
    kept = [table.select(prune_ratio, c_d="auto", seed=s) for s in range(5)]
    # Cells of 1/200 in p and five draws of 2,000 examples or more: a hundredth is five sigma.
    assert np.mean([table.mean_prob[k].mean() for k in kept]) == pytest.approx(target, abs=0.01)


def test_expected_mean_is_that_of_the_draw():
    """The formula behind "auto" against a thousand draws by numpy."""
    from data_prune.select.beta import expected_mean_prob

    rng = np.random.default_rng(0)
    p, w = rng.uniform(size=40), rng.gamma(0.3, size=40)
    draws = [rng.choice(40, 12, replace=False, p=w / w.sum()) for _ in range(2000)]
    exact = np.mean([p[d].mean() for d in draws])
    # The race's clock is random and the formula fixes it: a small bias for 40 examples.
    assert expected_mean_prob(np.ones(40), p, np.log(w), 12) == pytest.approx(exact, abs=0.01)
    assert expected_mean_prob(np.ones(40), p, np.log(w), 40) == pytest.approx(p.mean())


@pytest.mark.parametrize("kind", ["zeros", "saturated", "one"])
@pytest.mark.filterwarnings("ignore:the 10 highest scores")
def test_auto_c_d_survives_degenerate_tables(kind):
    """No positive score, nothing difficult, or a single example: still an answer."""
    n = 1 if kind == "one" else 100
    score = np.zeros(n) if kind == "zeros" else np.full(n, 1e-12)
    prob = np.full(n, 1.0 if kind == "saturated" else 0.3)
    table = make_table(n, score=score, mean_prob=prob)
    assert len(table.select(0.4, c_d="auto")) == max(1, round(n * 0.6))
