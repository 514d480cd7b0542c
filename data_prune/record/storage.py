"""A folder that holds the arrays of one recording: a marker, a lock, and one mapped file each.

The marker ``meta.json`` is written before any array and names all of them; it is replaced whenever
an epoch has been closed. A folder without it that is not empty is somebody else's.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import secrets
import shutil
import warnings
import weakref
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specgd_common.files import hold

from .marker import MARKER, check_settings, read_marker, write_marker

LOCK = "lock"
# A header is as long as the largest page, so that arrays begin where pages do.
HEADER = 1 << 16
BLOCK = 1 << 20

_OPEN: weakref.WeakSet[Storage] = weakref.WeakSet()


class Storage:
    """The arrays of one recording in files, open for this process alone.

    Args:
        path: The folder; made if it is not there.
        fields: name -> what the array looks like (``lead``, ``dtype`` and ``fill``).
        num_examples: N, the last axis of every array.
        settings: What the recording is; a storage of other settings is refused.

    Attributes:
        arrays: name -> array, mapped from its file.
        counters: What ``commit`` was given last; None if no epoch has been closed.

    Raises:
        OSError: If the folder cannot be used, or the disk has too little space.
        RuntimeError: If another tracker has the folder open.
        ValueError: If it belongs to somebody else or to another recording, or is damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        fields: Mapping[str, Any],
        num_examples: int,
        settings: dict[str, Any],
    ) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"storage must be a folder, got the file {self.path}")
        self.path.mkdir(parents=True, exist_ok=True)
        self._fields, self._num_examples = fields, num_examples
        self._maps: dict[str, mmap.mmap] = {}
        self._crc: dict[str, int] = {}
        self.arrays: dict[str, NDArray] = {}
        self._check_ours()
        read_marker(self.path)  # what is no storage is refused before the lock lies in it
        self._unlock = self._take_lock()
        marker = read_marker(self.path)
        if marker is None or not marker["ready"]:
            self.counters = None
            self._make(settings, {} if marker is None else marker["bytes"])
            return
        check_settings(marker["counters"], settings, str(self.path))
        self.counters, self._id = marker["counters"], marker["id"]
        self._check_files(marker["bytes"])
        for name in fields:
            self._map(name)
        self._crc = marker["crc"]
        self._check_contents()

    # -- opening ------------------------------------------------------------------------------

    def _check_ours(self) -> None:
        """Refuse a folder without a marker that holds anything: no file of it is touched."""
        ours = re.compile(rf"{re.escape(LOCK)}|\.{re.escape(MARKER)}\.[0-9a-f]+\.tmp")
        names = sorted(entry.name for entry in self.path.iterdir())
        others = [name for name in names if not ours.fullmatch(name)]
        if others and MARKER not in others:
            raise ValueError(
                f"storage must be an empty folder or an earlier storage, got {self.path}, which "
                f"holds {others[0]!r}" + (f" and {len(others) - 1} more" if others[1:] else "")
            )

    def _take_lock(self) -> weakref.finalize:
        """Lock the folder until this object is gone; return what gives it free before."""
        lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        release = weakref.finalize(self, os.close, lock)
        try:
            hold(lock)
        except BlockingIOError:
            release()
            raise RuntimeError(
                f"storage {self.path} is in use by another tracker: give each run its own folder"
            ) from None
        except OSError as error:
            warnings.warn(
                f"storage {self.path} cannot be locked ({error}): nothing keeps another tracker "
                "out of it, so give each run its own folder",
                stacklevel=6,
            )
        _OPEN.add(self)
        return release

    def _size(self, name: str) -> int:
        field = self._fields[name]
        items = int(np.prod(field.lead, dtype=np.int64)) * self._num_examples
        return HEADER + items * np.dtype(field.dtype).itemsize

    def _header(self, name: str) -> bytes:
        field = self._fields[name]
        about = {"array": name, "dtype": field.dtype, "lead": field.lead, "storage": self._id}
        return json.dumps({**about, "examples": self._num_examples}).encode().ljust(HEADER, b"\0")

    def _check_files(self, sizes: dict[str, int]) -> None:
        """Every array is there, as long as it was made, under the header that it was given."""
        lost = [name for name in self._fields if not self._file(name).is_file()]
        if lost:
            raise ValueError(
                f"{self.path} has lost {lost}: the files of a storage belong together. Copy them "
                "again, or record anew in an empty folder"
            )
        for name in self._fields:
            file = self._file(name)
            size = file.stat().st_size
            if size != self._size(name) or sizes.get(name) != size:
                raise ValueError(f"{file} must have {self._size(name)} bytes, got {size}")
            with file.open("rb") as handle:
                if handle.read(HEADER) != self._header(name):
                    raise ValueError(f"{file} must hold {name!r} of this recording: it is another")

    def _check_contents(self) -> None:
        for name, crc in self._crc.items():
            if _crc32(self._row(name)) != crc:
                raise ValueError(
                    f"{self._file(name.partition(':')[0])} was changed after it was written: its "
                    "checksum does not match. Record anew in an empty folder"
                )
            self.release()

    # -- making -------------------------------------------------------------------------------

    def _make(self, settings: dict[str, Any], left: dict[str, int]) -> None:
        """Write the marker, then every array; what an earlier attempt left is written over."""
        for name in left:
            self._file(name).unlink(missing_ok=True)
        sizes = {name: self._size(name) for name in self._fields}
        self._check_space(sum(sizes.values()))
        self._id = secrets.token_hex(8)
        self._write_marker({"ready": False, "counters": settings, "bytes": sizes})
        try:
            for name in self._fields:
                self._fill(name, sizes[name])
        except OSError as error:
            for name in self._fields:
                self._file(name).unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._check_space(sum(sizes.values()), at_least=1)
            raise
        for name in self._fields:
            self._map(name)
        self._write_marker({"ready": True, "counters": settings, "bytes": sizes})

    def _check_space(self, needed: int, at_least: int = 0) -> None:
        free = shutil.disk_usage(self.path).free
        missing = max(needed - free, at_least)
        if missing > 0:
            raise OSError(
                errno.ENOSPC,
                f"storage {self.path} needs {needed:,} bytes, {free:,} are free: {missing:,} are "
                "missing. Free them, or choose a folder on another disk",
            )

    def _fill(self, name: str, size: int) -> None:
        """Write one array as it begins; the space is taken now, not when a page is touched."""
        field = self._fields[name]
        value = np.array(field.fill, dtype=field.dtype)
        with self._file(name).open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                with suppress_unsupported():
                    os.posix_fallocate(file.fileno(), 0, size)
            file.write(self._header(name))
            block = np.full(BLOCK // value.itemsize, value).tobytes()
            for start in range(HEADER, size, BLOCK):
                file.write(block[: size - start])

    def _map(self, name: str) -> None:
        field = self._fields[name]
        with self._file(name).open("r+b") as file:
            self._maps[name] = mmap.mmap(file.fileno(), self._size(name))
        array = np.frombuffer(self._maps[name], dtype=field.dtype, offset=HEADER)
        self.arrays[name] = array.reshape(*field.lead, self._num_examples)

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.bin"

    # -- closing an epoch ---------------------------------------------------------------------

    def _row(self, name: str) -> NDArray:
        """Return a sum by its name, or a row of the ring by its name and number, "ring.low:3"."""
        array, _, row = name.partition(":")
        return self.arrays[array][int(row)] if row else self.arrays[array]

    def folded(self, part: slice, slot: str, row: int) -> None:
        """Take up the checksums of a range that has just been written, and give its pages back.

        Args:
            part: The range, in ascending order from 0.
            slot: Suffix of the sums that were written.
            row: Of the ring, that was written.
        """
        sums = [name for name in self.arrays if name.endswith(slot)]
        for name in (*sums, f"ring.high:{row}", f"ring.low:{row}"):
            before = self._crc.get(name, 0) if part.start else 0
            self._crc[name] = _crc32(self._row(name)[part], before)
        self.release()

    def commit(self, counters: dict[str, Any], slot: str, next_row: int) -> None:
        """Make what was folded the valid state: from here on a killed run goes on with it.

        Args:
            counters: Of the recording.
            slot: Suffix of the sums that are valid now.
            next_row: Of the ring, which the next epoch writes over.
        """
        for mapped in self._maps.values():
            mapped.flush()
        dead = {f"ring.high:{next_row}", f"ring.low:{next_row}"}
        crc = {
            name: value
            for name, value in self._crc.items()
            if (":" in name and name not in dead) or name.endswith(slot)
        }
        sizes = {name: self._size(name) for name in self._fields}
        self._write_marker({"ready": True, "counters": counters, "bytes": sizes, "crc": crc})
        self._crc, self.counters = crc, counters

    def replace(
        self, arrays: dict[str, NDArray], counters: dict[str, Any], slot: str, next_row: int
    ) -> None:
        """Take over another state of the recording; a kill meanwhile leaves an empty storage.

        Args:
            arrays: name -> array, all of them.
            counters: See ``commit``.
            slot: See ``commit``.
            next_row: See ``commit``.
        """
        sizes = {name: self._size(name) for name in self._fields}
        self._write_marker({"ready": False, "counters": counters, "bytes": sizes})
        for name, array in arrays.items():
            self.arrays[name][...] = array
        rings = [
            f"{ring}:{i}" for ring in ("ring.high", "ring.low") for i in range(counters["window"])
        ]
        sums = [name for name in self.arrays if name.endswith(slot)]
        self._crc = {name: _crc32(self._row(name)) for name in (*sums, *rings)}
        self.commit(counters, slot, next_row)

    def _write_marker(self, content: dict[str, Any]) -> None:
        write_marker(self.path, {"id": self._id, "crc": {}, **content})

    def release(self) -> None:
        """Let the kernel drop the pages of all files; dirty ones stay in the page cache."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps.values():
                mapped.madvise(mmap.MADV_DONTNEED)


@contextmanager
def suppress_unsupported() -> Iterator[None]:
    """Go on where a file system cannot take space ahead: writing takes it as well."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def _crc32(array: NDArray, before: int = 0) -> int:
    return zlib.crc32(array.data, before)


def _leave_to_parent() -> None:
    """Close the locks in a forked child: a worker that outlives the run must not hold them."""
    for storage in list(_OPEN):
        storage._unlock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
