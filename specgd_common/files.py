"""One way to write a file: aside and whole, then renamed into its place."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows has none: there what a killed writer left is not cleared
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:  # only Windows has it
    msvcrt = None  # type: ignore[assignment]

WINDOWS = os.name == "nt"
# Long names are cut, so that a temporary's name never exceeds what a file system takes.
_KEPT_OF_NAME = 50
_TOKEN = re.compile(r"\.[0-9a-f]{16}\.tmp")


class Replacement:
    """Files that are written aside and take their places when all of them are whole.

    They are renamed in the order in which they were opened: open the one that names the others
    last. If the block raises, nothing has changed. A new file's mode follows the umask, a replaced
    one keeps its own. What a killed writer left aside is cleared by the next one of that path.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with Replacement() as files:
        ...     _ = files.open(folder / "part").write(b"1")
        ...     _ = files.open(folder / "index").write(b"part")
        >>> sorted(path.name for path in folder.iterdir())
        ['index', 'part']
    """

    def __init__(self) -> None:
        self._opened: list[tuple[IO[bytes], Path | None, Path]] = []
        self._stack = ExitStack()

    def open(self, path: str | os.PathLike[str]) -> IO[bytes]:
        """Return a binary file, open for writing and reading, that becomes ``path`` at the end.

        Its ``name`` is the temporary's path, for writers that want a path.

        Args:
            path: The target. A device or a pipe is written to directly. A link is replaced, not
                followed.

        Raises:
            OSError: If the folder does not exist or cannot be written, or ``path`` is a folder.
        """
        target = Path(path)
        if target.is_dir():
            raise IsADirectoryError(f"{target} is a folder, not a file")
        if target.exists() and not target.is_file():
            file: IO[bytes] = self._stack.enter_context(target.open("wb"))
            self._opened.append((file, None, target))
            return file
        if not target.parent.is_dir():
            raise FileNotFoundError(f"{target} must lie in a folder that exists")
        _clear_left(target)
        file, temporary = _open_aside(target)
        self._stack.callback(temporary.unlink, missing_ok=True)
        self._stack.enter_context(file)
        self._opened.append((file, temporary, target))
        return file

    def __enter__(self) -> Replacement:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._stack:
            if kind is not None:
                return
            for file, temporary, _ in self._opened:
                file.flush()
                if WINDOWS and temporary is not None:
                    file.close()  # an open file cannot be renamed there
                if temporary is not None:
                    flush(temporary)
            for _, temporary, target in self._opened:
                if temporary is not None:
                    take_mode(temporary, target)
                    os.replace(temporary, target)
            for folder in {target.parent for _, temporary, target in self._opened if temporary}:
                flush(folder)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a binary file aside that takes ``path``'s place if the block succeeds.

    Args:
        path: See ``Replacement.open``.
    """
    with Replacement() as files:
        yield files.open(path)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace ``path`` by a UTF-8 file of this text."""
    with replacing(path) as file:
        file.write(text.encode())


def _open_aside(target: Path) -> tuple[IO[bytes], Path]:
    """Create a locked file beside ``target``, of a name that nobody can have planted."""
    # A replaced file may be private, and what is not yet it must not be more open.
    mode = 0o600 if target.exists() else 0o666
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)

    def exclusively(path: str, _: int) -> int:
        return os.open(path, flags, mode)

    while True:
        name = f".{target.name[:_KEPT_OF_NAME]}.{secrets.token_hex(8)}.tmp"
        temporary = target.with_name(name)
        file = open(str(temporary), "w+b", opener=exclusively)  # noqa: SIM115
        lock(file)
        # Another writer may have taken it for a left one before it was locked.
        if WINDOWS or temporary.exists():
            return file, temporary
        file.close()


def lock(file: IO[Any] | int) -> bool:
    """Say whether this process now holds the file; a file system without locks says no."""
    if fcntl is None:
        return False
    try:
        hold(file)
    except OSError:
        return False
    return True


def hold(file: IO[Any] | int) -> None:
    """Lock an open file for this process until it is closed; a killed process holds nothing.

    Args:
        file: Open for writing. On Windows, whose locks keep readers out as well, its first byte is
            locked: take a file that holds nothing else.

    Raises:
        BlockingIOError: If another process has it.
        OSError: If the file system, or this system, has no locks.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif msvcrt is not None:
        descriptor = file if isinstance(file, int) else file.fileno()
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from None
    else:
        raise OSError(errno.ENOTSUP, "this system has no locks")


@contextmanager
def alone_in(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other writers that ask for it out of a folder; a killed one keeps nobody out.

    Raises:
        BlockingIOError: If another process has it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            hold(descriptor)
        except BlockingIOError:
            raise BlockingIOError(f"another process writes into {folder}; wait for it") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def _clear_left(target: Path) -> None:
    """Remove what killed writers of ``target`` left: their locks ended with them."""
    start = f".{target.name[:_KEPT_OF_NAME]}"
    with suppress(OSError):
        for path in list(target.parent.iterdir()):
            name = path.name
            if not (name.startswith(start) and _TOKEN.fullmatch(name[len(start) :])):
                continue
            with suppress(OSError), path.open("rb") as file:
                if stat.S_ISREG(path.lstat().st_mode) and lock(file):
                    path.unlink()


def take_mode(temporary: Path, target: Path) -> None:
    """Give the temporary the mode, and where allowed the owner, of the file that it replaces."""
    try:
        old = target.stat()
    except FileNotFoundError:
        return
    if hasattr(os, "chown"):
        with suppress(OSError):
            os.chown(temporary, old.st_uid, old.st_gid)
    os.chmod(temporary, stat.S_IMODE(old.st_mode))


def flush(path: Path) -> None:
    """Force a file or a folder to the disk; by its path, for a writer may have made it anew."""
    if path.is_dir() and WINDOWS:
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)
