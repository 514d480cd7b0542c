"""Files that are no checkpoints: one line with file, cause and remedy, and status 2."""

import io
import json
import os
import pickle
import stat
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from warmstart.__main__ import main


def said(capsys, *arguments: object) -> str:
    """The one line of a refusal."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "\x1b" not in error
    assert "weights_only" not in error
    return error


def archive(**entries: bytes) -> bytes:
    """A zip file."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as z:
        for name, data in entries.items():
            z.writestr(name, data)
    return content.getvalue()


def saved(what: object, **options: object) -> bytes:
    """What torch.save writes."""
    content = io.BytesIO()
    torch.save(what, content, **options)
    return content.getvalue()


WHOLE = saved({"a.weight": torch.ones(50, 50)})
PLAIN = safetensors.torch.save({"a.weight": torch.ones(50, 50)})
FILES = {
    "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "pointer.pt": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "page.safetensors": (b"<!DOCTYPE html><html>404</html>", "web page; download"),
    "page.bin": (b"\n <html><body>404</body></html>", "web page; download"),
    "xml.pt": (b"<?xml version='1.0'?><Error/>", "XML page"),
    "text.pt": (b"hello", "text file"),
    "umlaut.safetensors": ("gr\u00fc\u00dfe".encode(), "text file"),
    "empty.pt": (b"", "is empty"),
    "empty.safetensors": (b"", "is empty"),
    "zip.pt": (archive(readme=b"x"), "zip archive without a pickle"),
    "cut.pt": (WHOLE[:5000], "damaged archive"),
    "cut.safetensors": (PLAIN[:5000], "cut off after 5000 bytes"),
    "header.safetensors": (PLAIN[:20], "cut off after 20 bytes"),
    "gzip.pt": (b"\x1f\x8b\x08rest", "gzip archive; unpack"),
    "model.pt": (saved(nn.Linear(2, 2)), "holds the Python object torch.nn.modules.linear.Linear"),
    "old_model.pt": (
        saved(nn.Linear(2, 2), _use_new_zipfile_serialization=False),
        "holds the Python object torch.nn.modules.linear.Linear",
    ),
    "pickle.pt": (pickle.dumps({"a": 1}), "no checkpoint of torch.save, or damaged"),
    "list.pt": (saved([torch.ones(2)]), "holds a list, not a state dict"),
    "epoch.pt": (saved({"epoch": 3}), "has no state dict under"),
    "other.pt": (PLAIN, "give it the suffix .safetensors"),
    "other.safetensors": (WHOLE, "give it the suffix .pt"),
    "noise.safetensors": (bytes(range(256)), "no safetensors file, or damaged"),
    "model.onnx": (b"\x08\x07", "must end in one of .safetensors"),
}


@pytest.mark.parametrize("name", FILES)
def test_first_bytes_tell_what_a_file_is(tmp_path: Path, name: str, capsys) -> None:
    """Tracebacks and torch's advice about arguments that no command has help nobody."""
    content, cause = FILES[name]
    (tmp_path / name).write_bytes(content)
    out = tmp_path / f"out{Path(name).suffix}"
    for command in (["inspect"], ["uniform", "-o", out]):
        error = said(capsys, command[0], tmp_path / name, *command[1:])
        assert str(tmp_path / name) in error
        assert cause in error
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_torchscript_is_told_how_to_convert(tmp_path: Path, capsys) -> None:
    """It is a zip archive with a pickle, too, and torch would load it as a module."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that TorchScript is deprecated
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "s.pt"))
    (tmp_path / "s.jit").write_bytes((tmp_path / "s.pt").read_bytes())
    for name in ("s.pt", "s.jit"):
        assert "torch.jit.load(IN).state_dict()" in said(capsys, "inspect", tmp_path / name)


@pytest.mark.parametrize("position", [0.3, 0.5, 0.9])
def test_a_flipped_bit_of_an_archive_is_seen(tmp_path: Path, position: float, capsys) -> None:
    """torch ignores the archive's checksums: the weights would be silently other ones."""
    content = bytearray(WHOLE)
    content[int(position * 50 * 50 * 4) + 1000] ^= 64
    path = tmp_path / "flipped.pt"
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    assert "the checksum of 'archive/data/0' is wrong" in said(capsys, "inspect", path)


def test_archives_without_checksums_are_read(tmp_path: Path) -> None:
    """torch can be told to leave them out; then there is nothing to hold a record against."""
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save({"a.weight": torch.ones(2, 2)}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert main(["inspect", str(tmp_path / "a.pt")]) == 0


BROKEN = {
    "a name that the shard lacks": ({"a.weight": "1", "b.weight": "2", "ghost": "1"}, "'ghost'"),
    "swapped shards": ({"a.weight": "2", "b.weight": "1"}, "names 'b.weight' in 1.safetensors"),
    "a name that is left out": ({"a.weight": "1"}, None),
    "an empty map": ({}, "weight_map must name"),
    "a list": ([], "weight_map must name"),
    "nothing": (None, "weight_map must name"),
    "a number": ({"a.weight": 1}, "a shard is a .safetensors file in the same folder"),
    "outside": ({"a.weight": "../1"}, "in the same folder"),
    "absolute": ({"a.weight": "/etc/1"}, "in the same folder"),
    "missing": ({"a.weight": "3", "b.weight": "2"}, "3.safetensors: does not exist"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_indexes(tmp_path: Path, case: str, capsys) -> None:
    """Refused before anything is written, with file and name."""
    weight_map, cause = BROKEN[case]
    for i, name in enumerate("ab", 1):
        path = tmp_path / "in" / f"{i}.safetensors"
        path.parent.mkdir(exist_ok=True)
        safetensors.torch.save_file({f"{name}.weight": torch.ones(2, 2)}, path)
    if isinstance(weight_map, dict):
        weight_map = {n: f"{s}.safetensors" if isinstance(s, str) else s
                      for n, s in weight_map.items()}  # fmt: skip
    index, out = tmp_path / "in" / "m.safetensors.index.json", tmp_path / "out"
    index.write_text(json.dumps({"weight_map": weight_map}))
    if cause is None:  # a whole checkpoint of fewer shards
        assert main(["inspect", str(index)]) == 0
        safetensors.torch.save_file(
            {"a.weight": torch.ones(2, 2), "c": torch.ones(2)}, tmp_path / "in" / "1.safetensors"
        )
        cause = "does not name 'c', which 1.safetensors holds"
    for command in (["inspect", index], ["uniform", index, "-o", out / index.name]):
        assert cause in said(capsys, *command)
    assert not out.exists()


BAD_METADATA = '{"weight_map": {"a": "1.safetensors"}, "metadata": 3}'


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "<html>", BAD_METADATA])
def test_indexes_that_are_none(tmp_path: Path, text: str, capsys) -> None:
    """Bare internals such as `error: weight_map` say nothing."""
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(text)
    assert str(index) in said(capsys, "inspect", index)


def test_names_do_not_steer_the_terminal(tmp_path: Path, capsys) -> None:
    """A file's names may be anything; what is printed is not."""
    torch.save({"a\x1b[31m\nb.weight": torch.ones(2, 2)}, tmp_path / "a.pt")
    assert main(["inspect", str(tmp_path / "a.pt")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "a\\x1b[31m" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["uniform"],
        ["nothing"],
        ["uniform", "a", "--factor", "x"],
        ["uniform", "a", "--factor", "nan"],
        ["fire", "a", "-x"],
    ],
)
def test_options_are_refused_in_one_line(arguments: list[str], capsys) -> None:
    """argparse would print its usage first."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_modes_follow_the_umask_or_the_old_file(tmp_path: Path) -> None:
    """Outputs were private whatever the umask, and --force made shared files private."""
    source, out, old = (tmp_path / f"{n}.pt" for n in ("in", "new", "old"))
    torch.save({"a.weight": torch.ones(2, 2)}, source)
    torch.save({}, old)
    old.chmod(0o664)
    before = os.umask(0o027)
    try:
        assert main(["uniform", str(source), "-o", str(out), "--report", f"{out}.json"]) == 0
        assert main(["uniform", str(source), "-o", str(old), "--force"]) == 0
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (out, Path(f"{out}.json"), old)]
    assert modes == [0o640, 0o640, 0o664]


def test_shards_take_modes_likewise(tmp_path: Path) -> None:
    """Shards are written under other names first; their modes must not tell."""
    name = "m.safetensors.index.json"
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
        for i in "12":
            path = tmp_path / folder / f"{i}.safetensors"
            safetensors.torch.save_file({f"{i}.weight": torch.ones(2, 2)}, path)
        weight_map = {f"{i}.weight": f"{i}.safetensors" for i in "12"}
        (tmp_path / folder / name).write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "out" / "1.safetensors").chmod(0o604)
    (tmp_path / "out" / "2.safetensors").unlink()
    before = os.umask(0o022)
    try:
        command = ["uniform", tmp_path / "in" / name, "-o", tmp_path / "out" / name, "--force"]
        assert main([str(a) for a in command]) == 0
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "out").iterdir()}
    assert modes["1.safetensors"] == 0o604
    assert modes["2.safetensors"] == 0o644
