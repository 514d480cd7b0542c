"""Damaged files: the same result, or one line that says what is wrong. Never other scores."""

import contextlib
import io
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prune import DualTracker, ScoreTable, select_parquet
from data_prune.__main__ import main
from faults.killed_child import SCALE
from faults.prune_runs import EPOCHS, WINDOW, N, feed, finish, table


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The same bytes with one fault: flipped bits, a cut, other bytes, two parts exchanged."""
    out, at = bytearray(data), rng.randrange(len(data))
    kind = rng.randrange(5)
    if kind == 0:
        for i in (at, *rng.sample(range(len(out)), rng.choice([0, 0, 2]))):
            out[i] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del out[at:]
    elif kind == 2:
        out[at : at + rng.randrange(1, 50)] = rng.randbytes(rng.randrange(50))
    elif kind == 3:  # Parquet describes itself at its end
        out[-rng.randrange(1, min(3500, len(out)))] ^= 1 << rng.randrange(8)
    else:
        other = rng.randrange(len(out))
        out[at : at + 90], out[other : other + 90] = out[other : other + 90], out[at : at + 90]
    return bytes(out)


def command(*arguments: object) -> tuple[int, str]:
    """Exit status and standard error of the command line."""
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        status = main([str(a) for a in arguments])
    return status, err.getvalue()


def read(path: Path) -> ScoreTable | str:
    """The table, or what is said when it is refused."""
    try:
        return ScoreTable.from_parquet(path)
    except (TypeError, ValueError) as error:
        return str(error)


def test_parquet_files(tmp_path: Path) -> None:
    """From Python and at the command line alike."""
    good, rng, outcomes = table(), random.Random(0), Counter[str]()
    good.to_parquet(tmp_path / "good.parquet")
    data, path, out = (tmp_path / "good.parquet").read_bytes(), tmp_path / "bad", tmp_path / "out"
    for _ in range(200 * SCALE):
        path.write_bytes(damaged(data, rng))
        got = read(path)
        out.unlink(missing_ok=True)
        status, said = command("select", path, "-o", out, "--seed", 3)
        if isinstance(got, str):
            assert "\n" not in got
            assert str(path) in got
            assert (status, said.count("\n")) == (2, 1), said
            assert not out.exists()
            outcomes["refused"] += 1
        else:
            assert got.digest() == good.digest()
            assert got.meta == good.meta
            assert status == 0
            kept = ScoreTable.from_parquet(out).key.tolist()
            assert kept == good.select(0.5, seed=3).tolist()
            outcomes["same"] += 1
    assert outcomes["refused"] > 150 * SCALE
    print(dict(outcomes))


FILES = {
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4\nsize 9\n", "git-lfs"),
    "web page": (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    "text": (b"key,label,score\n0,1,0.5\n", "a text file"),
    "json": (b'{"kept": 3}', "a JSON file"),
    "zip": (b"PK\x03\x04archive/data.pkl", "a zip archive"),
    "gzip": (b"\x1f\x8b\x08\x00", "a gzip archive"),
    "numpy": (b"\x93NUMPY\x01\x00v\x00", "a NumPy array"),
    "arrow": (b"ARROW1\x00\x00", "an Arrow file"),
    "empty": (b"", "it is empty"),
    "noise": (bytes(range(128, 250)), "something else"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["report", "select"])
def test_files_of_other_kinds_are_recognised(tmp_path: Path, name: str, kind: str) -> None:
    """The usual accidents have names, and a remedy each."""
    data, what = FILES[kind]
    (tmp_path / "scores.parquet").write_bytes(data)
    status, said = command(name, tmp_path / "scores.parquet", "-o", tmp_path / "out")
    assert (status, said.count("\n")) == (2, 1)
    assert said.startswith(f"error: {tmp_path / 'scores.parquet'} cannot be read as Parquet")
    assert what in said
    assert not (tmp_path / "out").exists()


def changed(name: str, values: object) -> pa.Table:
    """A table of another program, with one column replaced."""
    columns = {"key": np.arange(6), "label": np.zeros(6, int), "score": np.full(6, 0.1)}
    columns |= {"mean_prob": np.full(6, 0.5), "observed": np.full(6, 9), "aum": np.ones(6)}
    return pa.table({**columns, name: values})


COLUMNS = {
    "keys that repeat": ("key", [0, 1, 2, 3, 4, 4], "keys must differ, got .*4"),
    "keys that are floats": ("key", [0.0] * 6, "'key' must hold integers or strings"),
    "a key that is null": ("key", [0, 1, 2, 3, 4, None], "'key' must have a value in every row"),
    "a score that is null": ("score", [0.1] * 5 + [None], "1 nulls"),
    "an infinite score": ("score", [0.1] * 5 + [np.inf], "'score' must be finite"),
    "a score that is text": ("score", ["0.1"] * 6, "'score' must hold numbers, got string"),
    "a probability above 1": ("mean_prob", [1.5] * 6, r"mean_prob must be in \[0.0, 1\]"),
    "a label that is no class": ("label", [-2] * 6, r"label must be in \[-1"),
    "a label that is a float": ("label", [0.5] * 6, "'label' must hold integers"),
    "a count below 0": ("observed", [-1] * 6, r"observed must be in \[0"),
    "an infinite peer": ("aum", [np.inf] * 6, "'aum' must be finite"),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_one_set_of_checks_at_every_door(tmp_path: Path, kind: str) -> None:
    """What memory refuses, a file, a folder of files and the command line refuse as well."""
    name, values, message = COLUMNS[kind]
    (tmp_path / "in").mkdir()
    pq.write_table(changed(name, values), tmp_path / "in" / "0.parquet")
    for source in (tmp_path / "in" / "0.parquet", tmp_path / "in"):
        with pytest.raises((TypeError, ValueError), match=message):
            select_parquet(source, tmp_path / "out", 0.5)
    with pytest.raises((TypeError, ValueError), match=message):
        ScoreTable.from_parquet(tmp_path / "in" / "0.parquet")
    status, said = command("select", tmp_path / "in", "-o", tmp_path / "out")
    assert (status, said.count("\n")) == (2, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]
    if "null" not in kind and "text" not in kind:
        columns = {n: c.to_numpy() for n, c in zip(*_columns(changed(name, values)), strict=True)}
        with pytest.raises((TypeError, ValueError), match=message):
            ScoreTable(peers={"aum": columns.pop("aum")}, **columns)


def _columns(data: pa.Table) -> tuple[list[str], list[pa.ChunkedArray]]:
    return data.column_names, data.columns


def test_a_key_that_lies_in_two_files(tmp_path: Path) -> None:
    """Shards that overlap hold an example twice; both would be kept or neither."""
    (tmp_path / "in").mkdir()
    whole = table(0, 100)
    whole.take(range(60)).to_parquet(tmp_path / "in" / "0.parquet")
    whole.take(range(59, 100)).to_parquet(tmp_path / "in" / "1.parquet")
    with pytest.raises(ValueError, match="keys must differ, got the one of id 59 again"):
        select_parquet(tmp_path / "in", tmp_path / "out", 0.5)
    whole.take(range(99, 59, -1)).to_parquet(tmp_path / "in" / "1.parquet")  # in any order
    assert select_parquet(tmp_path / "in", tmp_path / "out", 0.5)["kept"] == 50


def test_storage_folders(tmp_path: Path) -> None:
    """A file that is lost, cut, exchanged or changed: refused by its name, or not needed."""
    folder, rng, outcomes = tmp_path / "s", random.Random(0), Counter[str]()

    def opened(path: Path) -> DualTracker:
        return DualTracker(N, epochs=EPOCHS, window=WINDOW, peers=("forgetting",), storage=path)

    tracker = opened(folder)
    for epoch in range(EPOCHS - 1):
        feed(tracker, epoch)
        tracker.end_epoch()
    del tracker
    shutil.copytree(folder, tmp_path / "whole")
    expected = finish(opened(tmp_path / "whole"))
    for _ in range(120 * SCALE):
        mutant = tmp_path / "m"
        shutil.rmtree(mutant, ignore_errors=True)
        shutil.copytree(folder, mutant)
        file = rng.choice(sorted(p for p in mutant.iterdir() if p.name != "lock"))
        way, data = rng.randrange(5), file.read_bytes()
        if way == 0:
            file.unlink()
        elif way == 1:
            shutil.copy(rng.choice(sorted(mutant.glob("*.bin"))), file)
        elif way == 2:  # in the values, which lie behind a header of 64 KiB
            at = rng.randrange(min(len(data) - 1, 1 << 16), len(data))
            file.write_bytes(
                data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
            )
        else:
            file.write_bytes(damaged(data, rng))
        got = outcome(lambda path=mutant: finish(opened(path)))
        if got == expected:
            outcomes["same"] += 1
        else:
            assert "\n" not in got
            assert str(mutant) in got or "was recorded with label" in got, (got, file.name, way)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 60 * SCALE
    print(dict(outcomes))


def outcome(work: Callable[[], str]) -> str:
    """What a piece of work returns, or what is said when it is refused."""
    try:
        return work()
    except ValueError as error:
        return str(error)
