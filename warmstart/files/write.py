"""Write one checkpoint file, in the format of its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from specgd_common.optional import needed

from .nested import replaced_at
from .read import PICKLED, SAFETENSORS, Checkpoint, FileError


def write_checkpoint(file: IO[bytes], checkpoint: Checkpoint, target: Path) -> None:
    """Write a checkpoint into an open file, in the format of the target's suffix.

    Raises:
        FileError: Naming the target, if it cannot be written.
    """
    try:
        if target.suffix == SAFETENSORS:
            # save_file writes into a file of its own, which would stay if this process is killed.
            save = needed("safetensors.torch", "checkpoints").save
            tensors = {k: v.contiguous() for k, v in _unshared(checkpoint.tensors).items()}
            file.write(save(tensors, metadata=checkpoint.metadata or None))
            return
        content: Any = checkpoint.tensors
        if checkpoint.whole is not None:
            whole, keys = checkpoint.whole
            content = replaced_at(whole, keys, checkpoint.tensors)
        torch.save(content, file)
    except Exception as error:  # safetensors and torch have exceptions of their own
        raise FileError(target, f"cannot be written ({reason(error)})") from None


def make_folder(target: Path) -> None:
    """Make the folder of a file that will be written.

    Raises:
        FileError: If something else is in its place.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(target, f"its folder cannot be made ({reason(error)})") from None
    if target.is_dir():
        raise FileError(target, "is a folder; name the file to write")


def reason(error: Exception) -> str:
    """Return the cause of an error without what the line says anyway."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def check_format(source: Path, target: Path) -> None:
    """Refuse an output of another format than the input's.

    Raises:
        FileError: Naming the suffixes that fit.
    """
    fitting = (SAFETENSORS,) if source.suffix == SAFETENSORS else PICKLED
    if target.suffix not in fitting:
        kinds = " or ".join(fitting)
        raise FileError(target, f"{source.name} and its output are of different formats: {kinds}")


def _unshared(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return tensors that share no memory, as safetensors wants them."""
    odd = [k for k, v in tensors.items() if not isinstance(v, Tensor)]
    if odd:
        raise ValueError(f"safetensors holds tensors only; these entries are not: {odd[:5]}")
    seen: set[int] = set()
    out = {}
    for name, x in tensors.items():
        pointer = x.untyped_storage().data_ptr()
        out[name] = x.clone() if pointer in seen and x.numel() else x
        seen.add(pointer)
    return out
