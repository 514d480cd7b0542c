"""Whose a storage folder is: others' files are safe, two runs cannot share one, space is taken."""

import errno
import os
import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prune import DualTracker
from data_prune.record import storage
from specgd_common import files


def opened(path: Path, **options) -> DualTracker:
    return DualTracker(20, **{"epochs": 4, "window": 2, "storage": path, **options})


def feed(tracker: DualTracker, epoch: int) -> None:
    p = (np.sin(np.arange(20) + epoch) + 1) / 2
    tracker.update_probability(np.arange(20), p, np.arange(20) % 3)


@pytest.mark.parametrize(
    "names",
    [
        ["pytorch_model.bin", "config.json"],
        ["score_sum.0.bin"],
        [".hidden"],
        ["notes/"],
        ["meta.json"],
        ["meta.json", "label.bin"],
        ["lock", "thesis.tex"],
    ],
)
def test_a_folder_of_other_files_is_refused_and_left_as_it_is(tmp_path, names):
    """A model's weights once ended where storage= pointed at its folder."""
    for name in names:
        path = tmp_path / name
        path.mkdir() if name.endswith("/") else path.write_text('{"precious": 1}')
    before = {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")}
    with pytest.raises(ValueError, match=r"storage must be an empty folder|marker of a storage"):
        opened(tmp_path)
    assert {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")} == before


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "s").write_text("mine")
    with pytest.raises(ValueError, match="storage must be a folder, got the file"):
        opened(tmp_path / "s")
    assert (tmp_path / "s").read_text() == "mine"


def test_two_processes_cannot_have_one_storage(tmp_path):
    """Two ranks with one path would add up each other's sums."""
    tracker = opened(tmp_path / "s")
    feed(tracker, 0)
    tracker.end_epoch()
    code = f"""
        from data_prune import DualTracker
        try:
            DualTracker(20, epochs=4, window=2, storage={str(tmp_path / "s")!r})
        except RuntimeError as error:
            print(error)
    """
    run = [sys.executable, "-c", textwrap.dedent(code)]
    second = subprocess.run(run, capture_output=True, text=True, check=True)
    assert "is in use by another tracker: give each run its own folder" in second.stdout
    feed(tracker, 1)  # the first goes on
    tracker.end_epoch()
    del tracker
    assert opened(tmp_path / "s").epoch == 2


@pytest.mark.parametrize("system", ["no locks on this file system", "no locks at all"])
def test_a_folder_that_cannot_be_locked_is_named(tmp_path, monkeypatch, system):
    """Some network file systems have no locks: the recording goes on, and says so once."""
    if system == "no locks at all":
        monkeypatch.setattr(files, "fcntl", None)
    else:
        fcntl = pytest.importorskip("fcntl")

        def flock(*_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match=r"storage .*/s cannot be locked") as caught:
        tracker = opened(tmp_path / "s")
    assert [Path(each.filename) for each in caught] == [Path(__file__)]
    for epoch in range(4):
        feed(tracker, epoch)
        tracker.end_epoch()
    assert len(tracker.table()) == 20


def test_on_windows_a_folder_is_locked_as_well(tmp_path, monkeypatch):
    """Its locks are another module's, which answers EACCES where another process has the byte."""
    held = []

    class Windows:
        LK_NBLCK = 2

        @staticmethod
        def locking(descriptor: int, mode: int, count: int) -> None:
            assert (mode, count) == (2, 1)
            file = os.fstat(descriptor).st_ino
            if file in held:
                raise PermissionError(errno.EACCES, "Permission denied")
            held.append(file)

    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(files, "msvcrt", Windows)
    tracker = opened(tmp_path / "s")  # and warns of nothing
    assert held == [(tmp_path / "s" / "lock").stat().st_ino]
    with pytest.raises(RuntimeError, match="is in use by another tracker"):
        opened(tmp_path / "s")
    feed(tracker, 0)
    tracker.end_epoch()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_worker_that_outlives_the_run_does_not_hold_its_storage(tmp_path):
    """Forked data loader workers inherit open files, and with them locks."""
    tracker = opened(tmp_path / "s")
    (started, start), (ended, end) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        os.write(start, b".")
        os.read(ended, 1)  # until the parent closes its end
        os._exit(0)
    os.read(started, 1)
    del tracker
    try:
        assert opened(tmp_path / "s").epoch == 0
    finally:
        os.close(end)
        os.waitpid(child, 0)
        for descriptor in (started, start, ended):
            os.close(descriptor)


@pytest.mark.parametrize("lost", ["score_sum.0", "ring.high", "label", "row.prob", "windows.1"])
def test_lost_files_are_named(tmp_path, lost):
    """Half a copy of a folder once resumed at epoch 3 with scores several times too small."""
    tracker = opened(tmp_path / "s")
    for epoch in range(3):
        feed(tracker, epoch)
        tracker.end_epoch()
    del tracker
    (tmp_path / "s" / f"{lost}.bin").unlink()
    with pytest.raises(ValueError, match=rf"has lost \['{lost}'\]"):
        opened(tmp_path / "s")


def test_files_of_another_recording_are_refused(tmp_path):
    """A sum of the same length from another run has another storage's header."""
    for name in ("a", "b"):
        tracker = opened(tmp_path / name)
        feed(tracker, 0)
        tracker.end_epoch()
        del tracker
    other = (tmp_path / "b" / "prob_sum.1.bin").read_bytes()
    (tmp_path / "a" / "prob_sum.1.bin").write_bytes(other)
    with pytest.raises(ValueError, match=r"must hold 'prob_sum\.1' of this recording"):
        opened(tmp_path / "a")


def test_labels_of_a_lost_epoch_do_not_count(tmp_path):
    """A run that was killed over a wrong order of labels must be able to begin again."""
    tracker = opened(tmp_path / "s")
    tracker.update_probability([0, 1], [0.5, 0.5], [1, 2])
    del tracker
    tracker = opened(tmp_path / "s")
    tracker.update_probability([0, 1], [0.5, 0.5], [2, 1])
    tracker.end_epoch()
    assert tracker.coverage()["missing_per_epoch"] == [18]


def test_the_scale_of_losses_and_the_task_survive_a_kill(tmp_path):
    """Another scale after a resume would turn the same losses into other probabilities."""
    options = {"task": "regression", "storage": tmp_path / "s"}
    tracker = DualTracker(3, epochs=3, window=2, **options)
    tracker.update([0, 1, 2], torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3))
    tracker.end_epoch()
    del tracker
    assert DualTracker(3, epochs=3, window=2, **options).loss_scale == 4.0
    with pytest.raises(ValueError, match=r"task = regression, this tracker has classification"):
        DualTracker(3, epochs=3, window=2, storage=tmp_path / "s")


def test_a_state_that_is_loaded_is_in_the_files_as_well(tmp_path):
    """Killed after the load, a run goes on from what was loaded, not from a mixture."""
    first, second = opened(tmp_path / "a"), opened(tmp_path / "b")
    for epoch in range(3):
        feed(first, epoch)
        first.end_epoch()
    feed(second, 7)
    second.end_epoch()
    second.load_state_dict(first.state_dict())
    del second
    second = opened(tmp_path / "b")
    for tracker in (first, second):
        feed(tracker, 3)
        tracker.end_epoch()
    assert first.table().digest() == second.table().digest()


Usage = namedtuple("Usage", "total used free")


def test_too_little_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
    """A mapped file on a full disk ends the process without a word when a page is touched."""
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: Usage(0, 0, 1000))
    with pytest.raises(OSError, match=r"needs [\d,]+ bytes, 1,000 are free: [\d,]+ are missing"):
        opened(tmp_path / "s")
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["lock"]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_space_that_ends_while_it_is_taken(tmp_path, monkeypatch):
    """A quota, or another writer: what was made is removed, and the folder can be used again."""
    calls, take = [], os.posix_fallocate

    def fallocate(*where):
        calls.append(where)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        take(*where)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    with pytest.raises(OSError, match="are missing"):
        opened(tmp_path / "s")
    assert not list((tmp_path / "s").glob("*.bin"))
    assert opened(tmp_path / "s").epoch == 0
    sizes = [p.stat().st_blocks * 512 >= p.stat().st_size for p in (tmp_path / "s").glob("*.bin")]
    assert len(sizes) == 12
    assert all(sizes)
