"""A score table and its file."""

import numpy as np
import pytest

from data_prune import ScoreTable
from data_prune.select.noise import example_ids
from prune.tables import make_table


def test_string_and_large_keys_have_stable_identities():
    """Web data have names, not positions; a float would merge ids above 2**53."""
    ids = example_ids(np.array(["a/0.jpg", "a/1.jpg"]))
    assert ids.tolist() == example_ids(np.array(["a/0.jpg", "a/1.jpg"], dtype=object)).tolist()
    assert ids[0] != ids[1]
    assert example_ids(np.array([2**63, 2**63 + 1], np.uint64)).tolist() == [2**63, 2**63 + 1]
    with pytest.raises(TypeError, match="integers or strings, got an array of dtype float64"):
        example_ids(np.array([0.5]))


def test_parquet_round_trip_keeps_everything_and_refuses_strangers(tmp_path):
    """Scores and masks as bare .npy files are how people swap them."""
    import pyarrow.parquet as pq

    table = make_table(50, meta={"epochs": 30, "window": 10})
    path = tmp_path / "scores.parquet"
    table.to_parquet(path)
    again = ScoreTable.from_parquet(path, num_examples=50)
    assert again.digest() == table.digest()
    assert again.meta == table.meta
    np.testing.assert_array_equal(again.peers["aum"], table.peers["aum"])
    np.testing.assert_array_equal(again.select(0.5), table.select(0.5))
    with pytest.raises(ValueError, match="scores 50 examples, the data set has 60"):
        ScoreTable.from_parquet(path, num_examples=60)
    data = pq.read_table(path)
    changed = data.set_column(2, "score", data["score"].take(list(range(49, -1, -1))))
    pq.write_table(
        changed.replace_schema_metadata(pq.read_metadata(path).metadata),
        tmp_path / "changed.parquet",
    )
    with pytest.raises(ValueError, match="changed after it was written"):
        ScoreTable.from_parquet(tmp_path / "changed.parquet")
    pq.write_table(data.drop_columns(["score"]), tmp_path / "less.parquet")
    with pytest.raises(ValueError, match=r"lacks the columns \['score'\]"):
        ScoreTable.from_parquet(tmp_path / "less.parquet")


def test_average_over_runs_and_its_refusals():
    """EL2N is defined over several runs; tables of different data must not be mixed."""
    a, b = make_table(seed=0), make_table(seed=0, score=np.full(1000, 0.1))
    mean = ScoreTable.average([a, b])
    np.testing.assert_allclose(mean.score, (a.score + 0.1) / 2, rtol=1e-6)
    assert mean.meta["runs"] == 2
    with pytest.raises(ValueError, match="equal keys, labels and peers"):
        ScoreTable.average([a, make_table(seed=1)])
