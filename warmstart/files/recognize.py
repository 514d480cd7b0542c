"""What a file really is, told by its first bytes, and what to do about it."""

from __future__ import annotations

import zipfile
from pathlib import Path

# First bytes -> what such a file is and what helps.
_KNOWN: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "is a git-lfs pointer, not the file itself; fetch it with: git lfs pull",
    ),
    (b"<!doctype", "is a web page; download the file itself again"),
    (b"<html", "is a web page; download the file itself again"),
    (b"<?xml", "is an XML page (often a server's error); download the file itself again"),
    (b"\x1f\x8b", "is a gzip archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is a zstd archive; unpack it first"),
    (b"gguf", "is a GGUF model; convert it to safetensors first"),
    (b"\x89hdf", "is an HDF5 file; convert it to safetensors first"),
    (b"\x93numpy", "is a NumPy array; save a state dict with torch.save"),
)


def what_it_is(head: bytes) -> str | None:
    """Say what a file is that is no checkpoint, or return None where its bytes tell nothing."""
    if not head:
        return "is empty; download or save it again"
    start = head.lstrip().lower()
    for signature, what in _KNOWN:
        if start.startswith(signature) or head.lower().startswith(signature):
            return what
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character that the end of the sample cuts is still text.
        if error.start < len(head) - 3:
            return None
        text = head[: error.start].decode("utf-8")
    if text.strip() and all(c.isprintable() or c in "\r\n\t" for c in text):
        return "is a text file, not a checkpoint"
    return None


def what_the_archive_is(path: Path) -> str | None:
    """Say why a zip file is no checkpoint, or has lost its content; None if it is whole.

    torch ignores the checksums of its archives. Here every record is held to its own.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            leaves = {n.rpartition("/")[2] for n in names}
            if any("/code/" in n for n in names) or "constants.pkl" in leaves:
                return (
                    "is a TorchScript archive; in Python, "
                    "torch.save(torch.jit.load(IN).state_dict(), NEW) makes a checkpoint of it"
                )
            if "data.pkl" not in leaves:
                return "is a zip archive without a pickle, not a checkpoint of torch.save"
            # torch.serialization.set_crc32_options(False) writes zeros in place of checksums.
            unchecked = all(info.CRC == 0 for info in archive.infolist())
            broken = None if unchecked else archive.testzip()
    except Exception as error:  # whatever a damaged archive makes zipfile say
        return f"is a damaged archive ({error}); copy or download it again"
    if broken is not None:
        return f"is damaged: the checksum of {broken!r} is wrong; copy or download it again"
    return None
