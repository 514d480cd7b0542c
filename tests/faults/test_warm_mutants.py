"""Damaged files for every reader of the command line: the same, refused in one line, or legal."""

import copy
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from faults.killed_child import SCALE
from faults.warm_runs import INDEX, contents, directions, read_shards, run, shards, state

MUTANTS = 50 * SCALE


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Bytes after one accident of the kinds that disks, networks and editors have."""
    data = bytearray(content)
    start = draw.randrange(len(data))
    # Headers and directories lie at the ends: they are hit as often as the middle.
    if draw.random() < 0.5:
        start = min(start, draw.randrange(1 + len(data) // 10))
    length = draw.randrange(1, 1 + min(64, len(data) - start))
    kind = draw.choice(("flip", "cut", "lose", "zero", "noise", "insert", "repeat", "ascii"))
    if kind == "flip":
        data[start] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[start:]
    elif kind == "lose":
        del data[start : start + length]
    elif kind == "zero":
        data[start : start + length] = bytes(length)
    elif kind == "noise":
        data[start : start + length] = draw.randbytes(length)
    elif kind == "insert":
        data[start:start] = draw.randbytes(length)
    elif kind == "repeat":
        data[start:start] = data[start : start + length]
    else:
        data[start] = draw.choice(b'0123456789-.eE{}[]",:ntf/\\')
    return bytes(data)


def edited(content: bytes, draw: random.Random) -> bytes:
    """JSON after one thoughtless edit."""
    whole = json.loads(content)
    holders = []

    def walk(node: object) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            holders.append((node, key))
            if isinstance(node[key], (dict, list)) and node[key]:
                walk(node[key])

    walk(whole)
    node, key = draw.choice(holders)
    other = draw.choice(holders)
    kind = draw.choice(("drop", "swap", "value", "value", "rename"))
    if kind == "drop":
        del node[key]
    elif kind == "swap":
        node[key] = json.loads(json.dumps(other[0][other[1]]))
    elif kind == "rename" and isinstance(node, dict):
        node[f"{key}x"] = node.pop(key)
    else:
        values = (None, True, -1, 0, 10**30, 1e308, "", "x", "../x.safetensors", [], {}, [[]])
        node[key] = draw.choice(values)
    return json.dumps(whole).encode()


def one_line(status: int, error: str) -> None:
    """The only way to refuse."""
    assert status == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert len(error) > len("error: x\n")


def prepare(folder: Path, kind: str) -> tuple[Path, list[object], Path]:
    """The file to damage, the command that reads it, and the command's output."""
    (folder / "in").mkdir()
    source, out = folder / "in" / "a.safetensors", folder / "out.safetensors"
    if kind in ("pt", "legacy", "nested"):
        source, out = folder / "in" / "a.pt", folder / "out.pt"
        what = {"model": state(), "optimizer": {"state": {}, "param_groups": []}}
        legacy = {"_use_new_zipfile_serialization": kind != "legacy"}
        torch.save(what if kind == "nested" else state(), source, **legacy)
        return source, ["uniform", source, "-o", out], out
    safetensors.torch.save_file(state(), source)
    if kind == "safetensors":
        return source, ["uniform", source, "-o", out], out
    if kind == "index":
        index, out = shards(folder / "in", state()), folder / "out" / INDEX
        return index, ["uniform", index, "-o", out], out
    if kind == "shard":
        index, out = shards(folder / "in", state()), folder / "out" / INDEX
        return folder / "in" / "m-1.safetensors", ["uniform", index, "-o", out], out
    other = folder / "in" / {"report": "r.json", "directions": "d.pt"}.get(kind, "d.safetensors")
    if kind == "report":
        small = folder / "in" / "small.safetensors"
        assert run("uniform", source, "-o", small, "--report", other)[0] == 0
        return other, ["uniform", small, "-o", out, "--undo", other], out
    if kind == "directions":
        torch.save(directions(), other)
    else:
        safetensors.torch.save_file(directions()["directions"], other)
    return other, ["dash", source, "-o", out, "--directions", other], out


def loaded(out: Path) -> dict[str, torch.Tensor]:
    if out.name == INDEX:
        return read_shards(out)
    if out.suffix == ".pt":
        content = torch.load(out, weights_only=True)
        return content.get("model", content)
    return safetensors.torch.load_file(out)


ODD = (None, True, -1, 2.5, "text", [], {}, [torch.ones(2)], {"x": torch.ones(2)})


def odd_values(draw: random.Random) -> object:
    """What no script puts where a tensor belongs, and tensors of kinds that weights are not."""
    tensors: list[Callable[[], torch.Tensor]] = [
        lambda: torch.ones(4, 6, dtype=torch.int64), lambda: torch.ones(4, 6, dtype=torch.bool),
        lambda: torch.ones(4, 6, dtype=torch.complex64), lambda: torch.ones(()),
        lambda: torch.ones(0, 6), lambda: torch.ones(4, 6).to_sparse(), lambda: torch.ones(1),
        lambda: torch.full((4, 6), float("nan")), lambda: torch.full((4, 6), float("inf")),
        lambda: torch.ones(4, 6).to(torch.float8_e4m3fn), lambda: torch.ones(4, 6, device="meta"),
        lambda: torch.ones(1).expand(4, 6), lambda: torch.full((4, 6), 3e38),
        lambda: torch.zeros(4, 6), lambda: torch.ones(2, 3, 4, 5, 6),
    ]  # fmt: skip
    if draw.random() < 0.4:
        return draw.choice(ODD)
    return draw.choice(tensors)()


# torch 2.14 says that it checks sparse tensors; the command is silent about it.
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants:UserWarning")
@pytest.mark.parametrize("kind", ["pt", "nested", "directions"])
def test_whole_files_with_strange_content(tmp_path: Path, kind: str) -> None:
    """What torch loads without a complaint may still be no state dict."""
    target, command, out = prepare(tmp_path, kind)
    whole = torch.load(target, weights_only=True)
    draw, outcomes = random.Random(7), Counter()
    for _ in range(MUTANTS):
        content = copy.deepcopy(whole)
        holders = [(content, k) for k in content]
        holders += [(v, k) for v in content.values() if isinstance(v, dict) for k in v]
        node, key = draw.choice(holders)
        kind_of_change = draw.choice(("value", "value", "drop", "rename", "more"))
        if kind_of_change == "value":
            node[key] = odd_values(draw)
        elif kind_of_change == "drop":
            del node[key]
        elif kind_of_change == "rename":
            node[draw.choice((3, "", "a\nb", "x.weight", None))] = node.pop(key)
        else:
            node["more.weight"] = odd_values(draw)
        torch.save(content, target)
        out.unlink(missing_ok=True)
        status, _, error = run(*command)
        outcomes["refused" if status else "legal"] += 1
        if status:
            one_line(status, error)
            assert str(tmp_path) in error
            assert not out.exists()
        elif kind != "directions":
            old = content.get("model", content)
            for name, x in loaded(out).items():
                strange = not isinstance(x, torch.Tensor) or x.is_meta or x.is_sparse
                strange = strange or x.dtype.itemsize < 2
                if not strange and old[name].isfinite().all():
                    assert x.isfinite().all()
    print(kind, dict(outcomes))
    assert len(outcomes) == 2


READERS = (
    "safetensors", "pt", "legacy", "nested", "index", "shard", "report", "directions", "plain"
)  # fmt: skip


@pytest.mark.parametrize("kind", READERS)
def test_damaged_files(tmp_path: Path, kind: str, record_property: Callable) -> None:
    """No traceback, no bare internals, no output from a file that was refused."""
    target, command, out = prepare(tmp_path, kind)
    assert run(*command)[0] == 0
    expected = loaded(out)
    whole, before = target.read_bytes(), contents(tmp_path / "in")
    draw, outcomes = random.Random(READERS.index(kind)), Counter()
    for i in range(MUTANTS):
        json_too = target.suffix == ".json" and i % 2
        mutant = (edited if json_too else damaged)(whole, draw)
        target.write_bytes(mutant)
        for path in [out, *out.parent.glob("*.safetensors")] if out.name == INDEX else [out]:
            path.unlink(missing_ok=True)
        status, _, error = run(*command)
        if status:
            one_line(status, error)
            assert str(tmp_path) in error
            assert not out.exists()
            outcomes["refused"] += 1
        else:
            new = loaded(out)
            equal = all(n in expected and torch.equal(x, expected[n]) for n, x in new.items())
            same = equal and new.keys() == expected.keys()
            outcomes["same" if same else "legal"] += 1
            # safetensors and old pickles have no checksums: other numbers are legal there. An
            # index may lose a name and with it the only shard of it: a smaller whole checkpoint.
            assert kind not in ("pt", "nested", "report") or same, mutant
            assert kind != "index" or equal, mutant
        after = contents(tmp_path / "in")
        assert {n: after[n] for n in before if tmp_path / "in" / n != target} == {
            n: c for n, c in before.items() if tmp_path / "in" / n != target
        }
        left = {p.name for p in tmp_path.iterdir()} - {"in", "out", out.name}
        assert not left
    record_property(kind, dict(outcomes))
    print(kind, dict(outcomes))
    assert outcomes["refused"]
