"""Checkpoint files: safetensors (also sharded) and ``.pt``; read safely, written atomically."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
INDEX = ".safetensors.index.json"
# Keys under which training scripts keep the weights inside a larger checkpoint.
NESTED = ("state_dict", "model_state_dict", "model", "module")


@dataclass
class Checkpoint:
    """One file's tensors, and what else must be written back.

    Attributes:
        tensors: Name -> tensor.
        metadata: Of a safetensors file.
        rest: The larger checkpoint that the tensors were found in, and under which key.
    """

    tensors: Mapping[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)
    rest: tuple[dict[str, Any], str] | None = None


def read(path: Path, key: str | None = None) -> Checkpoint:
    """Read one file.

    Args:
        path: ``.safetensors`` or ``.pt`` (``weights_only``: no code runs).
        key: Where the state dict lies in a ``.pt`` checkpoint; None looks under the usual names.

    Raises:
        ValueError: For other formats and files without tensors.
    """
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as f:
            # In the file's order; load_file would sort by name.
            return Checkpoint({k: f.get_tensor(k) for k in f.keys()}, f.metadata() or {})  # noqa: SIM118
    if path.suffix not in PICKLED:
        raise ValueError(f"{path}: expected .safetensors, {INDEX} or one of {PICKLED}")
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a state dict")
    if key is None and any(isinstance(v, Tensor) for v in loaded.values()):
        return Checkpoint(loaded)
    found = [k for k in ([key] if key else NESTED) if isinstance(loaded.get(k), dict)]
    if not found:
        raise ValueError(
            f"{path} has no state dict at {key or NESTED}; its keys: {list(loaded)[:8]}"
        )
    return Checkpoint(loaded[found[0]], rest=(loaded, found[0]))


def read_whole(path: Path, key: str | None = None) -> dict[str, Any]:
    """The tensors of a file, or of all shards of an index."""
    if not path.name.endswith(INDEX):
        return dict(read(path, key).tensors)
    shards = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
    return {k: v for s in sorted(set(shards)) for k, v in read(path.parent / s).tensors.items()}


def index_dimensions(index: Path) -> dict[str, int]:
    """Number of dimensions of every tensor of a sharded checkpoint, from the shards' headers."""
    from safetensors import safe_open

    out: dict[str, int] = {}
    shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    for shard in sorted(set(shards)):
        with safe_open(index.parent / shard, framework="pt") as f:
            out.update({k: len(f.get_slice(k).get_shape()) for k in f.keys()})  # noqa: SIM118
    return out


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write one file in the format of its name."""
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        tensors = {k: v.contiguous() for k, v in _unshared(checkpoint.tensors).items()}
        save_file(tensors, path, metadata=checkpoint.metadata or None)
    elif path.suffix in PICKLED:
        if checkpoint.rest is None:
            torch.save(checkpoint.tensors, path)
        else:
            whole, key = checkpoint.rest
            torch.save({**whole, key: checkpoint.tensors}, path)
    else:
        raise ValueError(f"{path}: expected .safetensors or one of {PICKLED}")


def _unshared(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Safetensors refuses shared memory (and anything but tensors)."""
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


def transform(
    source: Path,
    target: Path | None,
    edit: Callable[[Mapping[str, Any]], tuple[Mapping[str, Any], Any]],
    *,
    key: str | None = None,
    force: bool = False,
    note: Callable[[Any], dict[str, str]] = lambda result: {},
) -> list[Any]:
    """Read, edit, write: one file, or the shards of an index one after the other.

    Args:
        source: A file, or ``*.safetensors.index.json``.
        target: A file of the same kind; for an index, the new index (shards go beside it). None
            writes nothing.
        edit: State dict -> (new state dict, result).
        key: See ``read``.
        force: Replace files that exist.
        note: Result -> metadata to add (safetensors only).

    Returns:
        The results, one per file.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist")
    if not source.name.endswith(INDEX):
        checkpoint = read(source, key)
        if target is not None:
            _refuse_existing([target], force)
            if (target.suffix == ".safetensors") != (source.suffix == ".safetensors"):
                raise ValueError(f"{source.name} and {target.name} are of different formats")
        new, result = edit(checkpoint.tensors)
        if target is not None:
            metadata = {**checkpoint.metadata, **note(result)}
            with atomic(target) as temporary:
                write(temporary, Checkpoint(new, metadata, checkpoint.rest))
        return [result]
    return _transform_shards(source, target, edit, force, note)


def _transform_shards(
    source: Path,
    target: Path | None,
    edit: Callable[[Mapping[str, Any]], tuple[Mapping[str, Any], Any]],
    force: bool,
    note: Callable[[Any], dict[str, str]],
) -> list[Any]:
    """One shard in memory at a time; the new files appear together at the end."""
    index = json.loads(source.read_text(encoding="utf-8"))
    shards = sorted(set(index["weight_map"].values()))
    if any(Path(s).name != s for s in shards):
        raise ValueError(f"{source} points outside its folder: {shards[:3]}")
    if target is not None:
        if not target.name.endswith(INDEX):
            raise ValueError(f"{target.name}: the output of an index must end in {INDEX}")
        if target.parent.resolve() == source.parent.resolve():
            raise ValueError("write a sharded checkpoint to another folder than its source")
        _refuse_existing([target, *(target.parent / s for s in shards)], force)
    results = []
    with staging(target.parent if target else None) as folder:
        for shard in shards:
            checkpoint = read(source.parent / shard)
            new, result = edit(checkpoint.tensors)
            results.append(result)
            if folder is not None:
                write(folder / shard, Checkpoint(new, {**checkpoint.metadata, **note(result)}))
        if folder is not None and target is not None:
            (folder / target.name).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
            for name in (*shards, target.name):
                os.replace(folder / name, target.parent / name)
    return results


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that becomes ``path`` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(suffix=path.suffix, prefix=f".{path.stem}-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def staging(folder: Path | None) -> Iterator[Path | None]:
    """A temporary folder inside ``folder``, gone at the end."""
    if folder is None:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".warmstart-", dir=folder))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_existing(paths: list[Path], force: bool) -> None:
    there = [p for p in paths if p.exists()]
    if there and not force:
        raise FileExistsError(f"{there[0]} exists; --force replaces it")
