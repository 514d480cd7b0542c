"""The file that makes a folder a storage and says which state of its arrays is valid."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from specgd_common.files import write_text

FORMAT = 3  # 1 and 2 had neither headers nor checksums
MARKER = "meta.json"


def write_marker(path: Path, content: dict[str, Any]) -> None:
    """Replace the marker of a storage."""
    content = {"format": FORMAT, **content}
    content["checksum"] = _checksum(content)
    write_text(path / MARKER, json.dumps(content))


def read_marker(path: Path) -> dict[str, Any] | None:
    """Return the marker of a storage, or None where there is none yet.

    Raises:
        ValueError: If it was damaged, or another program or version wrote it.
    """
    file = path / MARKER
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_bytes())
        ours = content.get("format", 1), content["window"] if "window" in content else content["id"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        ours = None
    if ours is None:
        raise ValueError(
            f"{file} must be the marker of a storage, got something else: it was damaged, or "
            "belongs to another program. Copy it again, or record anew in an empty folder"
        )
    if ours[0] != FORMAT:
        raise ValueError(
            f"{path} has storage format {ours[0]}, known is {FORMAT}: finish it with the version "
            "that began it, or record again in a new folder"
        )
    if content.get("checksum") != _checksum(content):
        raise ValueError(
            f"{file} was changed after it was written: its checksum does not match. Copy it "
            "again, or record anew in an empty folder"
        )
    return content


def check_settings(theirs: dict[str, Any], mine: dict[str, Any], where: str) -> None:
    """Refuse a recording of another data set length, epochs, window or peers."""
    for name in ("num_examples", "epochs", "window", "peers", "task"):
        if theirs[name] != mine[name]:
            raise ValueError(f"{where} has {name} = {theirs[name]}, this tracker has {mine[name]}")


def _checksum(content: dict[str, Any]) -> str:
    text = json.dumps({k: v for k, v in content.items() if k != "checksum"}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
