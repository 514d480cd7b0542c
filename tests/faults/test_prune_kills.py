"""Writers that are killed at any line: old or new, whole, and the next run goes through."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk, logging

import data_prune
import data_prune.__main__ as command_line
import specgd_common
from data_prune import DualTracker, ScoreTable, prune_dataset, select_parquet
from faults import killed_child
from faults.killed_child import SCALE
from faults.prune_runs import EPOCHS, WINDOW, N, finish, table

OURS = tuple(str(Path(part.__file__).parent) for part in (data_prune, specgd_common))
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_child(work: Callable[[], object], kill_at: int = 0) -> int:
    """Run with every line of the part and of the leaf counted."""
    return killed_child.in_child(work, OURS, kill_at)


def points(lines: int, count: int) -> list[int]:
    """Where to kill: the first and last lines, and random ones."""
    rng = random.Random(0)
    return [1, lines, *(rng.randrange(1, lines + 1) for _ in range(count * SCALE - 2))]


def stored(folder: Path) -> DualTracker:
    return DualTracker(N, epochs=EPOCHS, window=WINDOW, peers="el2n", storage=folder / "s")


def test_recording_into_files(tmp_path: Path) -> None:
    """Whatever line a run dies at, the next one ends with the scores of one that lived."""
    expected = finish(DualTracker(N, epochs=EPOCHS, window=WINDOW, peers="el2n"))
    (tmp_path / "whole").mkdir()
    lines = in_child(lambda: finish(stored(tmp_path / "whole")))
    assert lines > 1000
    epochs = set()
    for i, kill_at in enumerate(points(lines, 12)):
        folder = tmp_path / str(i)
        folder.mkdir()
        for again in range(2):  # the second run dies as well
            in_child(lambda f=folder: finish(stored(f)), kill_at // (1 + again))
        tracker = stored(folder)
        epochs.add(tracker.epoch)
        assert finish(tracker) == expected
        assert {p.name for p in folder.glob("s/*") if p.suffix != ".bin"} == {"lock", "meta.json"}
    assert len(epochs) >= 4


def kills(
    tmp_path: Path,
    work: Callable[[Path], object],
    check: Callable[[Path], bool],
    count: int,
) -> None:
    """Kill ``work(folder)`` at many lines; after each ``check`` says if it had come to its end."""
    for name in ("first", "dry"):
        (tmp_path / name).mkdir()
    work(tmp_path / "first")  # libraries load what they load once
    lines = in_child(lambda: work(tmp_path / "dry"))
    names = {p.name for p in (tmp_path / "dry").iterdir()}
    ended = 0
    for i, kill_at in enumerate(points(lines, count)):
        folder = tmp_path / str(i)
        folder.mkdir()
        in_child(lambda f=folder: work(f), kill_at)
        if check(folder):
            ended += 1
        else:
            in_child(lambda f=folder: work(f))
            assert check(folder)
        assert {p.name for p in folder.iterdir()} == names
    assert ended < count * SCALE


def test_table_over_an_older_one(tmp_path: Path) -> None:
    """The file is the old table or the new one."""
    old, new = table(1), table(2)

    def work(folder: Path) -> None:
        path = folder / "t.parquet"
        if not path.exists():
            old.to_parquet(path)
        new.to_parquet(path)

    def check(folder: Path) -> bool:
        path = folder / "t.parquet"
        if not path.exists():
            return False
        digest = ScoreTable.from_parquet(path).digest()
        assert digest in (old.digest(), new.digest())
        return digest == new.digest()

    kills(tmp_path, work, check, 8)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_selection_from_parquet(tmp_path: Path, kind: str) -> None:
    """A destination is there whole, or not at all and the same command works."""
    source = tmp_path / "scores.parquet"
    if kind == "folder":
        source = tmp_path / "in"
        source.mkdir()
    for i in range(2):
        table(i, 200).take(range(100 * i, 100 * i + 100)).to_parquet(
            source / f"{i}.parquet" if kind == "folder" else source
        )
    (tmp_path / "runs").mkdir()

    def work(folder: Path) -> None:
        select_parquet(source, folder / "kept", 0.5, seed=1)

    def check(folder: Path) -> bool:
        kept = folder / "kept"
        if not kept.exists():
            return False
        files = sorted(kept.iterdir()) if kind == "folder" else [kept]
        rows = sum(len(ScoreTable.from_parquet(file)) for file in files)
        assert rows == json.loads((folder / "kept.json").read_text())["kept"]
        return True

    kills(tmp_path / "runs", work, check, 8)


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page cut in half would look like a short report."""
    table().to_parquet(tmp_path / "scores.parquet")
    page = "<p>" + "x" * 100_000 + "</p>"
    monkeypatch.setattr(command_line, "build_report", lambda *a, **k: page)
    (tmp_path / "runs").mkdir()

    def work(folder: Path) -> None:
        command_line.main(
            ["report", str(tmp_path / "scores.parquet"), "-o", str(folder / "r.html")]
        )

    def check(folder: Path) -> bool:
        if not (folder / "r.html").exists():
            return False
        assert (folder / "r.html").read_text() == page
        return True

    kills(tmp_path / "runs", work, check, 6)


def test_pruned_data_set(tmp_path: Path) -> None:
    """What save_to_disk leaves half done must not stop the next run."""
    logging.disable_progress_bar()
    data, scores = Dataset.from_dict({"x": list(range(60))}), table(0, 60)

    def work(folder: Path) -> None:
        prune_dataset(data, scores, 0.5, save_to=folder / "small")

    def check(folder: Path) -> bool:
        if not (folder / "small").exists():
            return False
        kept = json.loads((folder / "small.json").read_text())["kept"]
        assert load_from_disk(str(folder / "small"))["x"][:] == kept
        return True

    kills(tmp_path, work, check, 6)
