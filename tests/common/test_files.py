"""What a user's folder holds after a write, an error in one, and a kill in one."""

import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from specgd_common import files
from specgd_common.files import Replacement, alone_in, replacing, write_text


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def write() -> None:
        with replacing(target) as file:
            file.write(b"new, half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == {"a.bin"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_umask_and_a_replaced_one_its_own_mode(
    tmp_path: Path, umask: int, mode: int
) -> None:
    old = tmp_path / "old"
    old.write_text("x")
    old.chmod(0o664)
    before = os.umask(umask)
    try:
        write_text(tmp_path / "new", "x")
        write_text(old, "y")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == mode
    assert stat.S_IMODE(old.stat().st_mode) == 0o664


def test_a_link_is_replaced_and_a_planted_one_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "out").symlink_to(tmp_path / "theirs")
    write_text(tmp_path / "out", "ours")
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert (tmp_path / "out").read_text() == "ours"
    assert not (tmp_path / "out").is_symlink()


def test_a_pipe_is_written_to_and_a_folder_refused(tmp_path: Path) -> None:
    write_text("/dev/null", "x")
    assert not Path("/dev/null").is_file()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_text(tmp_path, "x")


def test_all_files_appear_or_none(tmp_path: Path) -> None:
    def write() -> None:
        with Replacement() as several:
            several.open(tmp_path / "part").write(b"1")
            several.open(tmp_path / "gone" / "index").write(b"part")

    with pytest.raises(FileNotFoundError, match="gone/index must lie in a folder that exists"):
        write()
    assert names(tmp_path) == set()


def test_long_names_are_written(tmp_path: Path) -> None:
    name = "é" * 120
    write_text(tmp_path / name, "x")
    assert names(tmp_path) == {name}


def test_a_killed_writer_changes_nothing_and_is_cleared_by_the_next(tmp_path: Path) -> None:
    script = """
        import os, signal, sys
        from specgd_common.files import replacing
        with replacing(sys.argv[1]) as file:
            file.write(b"half"); file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    program = [sys.executable, "-c", textwrap.dedent(script), str(target)]
    assert subprocess.run(program, check=False).returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    assert len(names(tmp_path)) == 2
    mine = tmp_path / ".a.bin.notes.tmp"  # looks alike, and is somebody's
    mine.write_text("mine")
    with replacing(target) as file, replacing(target) as other:  # the living are left alone
        file.write(b"first")
        other.write(b"second")
    assert target.read_bytes() == b"first"
    assert names(tmp_path) == {"a.bin", ".a.bin.notes.tmp"}


def test_an_open_file_has_a_path_for_its_name(tmp_path: Path) -> None:
    """Writers that want a path, such as safetensors' save_file, take it from there."""
    with Replacement() as several:
        file = several.open(tmp_path / "a")
        Path(file.name).write_bytes(b"by its path")
    assert (tmp_path / "a").read_bytes() == b"by its path"


def test_windows_renames_only_closed_files(tmp_path: Path, monkeypatch) -> None:
    """There the rename of an open file is refused, so that nothing could be written at all."""
    replace = os.replace

    def of_closed(source: Path, target: Path) -> None:
        assert file.closed
        replace(source, target)

    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(os, "replace", of_closed)
    with replacing(tmp_path / "a") as file:
        file.write(b"1")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert names(tmp_path) == {"a"}


def test_a_folder_has_one_writer_at_a_time(tmp_path: Path) -> None:
    """Two runs that replace the same set of files would leave a mixture."""
    refused = pytest.raises(BlockingIOError, match="another process writes into")
    with alone_in(tmp_path), refused, alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass
