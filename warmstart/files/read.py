"""Read checkpoints: safetensors and ``.pt``. What cannot be read is one line that says why."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from specgd_common.optional import needed

from .nested import find_weights
from .recognize import what_it_is, what_the_archive_is

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
SAFETENSORS = ".safetensors"


class FileError(ValueError):
    """A file that cannot be read or written: its path, the cause, and what helps."""

    def __init__(self, path: Path | str, cause: object) -> None:
        super().__init__(f"{path}: {cause}")


@dataclass
class Checkpoint:
    """One file's tensors, and what else must be written back.

    Attributes:
        tensors: Name -> tensor.
        metadata: Of a safetensors file.
        whole: The larger checkpoint that the tensors were found in, and at which keys; None where
            the tensors are all there is.
    """

    tensors: Mapping[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)
    whole: tuple[dict[str, Any], tuple[str, ...]] | None = None


def read(path: Path, key: str | None = None) -> Checkpoint:
    """Read one file; no code that it holds is run.

    Args:
        path: ``.safetensors``, or ``.pt`` and its kin.
        key: Where the state dict lies in a ``.pt`` checkpoint, nested keys with dots between; None
            looks under the usual names.

    Raises:
        FileError: For other formats, damaged files, and files without tensors.
    """
    _check_is_file(path)
    if path.suffix == SAFETENSORS:
        if key is not None:
            raise FileError(path, "a .safetensors file has no keys to look under; leave out --key")
        with opened_safetensors(path) as f:
            # In the file's order; load_file would sort by name.
            return Checkpoint({k: f.get_tensor(k) for k in f.keys()}, f.metadata() or {})  # noqa: SIM118
    loaded = read_pickled(path)
    try:
        keys = find_weights(loaded, key)
    except ValueError as error:
        raise FileError(path, error) from None
    tensors = loaded
    for k in keys:
        tensors = tensors[k]
    return Checkpoint(tensors, whole=(loaded, keys) if keys else None)


def read_pickled(path: Path) -> dict[str, Any]:
    """Return what ``torch.save`` wrote, if it is a dictionary of tensors and plain values.

    Raises:
        FileError: For anything else.
    """
    _check_is_file(path)
    head = _head(path)
    wrong = what_the_archive_is(path) if head.startswith(b"PK") else what_it_is(head)
    if path.suffix not in PICKLED:  # a program of TorchScript is told as such, whatever its suffix
        known = ", ".join((SAFETENSORS, f"{SAFETENSORS}.index.json", *PICKLED))
        named = wrong if wrong is not None and head.startswith(b"PK") else None
        raise FileError(path, named or f"must end in one of {known}")
    if wrong is None and _is_safetensors(head):
        wrong = "is a safetensors file; give it the suffix .safetensors"
    if wrong is not None:
        raise FileError(path, wrong)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged content, and old kinds of storage
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes torch raise nearly everything
        raise FileError(path, _why_not_loaded(error)) from None
    if not isinstance(loaded, dict):
        raise FileError(path, f"holds a {type(loaded).__name__}, not a state dict")
    return loaded


@contextmanager
def opened_safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file; whatever goes wrong with it inside the block is named.

    Raises:
        FileError: For files that are damaged or of another kind.
    """
    _check_is_file(path)
    safetensors = needed("safetensors", "checkpoints")
    head = _head(path)
    if not _is_safetensors(head):
        kind = "is an archive of torch.save; give it the suffix .pt" if head[:2] == b"PK" else None
        raise FileError(path, kind or what_it_is(head) or "is no safetensors file, or damaged")
    try:
        with safetensors.safe_open(path, framework="pt") as f:
            yield f
    except FileError:
        raise
    except (safetensors.SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise FileError(path, _why_no_safetensors(path, error)) from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        FileError: For anything else.
    """
    _check_is_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        wrong = what_it_is(_head(path))
        text = None if wrong is None or "text file" in wrong else wrong
        raise FileError(path, text or f"is no JSON, or damaged ({error})") from None
    if not isinstance(content, dict):
        raise FileError(path, f"must hold a JSON object, but holds a {type(content).__name__}")
    return content


def _check_is_file(path: Path) -> None:
    if not path.exists():
        raise FileError(path, "does not exist")
    if not path.is_file():
        raise FileError(path, "is a folder or a device; name the file")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1024)
    except OSError as error:
        raise FileError(path, error.strerror) from None


def _is_safetensors(head: bytes) -> bool:
    """Say whether a length and the opening brace of a header come first."""
    return len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32


def _why_no_safetensors(path: Path, error: Exception) -> str:
    size = path.stat().st_size
    length = int.from_bytes(_head(path)[:8], "little")
    if size < 8 + length or "incomplete" in str(error).lower():
        return f"is cut off after {size} bytes; copy or download it again"
    return f"is a damaged safetensors file ({error}); copy or download it again"


def _why_not_loaded(error: Exception) -> str:
    """Say in one sentence what torch says in ten lines, without its advice about arguments."""
    text = str(error)
    found = re.search(r"(?:GLOBAL|[Uu]nsupported class) ([\w.]+)", text)
    if found:
        return (
            f"holds the Python object {found[1]}, and no code of a file is run; where it was made, "
            "torch.save(model.state_dict(), NEW) saves the weights alone"
        )
    if isinstance(error, MemoryError) or "out of memory" in text.lower():
        return "does not fit into memory"
    reason = " ".join((text.partition("WeightsUnpickler error:")[2] or text).split())
    return f"is no checkpoint of torch.save, or damaged ({type(error).__name__}: {reason[:120]})"
