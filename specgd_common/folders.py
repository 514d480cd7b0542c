"""One way to write a folder: aside and whole, then renamed into its place."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .files import flush, lock

_KEPT_OF_NAME = 50
_TOKEN = re.compile(r"\.[0-9a-f]{16}\.tmp")


@contextmanager
def making_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Make a folder aside that becomes ``path`` if the block succeeds; else nothing is left.

    What a killed writer left aside is cleared by the next one of that path.

    Args:
        path: The target, which must not exist; its parents are made.

    Raises:
        FileExistsError: If ``path`` exists.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "folder"
        >>> with making_folder(target) as folder:
        ...     _ = (folder / "file").write_text("1")
        >>> [file.name for file in target.iterdir()]
        ['file']
    """
    target = Path(path)
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists and is not overwritten")
    target.parent.mkdir(parents=True, exist_ok=True)
    start = f".{target.name[:_KEPT_OF_NAME]}"
    _clear_left(target.parent, start)
    aside = target.with_name(f"{start}.{secrets.token_hex(8)}.tmp")
    aside.mkdir()
    with _held(aside):
        try:
            yield aside
            for folder, _, files in os.walk(aside, topdown=False):
                for name in files:
                    flush(Path(folder, name))
                flush(Path(folder))
            if os.path.lexists(target):
                raise FileExistsError(f"{target} exists and is not overwritten")
            os.rename(aside, target)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    flush(target.parent)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock for the block, where there are locks of folders; say if it is held."""
    if os.name == "nt":
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield lock(descriptor)
    finally:
        os.close(descriptor)


def _clear_left(parent: Path, start: str) -> None:
    """Remove what killed writers left: their locks ended with them."""
    with suppress(OSError):
        for path in list(parent.iterdir()):
            name = path.name
            if not (name.startswith(start) and _TOKEN.fullmatch(name[len(start) :])):
                continue
            if path.is_dir() and not path.is_symlink():
                with suppress(OSError), _held(path) as mine:
                    if mine:
                        shutil.rmtree(path, ignore_errors=True)
