"""Files of a SpectrumTracker: the old one or the new one, never half of one."""

import stat
from pathlib import Path
from typing import Any

import pytest
from pyarrow import csv, parquet
from torch import nn

from torch_specgd import SpectrumTracker

WRITERS = {"to_csv": (csv, "write_csv"), "to_parquet": (parquet, "write_table")}


def tracker() -> SpectrumTracker:
    result = SpectrumTracker(nn.Linear(4, 3), every=1)
    result.record(0)
    return result


@pytest.mark.parametrize("method", WRITERS)
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_write_that_breaks_off_leaves_what_was_there(
    method: str, old: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, or Ctrl-C: the records of days are in the old file."""
    path = tmp_path / "spectra"
    if old is not None:
        path.write_bytes(old)

    def broken(table: Any, file: Any, **_: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*WRITERS[method], broken)
    with pytest.raises(OSError, match="No space left"):
        getattr(tracker(), method)(path)
    assert [x.name for x in tmp_path.iterdir()] == ([] if old is None else ["spectra"])
    assert old is None or path.read_bytes() == old


@pytest.mark.parametrize("method", WRITERS)
def test_a_replaced_file_keeps_its_mode(method: str, tmp_path: Path) -> None:
    path = tmp_path / "spectra"
    path.write_bytes(b"old")
    path.chmod(0o640)
    getattr(tracker(), method)(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    read = csv.read_csv if method == "to_csv" else parquet.read_table
    assert read(path).num_rows == 3
