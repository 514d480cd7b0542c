"""Which examples stay: exact numbers, clear refusals, the same answer in any order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prune import ScoreTable
from data_prune.select.planner import keep_count
from prune.tables import METHODS, make_table


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prune_ratio", [0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.99])
def test_count_is_exact_ascending_and_reproducible(method, prune_ratio):
    """int(1 - (1 - s)) N in the official code loses an example; a schedule needs the number."""
    table = make_table()
    kept = table.select(prune_ratio, method=method, seed=3)
    assert kept.dtype == np.int64
    assert len(kept) == round(1000 * (1 - prune_ratio))
    assert (np.diff(kept) > 0).all()
    assert kept[0] >= 0
    assert kept[-1] < 1000
    np.testing.assert_array_equal(kept, table.select(prune_ratio, method=method, seed=3))


@pytest.mark.parametrize(
    ("n", "prune_ratio", "kept"),
    [(50_000, 0.9, 5000), (50_000, 0.8, 10_000), (5, 0.5, 2), (3, 0.5, 2), (1, 0.0, 1)],
)
def test_keep_count_rounds_half_to_even(n, prune_ratio, kept):
    """The documented rule, at the values where floating point gets it wrong."""
    assert keep_count(n, prune_ratio) == kept


@pytest.mark.parametrize("bad", [-0.1, 1.0, 1.5, float("nan")])
def test_prune_ratio_outside_its_range_is_refused(bad):
    """r = 1 makes every Beta weight NaN; 1.5 is a percentage taken for a fraction."""
    with pytest.raises(ValueError, match=r"prune_ratio \(the fraction removed\) must be in \[0, 1"):
        make_table().select(bad)


def test_other_bad_arguments_are_refused():
    """Each message names the value and what is accepted."""
    table = make_table(20)
    with pytest.raises(ValueError, match=r"0.99 of 20 examples keeps none"):
        table.select(0.99)
    with pytest.raises(ValueError, match=r"c_d must be positive, got 0.0"):
        table.select(0.5, c_d=0)
    with pytest.raises(ValueError, match="c_d must be a positive number or one of"):
        table.select(0.5, c_d="mnist")
    with pytest.raises(ValueError, match="method must be one of"):
        table.select(0.5, method="Beta")
    with pytest.raises(ValueError, match=r"no column .el2n.*Record it"):
        table.select(0.5, method="top", by="el2n")
    with pytest.raises(TypeError, match=r"seed must be an int, got 0.5"):
        table.select(0.5, seed=0.5)
    with pytest.raises(TypeError, match="prune_ratio must be a number"):
        table.select("0.5")
    with pytest.raises(ValueError, match="has it been swapped"):
        make_table(20, mean_prob=np.arange(20.0))
    with pytest.raises(ValueError, match="of one length"):
        make_table(20, label=np.zeros(19))


@given(
    st.integers(1, 400),
    st.sampled_from([0.0, 0.2, 0.5, 0.9]),
    st.sampled_from(["constant", "zeros", "saturated", "ties", "tiny", "half zero"]),
    st.sampled_from(METHODS),
)
@settings(max_examples=60, derandomize=True, deadline=None)
@pytest.mark.filterwarnings("ignore:the 10 highest scores")
def test_degenerate_scores_still_give_the_exact_number(n, prune_ratio, kind, method):
    """numpy's choice raises and the official pdf turns NaN for each of these tables."""
    rng = np.random.default_rng(n)
    score, prob = rng.uniform(0, 0.3, n), rng.uniform(0, 1, n)
    if kind == "constant":
        score[:], prob[:] = 0.1, 0.5
    elif kind == "zeros":
        score[:] = 0.0
    elif kind == "saturated":
        score[:], prob[:] = 0.0, 1.0
    elif kind == "ties":
        score = np.round(score, 1)
    elif kind == "tiny":
        prob[:] = rng.choice([0.0, 1e-30, 1.0], n)
    else:
        score[: n // 2] = 0.0
    table = make_table(n, score=score, mean_prob=prob)
    if round(n * (1 - prune_ratio)) == 0:
        with pytest.raises(ValueError, match="keeps none"):
            table.select(prune_ratio, method=method)
        return
    kept = table.select(prune_ratio, method=method)
    assert len(kept) == len(set(kept.tolist())) == round(n * (1 - prune_ratio))
    if method == "beta" and kind == "half zero":
        positive = (score > 0).sum()
        assert (score[kept] > 0).sum() == min(len(kept), positive)


def test_top_keeps_the_highest_scores_and_ties_go_to_the_lower_key():
    """torch.topk returns ties in an arbitrary order: two machines would keep different data."""
    score = np.array([0.2, 0.1, 0.2, 0.2, 0.3, 0.1])
    table = make_table(6, score=score)
    assert table.select(0.5, method="top").tolist() == [0, 2, 4]
    assert table.select(2 / 3, method="top").tolist() == [0, 4]
    swapped = make_table(6, score=score, key=np.array([5, 4, 3, 2, 1, 0]))
    assert swapped.select(0.5, method="top").tolist() == [2, 3, 4]


def test_top_by_a_peer_whose_low_values_are_hard():
    """AUM and mean probability point the other way than EL2N."""
    table = make_table(100)
    kept = table.select(0.9, method="top", by="aum")
    assert table.peers["aum"][kept].max() <= np.sort(table.peers["aum"])[9]
    kept = table.select(0.9, method="top", by="mean_prob")
    assert table.mean_prob[kept].max() <= np.sort(table.mean_prob)[9]


def test_scaling_scores_changes_nothing():
    """The official factor 10 and ddof 0 or 1 are constants: the subset must not move."""
    table = make_table()
    scaled = make_table(score=table.score.astype(np.float64) * 10 * 1.0541)
    np.testing.assert_array_equal(table.select(0.7), scaled.select(0.7))


def test_selection_does_not_depend_on_the_order_of_rows():
    """Shards read in another order must keep the same examples."""
    table = make_table()
    order = np.random.default_rng(5).permutation(1000)
    mixed = make_table(
        key=table.key[order],
        label=table.label[order],
        score=table.score[order],
        mean_prob=table.mean_prob[order],
        peers={"aum": table.peers["aum"][order]},
    )
    for method in METHODS:
        kept = set(table.key[table.select(0.8, method=method)].tolist())
        assert kept == set(mixed.key[mixed.select(0.8, method=method)].tolist()), method


def test_unscored_examples_rank_last():
    """No complete window means no evidence: such examples only fill up."""
    score = np.linspace(0.1, 0.2, 100)
    score[:20] = np.nan
    table = make_table(100, score=score)
    with pytest.warns(UserWarning, match="20 of 100 examples have no complete window"):
        assert table.select(0.5).min() >= 20
    with pytest.warns(UserWarning, match="20 of 100"):
        kept = table.select(0.1, method="top")
    assert (kept < 20).sum() == 10


@pytest.mark.slow
def test_more_examples_than_multinomial_takes():
    """torch.multinomial ends at 2**24 categories, and float32 cannot name an odd position there."""
    n = 2**24 + 9
    score = np.zeros(n, dtype=np.float32)
    last = np.arange(n - 9, n)
    score[last] = 0.1
    half = np.full(n, 0.5, dtype=np.float32)
    table = ScoreTable(np.arange(n), np.zeros(n, np.int8), score, half, np.full(n, 30, np.uint8))
    kept = table.select(0.75)
    assert len(kept) == round(n / 4)
    assert (np.diff(kept) > 0).all()
    # Everything with a score comes first, so that the odd positions beyond 2**24 are all there.
    assert kept[-9:].tolist() == last.tolist()


def test_selection_leaves_global_generators_alone():
    """A library that reseeds numpy makes the user's augmentation repeat itself."""
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    make_table().select(0.5)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002
