"""Recording into files: the same scores, and nothing lost when a run is killed."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from data_prune import DualTracker, ScoreTable
from data_prune.record.sums import fold_rows
from reference import dual as naive


def feed(tracker, epoch, n=200, size=64):
    """One epoch of deterministic probabilities."""
    p = (np.sin(np.arange(n) * 0.7 + epoch) + 1) / 2
    for start in range(0, n, size):
        part = slice(start, min(start + size, n))
        tracker.update_probability(np.arange(n)[part], p[part], np.arange(n)[part] % 5)
    return p


def test_storage_in_files_gives_the_same_scores(tmp_path):
    """Out of core is a place, not another method."""
    memory = DualTracker(200, epochs=5, window=3)
    files = DualTracker(200, epochs=5, window=3, storage=tmp_path / "s")
    for epoch in range(5):
        for tracker in (memory, files):
            feed(tracker, epoch)
            tracker.end_epoch()
    assert files.table().digest() == memory.table().digest()
    files.to_parquet(tmp_path / "scores.parquet")
    assert ScoreTable.from_parquet(tmp_path / "scores.parquet").digest() == memory.table().digest()


def test_killed_run_loses_only_the_open_epoch(tmp_path):
    """A process killed without warning in epoch 3 goes on from three closed epochs."""
    script = """
        import os, sys
        sys.path.insert(0, sys.argv[2])
        from prune.test_storage import feed
        from data_prune import DualTracker
        tracker = DualTracker(200, epochs=5, window=3, storage=sys.argv[1])
        for epoch in range(3):
            feed(tracker, epoch); tracker.end_epoch()
        tracker.update_probability([0, 0, 1], [0.9, 0.1, 0.5], [0, 0, 1])
        os._exit(9)
    """
    folder = tmp_path / "s"
    code = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(script),
            str(folder),
            str(Path(__file__).parents[1]),
        ],
        check=False,
    ).returncode
    assert code == 9
    tracker = DualTracker(200, epochs=5, window=3, storage=folder)
    assert tracker.epoch == 3
    history = [feed(DualTracker(200, epochs=5, window=3), e) for e in range(5)]
    for epoch in (3, 4):
        feed(tracker, epoch)
        tracker.end_epoch()
    np.testing.assert_allclose(tracker.table().score, naive.dual(history, 3), atol=1e-6)
    assert tracker.coverage()["duplicates"] == 0


def test_kill_while_an_epoch_is_being_closed_keeps_the_old_sums(tmp_path):
    """The sums exist twice, so that half an update can never be read."""
    tracker = DualTracker(200, epochs=4, window=2, storage=tmp_path)
    for epoch in range(2):
        feed(tracker, epoch)
        tracker.end_epoch()
    before = tracker.table(min_epochs=2).digest()
    feed(tracker, 2)
    # Everything close() does before it makes the new state valid, then nothing more: a kill.
    store, slots = tracker._store, (".0", ".1")
    row = {"prob": store.rows()["prob"][:150]}
    fold_rows(store.arrays, row, slice(0, 150), slots, epoch=2, window=2)
    del tracker, store
    tracker = DualTracker(200, epochs=4, window=2, storage=tmp_path)
    assert tracker.table(min_epochs=2).digest() == before
    for epoch in (2, 3):
        feed(tracker, epoch)
        tracker.end_epoch()
    history = [feed(DualTracker(200, epochs=4, window=2), e) for e in range(4)]
    np.testing.assert_allclose(tracker.table().score, naive.dual(history, 2), atol=1e-6)


def test_storage_of_other_settings_or_other_files_is_refused(tmp_path):
    """Nobody's folder is overwritten, and no other recording continued."""
    tracker = DualTracker(200, epochs=4, window=2, storage=tmp_path / "a")
    feed(tracker, 0)
    tracker.end_epoch()
    with pytest.raises(RuntimeError, match="in use by another tracker"):
        DualTracker(200, epochs=4, window=2, storage=tmp_path / "a")
    del tracker
    with pytest.raises(ValueError, match="num_examples = 200, this tracker has 201"):
        DualTracker(201, epochs=4, window=2, storage=tmp_path / "a")
    with pytest.raises(ValueError, match="window = 2, this tracker has 3"):
        DualTracker(200, epochs=4, window=3, storage=tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("do not delete")
    with pytest.raises(ValueError, match="must be an empty folder"):
        DualTracker(200, epochs=4, window=2, storage=tmp_path / "b")
    with pytest.raises(ValueError, match=r"must be a folder, got the file .*thesis\.txt"):
        DualTracker(200, epochs=4, window=2, storage=tmp_path / "b" / "thesis.txt")
    meta = tmp_path / "a" / "meta.json"
    stored = json.loads(meta.read_text())
    assert (stored["counters"]["epoch"], stored["format"]) == (1, 3)
    meta.write_text(json.dumps(stored["counters"]))  # as the first format was written
    with pytest.raises(
        ValueError, match="storage format 1, known is 3: finish it with the version"
    ):
        DualTracker(200, epochs=4, window=2, storage=tmp_path / "a")
