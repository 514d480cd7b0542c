"""Sharded safetensors: an index that names its shards, read and written as one whole.

What an index names is whole at every moment. New shards are written under names that nobody has,
the index is switched to them, they get their plain names beside the others, and the index is
switched again. A run that was killed in between leaves a whole set, and the next one clears up.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from specgd_common.files import alone_in, flush, replacing, take_mode, write_text

from .read import SAFETENSORS, FileError, opened_safetensors, read_json

INDEX = ".safetensors.index.json"
# An index that a killed run left between its two switches says so in its metadata.
_MARK = "warmstart_unfinished"


@dataclass(frozen=True)
class Index:
    """An index file whose shards are all there, and hold what it says.

    Attributes:
        path: Of the index.
        content: As in the file.
        shapes: Tensor name -> shape, from the shards' headers.
    """

    path: Path
    content: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    @property
    def shards(self) -> list[str]:
        """Names of the shards, each once."""
        return sorted(set(self.content["weight_map"].values()))


def read_index(path: Path) -> Index:
    """Read an index and hold it against the headers of its shards.

    Raises:
        FileError: If it names nothing, shards that are missing or elsewhere, or tensors that their
            shards do not hold; if shards hold tensors that it does not name.
    """
    content = read_json(path)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FileError(path, "weight_map must name the shard of every tensor, but is empty")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain(shard):
            raise FileError(
                path, f"weight_map gives {name!r} the shard {shard!r}; a shard is a {SAFETENSORS} "
                "file in the same folder"
            )  # fmt: skip
    if not isinstance(content.get("metadata", {}), dict):
        raise FileError(path, "metadata must be a JSON object")
    shapes: dict[str, tuple[int, ...]] = {}
    for shard in sorted(set(weight_map.values())):
        named = {n for n, s in weight_map.items() if s == shard}
        with opened_safetensors(path.parent / shard) as f:
            held = set(f.keys())
            if named != held:
                raise FileError(path, _difference(shard, named, held))
            shapes.update({k: tuple(f.get_slice(k).get_shape()) for k in sorted(held)})
    return Index(path, content, shapes)


def _is_plain(shard: str) -> bool:
    inside = shard not in ("", ".", "..") and not set(shard) & {"/", "\\", "\0"}
    return inside and shard.endswith(SAFETENSORS)


def _difference(shard: str, named: set[str], held: set[str]) -> str:
    missing, more = sorted(named - held), sorted(held - named)
    if missing:
        return (
            f"names {missing[0]!r} in {shard}, which does not hold it; index and shards belong to "
            "different checkpoints, or were renamed"
        )
    return f"does not name {more[0]!r}, which {shard} holds; they do not belong together"


def unfinished(index: Path) -> bool:
    """Say whether an index is what a killed run left between its two switches."""
    try:
        content = read_json(index)
    except FileError:
        return False
    metadata = content.get("metadata")
    return isinstance(metadata, dict) and _MARK in metadata


@contextmanager
def writing_shards(index: Path, content: Mapping[str, Any]) -> Iterator[Callable[[str], IO[bytes]]]:
    """Write the shards of an index inside the block; they and the index appear at its end.

    Args:
        index: Where the new index goes, and its shards beside it.
        content: Of the index; ``weight_map`` names the shards.

    Yields:
        A function from a shard's name to a file, to be written and closed.

    Raises:
        OSError: If something cannot be written, or another run writes into the folder.
    """
    folder = index.parent
    aside: dict[str, Path] = {}

    def open_shard(shard: str) -> IO[bytes]:
        path = folder / f"{shard.removesuffix(SAFETENSORS)}.{secrets.token_hex(8)}{SAFETENSORS}"
        aside[shard] = path
        return path.open("xb")

    with alone_in(folder):
        _clear(index, content)
        try:
            yield open_shard
            for shard, path in aside.items():
                take_mode(path, folder / shard)
                flush(path)
            _write_index(index, content, {shard: path.name for shard, path in aside.items()})
            for shard, path in aside.items():
                _also_named(path, folder / shard)
            flush(folder)
            _write_index(index, content, {})
        finally:
            # What the index names at this moment stays, whichever step has failed.
            _clear(index, content)


def _write_index(index: Path, content: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Write an index with other names of its shards, marked as unfinished where there are any."""
    metadata = {k: v for k, v in content.get("metadata", {}).items() if k != _MARK}
    if names:
        metadata[_MARK] = "the shards are whole; run again to give them their plain names"
    weight_map = {n: names.get(s, s) for n, s in content["weight_map"].items()}
    kept = {"metadata": metadata} if metadata or "metadata" in content else {}
    write_text(index, json.dumps({**content, **kept, "weight_map": weight_map}, indent=2) + "\n")


def _also_named(path: Path, name: Path) -> None:
    """Give a file a second name, in place of what has it now, without a moment of neither."""
    temporary = name.with_name(f".{secrets.token_hex(8)}.{path.name}")
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        with replacing(name) as copy, path.open("rb") as original:
            shutil.copyfileobj(original, copy)
        return
    os.replace(temporary, name)


def _clear(index: Path, content: Mapping[str, Any]) -> None:
    """Remove shards under unpredictable names that the index beside them does not name."""
    named: set[object] = set()
    with suppress(FileError):
        weight_map = read_json(index).get("weight_map")
        named = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    stems = {re.escape(s.removesuffix(SAFETENSORS)) for s in content["weight_map"].values()}
    token = "[0-9a-f]{16}"
    stray = re.compile(rf"(\.{token}\.)?({'|'.join(sorted(stems))})\.{token}\.safetensors")
    for path in list(index.parent.iterdir()):
        if stray.fullmatch(path.name) and path.name not in named:
            path.unlink(missing_ok=True)
