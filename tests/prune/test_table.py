"""A score table and its file."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prune import ScoreTable, read_keys, select_parquet, write_keys
from data_prune.score.keys import rows_of
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


def named_table(n=60):
    """A table whose labels are names, two of them missing."""
    label = np.array(["cat", "dog", "eel"], dtype=object)[np.arange(n) % 3]
    label[[4, 5]] = None, np.nan
    return make_table(n, label=label)


def test_labels_may_be_names_and_may_be_missing(tmp_path):
    """Half-labelled tables of other programs hold strings and nulls."""
    table = named_table()
    assert table.meta["label_names"] == ["cat", "dog", "eel"]
    assert table.label[:7].tolist() == [0, 1, 2, 0, -1, -1, 0]
    assert make_table(3, label=np.array([1.0, np.nan, 0.0])).label.tolist() == [1, -1, 0]
    table.to_parquet(tmp_path / "scores.parquet")
    again = ScoreTable.from_parquet(tmp_path / "scores.parquet")
    assert again.digest() == table.digest()
    assert again.meta["label_names"] == table.meta["label_names"]
    assert set(table.plan(0.5).settings["quotas"]) == {"-1", "cat", "dog", "eel"}


TEXT = {
    "string": pa.string(),
    "view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int8(), pa.string()),
}


@pytest.mark.parametrize("kind", TEXT)
def test_names_in_a_foreign_file_select_alike_in_memory_and_in_a_stream(tmp_path, kind):
    """Shards see different names first; a quota must not depend on that."""
    mixed = named_table(300)
    frame = mixed.take(np.argsort(mixed.label == 0, kind="stable")).to_frame("arrow")  # cats last
    for name in ("label",) if kind == "dictionary" else ("label", "key"):
        values = frame[name].combine_chunks()
        values = (
            values.cast(pa.string()).cast(TEXT[kind])
            if kind != "dictionary"
            else values.dictionary_encode()
        )
        frame = frame.set_column(frame.column_names.index(name), name, values)
    (tmp_path / "in").mkdir()
    pq.write_table(frame, tmp_path / "whole.parquet")
    for i in range(3):
        pq.write_table(frame.slice(100 * i, 100), tmp_path / "in" / f"{i}.parquet")
    table = ScoreTable.from_parquet(tmp_path / "whole.parquet")
    assert table.meta["label_names"] == ["cat", "dog", "eel"]
    settings = select_parquet(tmp_path / "in", tmp_path / "out", 0.7)
    assert settings["quotas"] == table.plan(0.7).settings["quotas"]
    assert {"cat", "dog", "eel"} <= settings["quotas"].keys()
    kept = pq.read_table(tmp_path / "out")
    assert set(kept["key"].to_pylist()) == set(table.key[table.select(0.7)].tolist())
    assert set(kept["label"].to_pylist()) == {"cat", "dog", "eel", None}
    pq.write_table(
        make_table(3, key=np.arange(900, 903)).to_frame("arrow"), tmp_path / "in" / "9.parquet"
    )
    with pytest.raises(
        TypeError, match=r"must hold names in all files or in none, got names in .* and int"
    ):
        select_parquet(tmp_path / "in", tmp_path / "other", 0.7)


@pytest.mark.parametrize("kind", ["arrow", "pandas", "polars", "datasets"])
def test_tables_of_other_libraries_go_out_and_come_back(kind):
    """Who has scores in a data frame must not write a file first."""
    if kind == "polars":
        pytest.importorskip("polars")
    table = named_table()
    table.score[7] = np.nan
    again = ScoreTable.from_frame(table.to_frame(kind))
    assert again.digest() == table.digest()
    assert again.meta["label_names"] == ["cat", "dog", "eel"]
    assert again.peers.keys() == table.peers.keys()
    with pytest.raises(ValueError, match=r"kind must be one of .*, got 'excel'"):
        table.to_frame("excel")


def test_frames_are_held_to_the_checks_of_a_table(monkeypatch):
    """A missing column, a null key, a table of something else: one line each."""
    frame = make_table(6).to_frame("pandas")
    assert ScoreTable.from_frame(frame.drop(columns="key")).key.tolist() == list(range(6))
    with pytest.raises(ValueError, match=r"frame lacks the columns \['score'\]"):
        ScoreTable.from_frame(frame.drop(columns="score"))
    with pytest.raises(ValueError, match="frame: column 'key' must have a value in every row"):
        ScoreTable.from_frame(frame.assign(key=["a", None, "c", "d", "e", "f"]))
    with pytest.raises(
        TypeError, match=r"table of pandas, polars, pyarrow or datasets.*, got list"
    ):
        ScoreTable.from_frame([1, 2])
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ImportError, match="this call needs polars: pip install polars"):
        make_table(6).to_frame("polars")


def test_any_integers_are_keys():
    """Lists of numpy's integers arrive as objects."""
    keys = np.array([np.int32(3), np.uint64(7), 5], dtype=object)
    assert make_table(3, key=keys).key.dtype == np.int64
    large = make_table(2, key=np.array([1, 2**64 - 1], dtype=object))
    assert large.key.dtype == np.uint64
    with pytest.raises(TypeError, match="'key' must hold integers or strings"):
        make_table(2, key=np.array([1, "a"], dtype=object))


def test_rows_follow_the_keys_of_the_data():
    """A stream's table is in the order of first sight, the data in another one."""
    keys = np.array(["c", "a", "d", "b"], dtype=object)
    table = make_table(4, key=keys)
    ordered = table.order_by(["a", "b", "c"])
    assert ordered.key.tolist() == ["a", "b", "c"]
    assert ordered.score.tolist() == table.score[[1, 3, 0]].tolist()
    for wrong, message in (
        (["a", "x", "y"], "keys must be in the table of 4 examples, got 'x' and 1 more"),
        (["a", "a"], "keys must differ, got 'a' again"),
        ([[1]], "keys must be a list of keys"),
    ):
        with pytest.raises(ValueError, match=message):
            table.order_by(wrong)
    with pytest.raises(TypeError, match="keys must be strings as the table's are, got 3"):
        table.order_by([3])
    assert make_table(9).order_by(["7", "2"]).key.tolist() == [7, 2]


def test_data_that_grew_joins_its_scores():
    """Positions are numbered on; keys of a stream stay, and none may come twice."""
    old, new = make_table(5, seed=0, meta={"window": 3, "nonfinite": 1}), make_table(3, seed=1)
    both = ScoreTable.concat([old, new])
    assert both.key.tolist() == list(range(8))
    assert both.score.tolist() == [*old.score.tolist(), *new.score.tolist()]
    assert both.peers["aum"].tolist() == [*old.peers["aum"].tolist(), *new.peers["aum"].tolist()]
    assert (both.meta["examples"], both.meta["nonfinite"], both.meta["window"]) == (8, 1, 3)
    a, b = (make_table(2, key=np.array(k, dtype=object)) for k in (["p", "q"], ["r", "q"]))
    with pytest.raises(ValueError, match="keys must differ, got 'q' 2 times"):
        ScoreTable.concat([a, b])
    with pytest.raises(ValueError, match="all have strings as keys, or all integers"):
        ScoreTable.concat([a, old])
    with pytest.raises(ValueError, match="must have one window, got 3 and 4"):
        ScoreTable.concat([old, make_table(3, meta={"window": 4})])
    with pytest.raises(ValueError, match=r"must have the same peers, got \['aum'\] and \[\]"):
        ScoreTable.concat([old, make_table(3, peers={})])


def test_names_of_joined_tables_are_numbered_together():
    """The second table has a class that the first one has not."""
    a = make_table(2, label=np.array(["dog", None], dtype=object))
    b = make_table(2, label=np.array(["cat", "dog"], dtype=object))
    both = ScoreTable.concat([a, b])
    assert (both.label.tolist(), both.meta["label_names"]) == ([1, -1, 0, 1], ["cat", "dog"])
    with pytest.raises(ValueError, match="all have names as labels, or all numbers"):
        ScoreTable.concat([a, make_table(2)])


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".npy"])
@pytest.mark.parametrize("keys", [[5, 2**63, 0], ["a b", 'ä,"q"', "c"]])
def test_lists_of_keys_are_read_as_they_were_written(tmp_path, suffix, keys):
    """Other programs take plain lists, with commas and umlauts in them."""
    write_keys(tmp_path / f"kept{suffix}", keys)
    table = make_table(3, key=np.array(keys[::-1], dtype=object))
    assert rows_of(table.key, read_keys(tmp_path / f"kept{suffix}")).tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("k.json", b"[]", r"must end in .txt, .csv, .npy, got '.*k.json'"),
        ("k.txt", b"\xff\xfe", "must be text in UTF-8"),
        ("k.csv", b"a,b\n1,2\n", r"must have a column 'key', got the columns \['a', 'b'\]"),
        ("k.npy", b"nothing", "must hold one array of integers or strings"),
    ],
)
def test_lists_that_are_none(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_keys(tmp_path / name)


def test_a_key_of_two_lines_does_not_fit_a_text_file(tmp_path):
    """It would come back as two keys."""
    with pytest.raises(ValueError, match=r"must be one line of a .txt file, got 'a\\nb': use .csv"):
        write_keys(tmp_path / "k.txt", ["a\nb"])
    assert list(tmp_path.iterdir()) == []
    write_keys(tmp_path / "k.csv", ["a\nb"])
    assert read_keys(tmp_path / "k.csv").tolist() == ["a\nb"]


@pytest.mark.parametrize("name", ["k.txt", "k.csv"])
def test_a_list_that_begins_with_a_mark_of_its_encoding(tmp_path, name):
    """Spreadsheets write one; the header then was a key that no table has."""
    content = "key\r\nä\r\nb\r\n" if name == "k.csv" else "ä\r\nb\r\n"
    (tmp_path / name).write_bytes(content.encode("utf-8-sig"))
    assert read_keys(tmp_path / name).tolist() == ["ä", "b"]
