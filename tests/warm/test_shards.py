"""Sharded checkpoints: one result, one report, all or nothing."""

import json
from pathlib import Path

import pytest
import torch

from warm.checkpoints import fed, net
from warmstart import (
    shrink_state_dict,
)
from warmstart.__main__ import main

safetensors_torch = pytest.importorskip("safetensors.torch")


def test_sharded_safetensors(tmp_path: Path) -> None:
    """Large models come as an index and shards: same names, same shards, one report."""
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    state = net().state_dict()
    names = list(state)
    shards = {"model-1.safetensors": names[:3], "model-2.safetensors": names[3:]}
    for file, keys in shards.items():
        safetensors_torch.save_file({k: state[k] for k in keys}, source / file, {"format": "pt"})
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {k: f for f, ks in shards.items() for k in ks},
    }
    name = "model.safetensors.index.json"
    (source / name).write_text(json.dumps(index))
    report = tmp_path / "r.json"
    directions = tmp_path / "d.safetensors"
    average = fed(net()).state_dict()["directions"]
    safetensors_torch.save_file(average, directions)
    dash = ["dash", str(source / name), "-o", str(target / name), "--directions", str(directions)]
    assert main([*dash, "--report", str(report)]) == 0
    assert json.loads((target / name).read_text()) == index
    new = {k: v for f in shards for k, v in safetensors_torch.load_file(target / f).items()}
    expected, _ = shrink_state_dict(state, average)
    assert all(torch.equal(new[k], expected[k]) for k in state)
    rows = json.loads(report.read_text())["parameters"]
    assert {r["name"] for r in rows} == set(average)
    back = tmp_path / "c" / name
    assert main(["dash", str(target / name), "-o", str(back), "--undo", str(report)]) == 0
    restored = {
        k: v for f in shards for k, v in safetensors_torch.load_file(back.parent / f).items()
    }
    for k in state:
        torch.testing.assert_close(restored[k], state[k], rtol=1e-6, atol=0)
    assert json.loads(back.read_text()) == index
    from safetensors import safe_open

    for folder, method in ((target, "dash"), (back.parent, "undo")):
        for f in shards:
            with safe_open(folder / f, "pt") as opened:
                assert opened.metadata()["format"] == "pt"
                assert json.loads(opened.metadata()["warmstart"])["method"] == method
    assert main(["uniform", str(source / name), "-o", str(source / f"x{name[5:]}")]) == 2
    assert sorted(p.name for p in target.iterdir()) == sorted([*shards, name])


@pytest.mark.parametrize("command", ["uniform", "perturb", "fire"])
def test_shards_give_what_one_file_gives(tmp_path: Path, command: str) -> None:
    """A bias may lie in another shard than its weight, and shards must not share their noise."""
    state = {
        "a.weight": torch.randn(4, 4, generator=torch.Generator().manual_seed(0)),
        "b.weight": torch.randn(4, 4, generator=torch.Generator().manual_seed(1)),
        "a.bias": torch.ones(4),
    }
    one, source, target = tmp_path / "one.safetensors", tmp_path / "in", tmp_path / "out"
    safetensors_torch.save_file(state, one)
    source.mkdir()
    shards = {"1.safetensors": ["a.weight"], "2.safetensors": ["b.weight", "a.bias"]}
    for file, keys in shards.items():
        safetensors_torch.save_file({k: state[k] for k in keys}, source / file)
    name = "model.safetensors.index.json"
    weight_map = {k: f for f, ks in shards.items() for k in ks}
    (source / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert main([command, str(source / name), "-o", str(target / name)]) == 0
    assert main([command, str(one), "-o", str(tmp_path / "new.safetensors")]) == 0
    expected = safetensors_torch.load_file(tmp_path / "new.safetensors")
    new = {k: v for f in shards for k, v in safetensors_torch.load_file(target / f).items()}
    assert all(torch.equal(new[k], expected[k]) for k in state)
    assert not torch.equal(new["a.weight"], state["a.weight"])
    if command == "perturb":
        noise = [new[k] - 0.3 * state[k] for k in ("a.weight", "b.weight")]
        assert not torch.allclose(noise[0], noise[1], atol=1e-3)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch, capsys, sharded
) -> None:
    """A full disk in the middle of --force: what was there stays, nothing half-written remains."""
    state = {"a.weight": torch.ones(4, 4), "b.weight": torch.ones(4, 4)}
    if sharded:
        name = "model.safetensors.index.json"
        source, target = tmp_path / "in" / name, tmp_path / "out" / name
        weight_map = {"a.weight": "1.safetensors", "b.weight": "2.safetensors"}
        for folder in (source.parent, target.parent):
            folder.mkdir()
            (folder / name).write_text(json.dumps({"weight_map": weight_map}))
            for key, file in weight_map.items():
                safetensors_torch.save_file({key: state[key]}, folder / file)
    else:
        source, target = tmp_path / "in" / "m.safetensors", tmp_path / "out" / "m.safetensors"
        for path in (source, target):
            path.parent.mkdir()
            safetensors_torch.save_file(state, path)
    before = {p.name: p.read_bytes() for p in target.parent.iterdir()}
    real, calls = safetensors_torch.save, []

    def full_disk(tensors, metadata=None) -> bytes:
        calls.append(tensors)
        if len(calls) == 1 + sharded:  # the second shard
            raise OSError("no space left on device")
        return real(tensors, metadata)

    monkeypatch.setattr(safetensors_torch, "save", full_disk)
    command = ["uniform", str(source), "-o", str(target)]
    assert main(command) == 2
    assert "exists; --force" in capsys.readouterr().err
    assert not calls
    assert main([*command, "--force"]) == 2
    assert "no space left" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in target.parent.iterdir()} == before
