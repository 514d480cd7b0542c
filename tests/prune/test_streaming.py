"""Parquet, Ray and Hugging Face data sets keep exactly the examples that memory keeps."""

import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prune import ScoreTable, prune_dataset, select_parquet
from data_prune.scale import streaming as streaming_module
from data_prune.select import topk


def make_table(n=3000, seed=0, keys=None):
    rng = np.random.default_rng(seed)
    return ScoreTable(
        key=np.arange(n) if keys is None else keys,
        label=rng.integers(7, size=n).astype(np.int32),
        score=np.where(rng.uniform(size=n) < 0.1, 0, rng.uniform(0, 0.3, n)).astype(np.float32),
        mean_prob=rng.beta(5, 2, n).astype(np.float32),
        observed=np.full(n, 30),
        peers={"aum": rng.normal(size=n).astype(np.float32)},
    )


def write_folder(table, folder, parts=3):
    """Several files, as a cluster writes them; strings as keys."""
    folder.mkdir()
    edges = np.linspace(0, len(table), parts + 1).astype(int)
    for k, (a, b) in enumerate(itertools.pairwise(edges)):
        ScoreTable(
            table.key[a:b], table.label[a:b], table.score[a:b], table.mean_prob[a:b],
            table.observed[a:b], {"aum": table.peers["aum"][a:b]},
        ).to_parquet(folder / f"part-{k}.parquet")  # fmt: skip


OPTIONS = [
    {},
    {"method": "plausible", "per_class": False, "seed": 3},
    {"preset": "paper"},
    {"method": "beta", "c_d": 5.5},
    {"method": "beta", "c_d": "auto"},
    {"method": "beta", "per_class": True, "seed": 3},
    {"method": "top"},
    {"method": "weighted"},
    {"method": "ccs"},
    {"method": "random", "seed": 2**40},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("prune_ratio", [0.0, 0.6, 0.95])
def test_stream_keeps_what_memory_keeps(tmp_path, monkeypatch, options, prune_ratio):
    """Small batches and an early radix search must not change a single example."""
    monkeypatch.setattr(streaming_module, "BATCH", 257)
    monkeypatch.setattr(topk, "COLLECT", 20)
    table = make_table()
    table.to_parquet(tmp_path / "s.parquet")
    settings = select_parquet(
        tmp_path / "s.parquet", tmp_path / "k.parquet", prune_ratio, **options
    )
    kept = pq.read_table(tmp_path / "k.parquet")
    expected = table.select(prune_ratio, **options)
    assert kept["key"].to_pylist() == expected.tolist()
    assert kept.column_names == ["key", "label", "score", "mean_prob", "observed", "aum"]
    assert json.loads((tmp_path / "k.parquet.json").read_text()) == settings
    assert settings["kept"] == len(expected)


@pytest.mark.parametrize("options", [{}, {"method": "ccs"}])
def test_parquet_is_read_twice_however_long_the_search(tmp_path, monkeypatch, options):
    """A wide table costs two readings; what is searched between them are a few columns."""
    read, start = [], pq.ParquetFile.iter_batches

    def counting(reader, *how, **options):
        read.append(reader.metadata.num_rows)
        return start(reader, *how, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counting)
    monkeypatch.setattr(topk, "COLLECT", 20)
    write_folder(make_table(), tmp_path / "in")
    select_parquet(tmp_path / "in", tmp_path / "out", 0.7, **options)
    assert read == 2 * [1000, 1000, 1000]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["in", "out", "out.json"]


def test_folder_of_files_with_string_keys(tmp_path):
    """A folder becomes a folder with the same names, and rows stay in their files."""
    table = make_table(900, keys=np.array([f"shard/{i:04d}.jpg" for i in range(900)]))
    write_folder(table, tmp_path / "in")
    select_parquet(tmp_path / "in", tmp_path / "out", 0.7)
    kept = [
        k for f in sorted((tmp_path / "out").iterdir()) for k in pq.read_table(f)["key"].to_pylist()
    ]
    assert kept == table.key[table.select(0.7)].tolist()
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        f"part-{k}.parquet" for k in range(3)
    ]


def test_nothing_is_overwritten_and_bad_input_is_named(tmp_path):
    """A second run with another ratio must not replace the first one's result."""
    table = make_table(50)
    table.to_parquet(tmp_path / "s.parquet")
    with pytest.raises(FileExistsError, match="not overwritten"):
        select_parquet(tmp_path / "s.parquet", tmp_path / "s.parquet", 0.5)
    with pytest.raises(FileNotFoundError, match=r"t\.parquet: does not exist"):
        select_parquet(tmp_path / "t.parquet", tmp_path / "k", 0.5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: holds no Parquet file"):
        select_parquet(tmp_path / "empty", tmp_path / "k", 0.5)
    with pytest.raises(ValueError, match="engine must be 'local' or 'ray', got 'spark'"):
        select_parquet(tmp_path / "s.parquet", tmp_path / "k", 0.5, engine="spark")
    data = pq.read_table(tmp_path / "s.parquet")
    pq.write_table(data.drop_columns(["mean_prob"]), tmp_path / "u.parquet")
    with pytest.raises(ValueError, match=r"lacks the columns \['mean_prob'\]"):
        select_parquet(tmp_path / "u.parquet", tmp_path / "k", 0.5)
    bad = ScoreTable(
        table.key, table.label, table.score, table.mean_prob, table.observed, meta={"nonfinite": 3}
    )
    bad.to_parquet(tmp_path / "v.parquet")
    with pytest.raises(ValueError, match="3 observations had NaN"):
        select_parquet(tmp_path / "v.parquet", tmp_path / "k", 0.5)


# Ray Data sets its own deprecated defaults when it is first used, and on a busy machine a thread
# of its iterators may still wait when it is interrupted at their end.
ray_data_defaults = pytest.mark.filterwarnings(
    "ignore:`use_:DeprecationWarning:ray.data.context",
    "ignore:Exception in thread .*completion-signaler:pytest.PytestUnhandledThreadExceptionWarning",
)


@pytest.fixture(scope="module")
def ray():
    """Ray without a token in the home folder, and workers that are not starved of time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_worker_niceness", "0")  # 15 by default
        yield pytest.importorskip("ray", reason="needs the extra: pip install 'torch-specgd[ray]'")


@pytest.fixture(scope="module")
def two_workers(ray):
    """Ray on this machine with two processors, which sends nothing anywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


def ray_processes():
    """Names of the servers and workers that this process has started and that still run."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    names = (Path(f"/proc/{pid}/comm") for pid in children.read_text().split())
    return [n for n in (path.read_text().strip() for path in names if path.exists()) if "ray" in n]


@pytest.mark.slow
@ray_data_defaults
def test_ray_that_was_started_for_a_selection_ends_with_it(tmp_path, monkeypatch, ray):
    """A user without a cluster must not be left with servers, or send statistics unasked."""
    table, asked = make_table(), []
    start = ray.init

    def init(**options):
        asked.append((os.environ["RAY_USAGE_STATS_ENABLED"], options["include_dashboard"]))
        start(num_cpus=2, log_to_driver=False, logging_level="ERROR", **options)
        assert sys.platform != "linux" or ray_processes()

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    table.to_parquet(tmp_path / "s.parquet")
    select_parquet(tmp_path / "s.parquet", tmp_path / "k", 0.8, engine="ray", method="top")
    kept = pq.read_table(tmp_path / "k")["key"].to_pylist()
    assert sorted(kept) == table.select(0.8, method="top").tolist()
    assert asked == [("0", False)]
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ
    assert not ray.is_initialized()
    assert sys.platform != "linux" or not ray_processes()


@pytest.mark.slow
@ray_data_defaults
@pytest.mark.parametrize(
    "options",
    [{"c_d": "auto", "per_class": True, "seed": 3}, {"method": "ccs"}],
    ids=["beta", "ccs"],
)
def test_ray_data_keeps_what_memory_keeps(tmp_path, monkeypatch, two_workers, options):
    """Two workers, blocks in any order, counts first, two readings: the very same rows."""
    from ray import data as ray_data

    monkeypatch.setattr(streaming_module, "BATCH", 257)
    monkeypatch.setattr(topk, "COLLECT", 400)
    read, read_parquet = [], ray_data.read_parquet
    monkeypatch.setattr(
        ray_data, "read_parquet", lambda *a, **k: read.append(a) or read_parquet(*a, **k)
    )
    table = make_table(keys=np.array([f"shard/{i:04d}.jpg" for i in range(3000)]))
    write_folder(table, tmp_path / "in", parts=4)
    settings = select_parquet(tmp_path / "in", tmp_path / "out", 0.8, engine="ray", **options)
    assert len(read) == 1  # the other reading is ours, one task for each file
    kept = pq.read_table(tmp_path / "out").sort_by("key")
    expected = table.take(table.select(0.8, **options))
    assert kept["key"].to_pylist() == expected.key.tolist()
    assert kept["aum"].to_pylist() == expected.peers["aum"].tolist()
    assert kept.column_names == ["key", "label", "score", "mean_prob", "observed", "aum"]
    assert settings["kept"] == len(expected)


@pytest.mark.slow
@ray_data_defaults
def test_ray_keeps_the_same_groups(tmp_path, two_workers):
    """Workers read the same columns and know the same lists."""
    table, patient = make_table(), np.arange(3000) // 7 % 200
    frame = table.to_frame("arrow").append_column("patient", pa.array(patient.astype(str)))
    pq.write_table(frame, tmp_path / "s.parquet")
    lists = {"keep": [5], "drop": [7]}
    select_parquet(
        tmp_path / "s.parquet", tmp_path / "out", 0.6, engine="ray", groups="patient", **lists
    )
    expected = table.key[table.select(0.6, groups=patient.astype(str), **lists)]
    assert sorted(pq.read_table(tmp_path / "out")["key"].to_pylist()) == expected.tolist()


def test_hugging_face_data_set_keeps_columns_and_says_how(tmp_path):
    """Anyone must be able to tell later which rows were kept, and why."""
    from datasets import Dataset, load_from_disk

    table = make_table(200)
    data = Dataset.from_dict({"text": [f"t{i}" for i in range(200)], "row": list(range(200))})
    pruned = prune_dataset(data, table, 0.9, save_to=tmp_path / "small", seed=7)
    expected = table.select(0.9, seed=7).tolist()
    assert pruned["row"][:] == expected
    assert pruned.column_names == ["text", "row"]
    assert pruned._indices is None
    assert load_from_disk(str(tmp_path / "small"))["row"][:] == expected
    record = json.loads((tmp_path / "small.json").read_text())
    assert record["kept"] == expected
    assert record["settings"]["prune_ratio"] == 0.9
    assert record["settings"]["seed"] == 7
    assert record["scores"]["digest"] == table.digest()
    with pytest.raises(FileExistsError, match="not overwritten"):
        prune_dataset(data, table, 0.5, save_to=tmp_path / "small")
    with pytest.raises(ValueError, match="scores 200 examples, the data set has 100"):
        prune_dataset(data.select(range(100)), table, 0.5)
    with pytest.raises(TypeError, match="got IterableDataset"):
        prune_dataset(data.to_iterable_dataset(), table, 0.5)
