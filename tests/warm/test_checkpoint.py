"""State dicts and the command line: pure, faithful to the file, atomic, reversible."""

import collections
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from warmstart import (
    GradientDirection,
    dash_shrink,
    fire_reinit,
    fire_state_dict,
    perturb_state_dict,
    shrink_state_dict,
    undo_state_dict,
    uniform_shrink,
    uniform_state_dict,
)
from warmstart.__main__ import main
from warmstart.files import read_whole

safetensors_torch = pytest.importorskip("safetensors.torch")


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).to(dtype)


def fed(model: nn.Module) -> GradientDirection:
    g = torch.Generator().manual_seed(1)
    direction = GradientDirection(model)
    for _ in range(3):
        direction.update(
            {n: torch.randn(p.shape, generator=g) for n, p in direction.parameters.items()}
        )
    return direction


def equal(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_state_dict_twin_equals_the_model_method() -> None:
    """Weights edited offline must be the weights that the call on the model gives."""
    model = net()
    direction = fed(model)
    state = model.state_dict()
    before = {k: v.clone() for k, v in state.items()}
    new, report = shrink_state_dict(state, direction.state_dict(), floor=0.2)
    assert equal(state, before)  # pure: a state dict's tensors are the live weights
    assert isinstance(new, collections.OrderedDict)
    assert new._metadata == state._metadata
    assert new["1.running_mean"] is state["1.running_mean"]
    expected = dash_shrink(model, direction, floor=0.2)
    assert equal(new, model.state_dict())
    assert [r.name for r in report.rows] == [r.name for r in expected.rows]
    for method, twin in ((uniform_shrink, uniform_state_dict), (fire_reinit, fire_state_dict)):
        model = net()
        offline, _ = twin(model.state_dict())
        method(model)
        assert equal(offline, model.state_dict())


def test_tied_tensors_stay_tied_and_are_shrunk_once() -> None:
    """Tied embeddings appear twice in a state dict; dividing them would double the file."""
    w = torch.ones(3, 2)
    new, report = uniform_state_dict({"embed.weight": w, "head.weight": w}, 0.5)
    assert new["embed.weight"] is new["head.weight"]
    assert float(new["embed.weight"][0, 0]) == 0.5
    assert report.rows[0].aliases == ("head.weight",)


def test_adapter_files_shrink_b_alone() -> None:
    """The offline twin of LoRA's rule: shrinking A as well would square the factor."""
    names = ("q.lora_A.weight", "q.lora_B.weight", "e.lora_embedding_A", "e.lora_embedding_B")
    state = {n: torch.ones(4, 4) for n in names}
    for new, report in (uniform_state_dict(state, 0.5), perturb_state_dict(state, "dash")):
        assert [r.name for r in report.rows] == ["q.lora_B.weight", "e.lora_embedding_B"]
        assert all(torch.equal(new[n], state[n]) for n in names if "A" in n)
    assert "LoRA A factor" in report.skipped[0].reason


def test_names_are_strict() -> None:
    """A direction for a layer that is not there means the wrong checkpoint."""
    state = {"a.weight": torch.ones(2, 2), "b.weight": torch.ones(2, 2), "step": 3}
    d = {"a.weight": torch.ones(2, 2)}
    new, _ = shrink_state_dict(state, d)
    assert new["b.weight"] is state["b.weight"]
    assert new["step"] == 3
    with pytest.raises(KeyError, match=r"directions for .*'c.weight'.* have no tensor"):
        shrink_state_dict(state, {"c.weight": torch.ones(2, 2)})
    with pytest.raises(KeyError, match=r"no direction for .*'b.weight'"):
        shrink_state_dict(state, d, include="*.weight")
    with pytest.raises(ValueError, match=r"direction of 'a.weight' is \(3,\)"):
        shrink_state_dict(state, {"a.weight": torch.ones(3)})
    with pytest.raises(ValueError, match=r"direction of 'a\.weight' is not finite"):
        shrink_state_dict(state, {"a.weight": torch.full((2, 2), torch.nan)})
    with pytest.raises(ValueError, match="no tensor of the state dict is selected"):
        uniform_state_dict({"step": 3})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_undo_restores_within_rounding(dtype: torch.dtype) -> None:
    """Two roundings of the weight's dtype at most: shrink and back."""
    model = net(dtype)
    state = model.state_dict()
    for new, report in (shrink_state_dict(state, fed(model)), uniform_state_dict(state, 0.3)):
        text = json.loads(report.to_json(factors=True))
        back = undo_state_dict(new, text)
        eps = torch.finfo(dtype).eps
        tiny = torch.finfo(dtype).tiny
        for k in state:
            if state[k].is_floating_point():
                error = (back[k].double() - state[k].double()).abs()
                assert bool((error <= 2 * eps * state[k].double().abs() + 4 * tiny).all())
    _, report = perturb_state_dict(state, "dash")
    with pytest.raises(ValueError, match="a perturb report has no factors"):
        undo_state_dict(state, report.to_dict(factors=True))


def saved(folder: Path, suffix: str) -> Path:
    """A checkpoint file with metadata or with what surrounds the weights in practice."""
    path = folder / f"in{suffix}"
    state = net(torch.bfloat16).state_dict()
    if suffix == ".safetensors":
        safetensors_torch.save_file(dict(state), path, metadata={"format": "pt", "note": "mine"})
    elif suffix == ".ckpt":
        torch.save({"model": state, "epoch": 7, "optimizer": {"lr": 0.1}}, path)
    else:
        torch.save(state, path)
    return path


def load(path: Path) -> dict:
    if path.suffix == ".safetensors":
        return safetensors_torch.load_file(path)
    loaded = torch.load(path, weights_only=True)
    return loaded.get("model", loaded)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt"])
def test_command_line_round_trip(tmp_path: Path, suffix: str, capsys) -> None:
    """uniform, then --undo with the written report: names, dtypes and the rest survive."""
    source, out, back = (
        saved(tmp_path, suffix),
        *(tmp_path / f"{n}{suffix}" for n in ("out", "back")),
    )
    original = load(source)
    report = tmp_path / "r.json"
    uniform = ["uniform", str(source), "-o", str(out), "--factor", "0.25"]
    assert main([*uniform, "--report", str(report)]) == 0
    assert "4.weight" in capsys.readouterr().out
    new = load(out)
    assert list(new) == list(original)
    assert torch.equal(new["4.weight"], original["4.weight"] * 0.25)
    assert torch.equal(new["1.weight"], original["1.weight"])
    assert new["4.weight"].dtype == torch.bfloat16
    assert main(["uniform", str(out), "-o", str(back), "--undo", str(report)]) == 0
    assert equal(load(back), original)  # a power of two: exactly
    if suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(out, "pt") as f:
            assert f.metadata()["note"] == "mine"
            assert json.loads(f.metadata()["warmstart"])["factor"] == 0.25
        with safe_open(back, "pt") as f:
            assert f.metadata()["note"] == "mine"
            assert json.loads(f.metadata()["warmstart"]) == {
                "method": "undo", "undone": "uniform"
            }  # fmt: skip
    if suffix == ".ckpt":
        whole = torch.load(out, weights_only=True)
        assert whole["epoch"] == 7
        assert whole["optimizer"] == {"lr": 0.1}
    assert main(["dash", str(out), "-o", str(back), "--force", "--undo", str(report)]) == 2
    assert "reports 'uniform', not 'dash'" in capsys.readouterr().err


def test_command_line_dash_perturb_fire_inspect(tmp_path: Path, capsys) -> None:
    """Each command does what its function does."""
    model = net()
    source, directions = tmp_path / "in.pt", tmp_path / "directions.pt"
    torch.save(model.state_dict(), source)
    torch.save(fed(model).state_dict(), directions)

    def out(*arguments: str) -> dict:
        path = tmp_path / "out.pt"
        assert main([arguments[0], str(source), "-o", str(path), "--force", *arguments[1:]]) == 0
        return torch.load(path, weights_only=True)

    state = model.state_dict()
    expected, _ = shrink_state_dict(state, fed(model), floor=0.1)
    assert equal(out("dash", "--directions", str(directions), "--floor", "0.1"), expected)
    expected, _ = perturb_state_dict(state, "dash", seed=3)
    assert equal(out("perturb", "--seed", "3"), expected)
    expected, _ = perturb_state_dict(state, "interpolate", fresh=state)
    assert equal(out("perturb", "--preset", "interpolate", "--fresh", str(source)), expected)
    expected, _ = fire_state_dict(state, exclude="4.*")
    assert equal(out("fire", "--exclude", "4.*"), expected)
    capsys.readouterr()
    assert main(["inspect", str(source)]) == 0
    text = capsys.readouterr().out
    assert "0.weight  (4, 1, 3, 3)  float32" in text
    assert "shrunk per kernel" in text
    assert "1.weight" in text


def test_weights_stored_the_other_way_round(tmp_path: Path, capsys) -> None:
    """GPT-2's layers are (in, out): units are columns, isometries are scaled by sqrt(out / in)."""
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"c_attn": conv1d(12, 4), "c_fc": conv1d(16, 4), "up": nn.ConvTranspose1d(4, 6, 3)}
    )
    direction, flipped = fed(model), ("*.weight",)
    state = model.state_dict()
    wrong = "'c_attn.weight' .* is stored .in, out."
    with pytest.raises(ValueError, match=wrong):
        shrink_state_dict(state, direction)
    with pytest.raises(ValueError, match=wrong):
        fire_state_dict(state)
    for units in ("kernel", "filter", "row"):
        new, report = shrink_state_dict(state, direction, transposed=flipped, units=units)
        copied = dash_shrink(model, direction, units=units, inplace=False, include="*")
        assert equal(new, copied.model.state_dict())
        for k, back in undo_state_dict(new, report.to_dict(factors=True)).items():
            torch.testing.assert_close(back, state[k], rtol=1e-6, atol=0)
    source, out = tmp_path / "in.pt", tmp_path / "out.pt"
    torch.save(state, source)
    offline, _ = fire_state_dict(state, transposed=flipped)
    fire_reinit(model)
    assert equal(offline, model.state_dict())
    assert main(["fire", str(source), "-o", str(out)]) == 2
    assert "--transposed on the command line" in capsys.readouterr().err
    assert main(["fire", str(source), "-o", str(out), "--transposed", *flipped]) == 0
    assert equal(load(out), offline)


ENTRY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.up = nn.ConvTranspose1d(4, 4, 2, groups=2)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        return self.head(self.up(self.embed(x).mT).mean(2))

def make():
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    pairs = [(torch.randint(6, (8, 5), generator=g), torch.arange(8) % 6) for _ in range(3)]
    return Net(), pairs

def wrong():
    return Net()

def other():
    return nn.Linear(2, 2), []
"""


@pytest.mark.parametrize("sharded", [False, True])
def test_command_line_with_a_model(tmp_path: Path, monkeypatch, capsys, sharded: bool) -> None:
    """--entry gives what dash_shrink gives in a script, in the file's names, ties and dtypes."""
    (tmp_path / "warm_entry.py").write_text(ENTRY)
    monkeypatch.syspath_prepend(tmp_path)
    model, batches = importlib.import_module("warm_entry").make()
    state = model.bfloat16().state_dict()
    if sharded:
        source, out, back = (tmp_path / d / "model.safetensors.index.json" for d in ("a", "b", "c"))
        source.parent.mkdir()
        files = {"1.safetensors": list(state)[:2], "2.safetensors": list(state)[2:]}
        for file, keys in files.items():
            part = {k: state[k].clone() for k in keys}
            safetensors_torch.save_file(part, source.parent / file, {"format": "pt"})
        weight_map = {k: f for f, ks in files.items() for k in ks}
        source.write_text(json.dumps({"weight_map": weight_map}))
    else:
        source, out, back = (tmp_path / f"{n}.pt" for n in "abc")
        torch.save(state, source)
    report = tmp_path / "r.json"
    options = ["--entry", "warm_entry:make", "--units", "filter", "--floor", "0.2", "--tail", "2"]
    command = ["dash", str(source), "-o", str(out), *options, "--report", str(report)]
    assert main(command) == 0
    new = read_whole(out)
    dash_shrink(model.float(), batches, floor=0.2, units="filter", tail=2)
    assert list(new) == list(read_whole(source))
    for k, v in model.state_dict().items():
        assert torch.equal(new[k], v.bfloat16())
    if sharded:
        assert json.loads(out.read_text())["weight_map"] == weight_map
        from safetensors import safe_open

        for file in files:
            with safe_open(out.parent / file, "pt") as f:
                assert f.metadata()["format"] == "pt"
                assert json.loads(f.metadata()["warmstart"])["floor"] == 0.2
    else:
        assert new["head.weight"].data_ptr() == new["embed.weight"].data_ptr()
    assert main(["dash", str(out), "-o", str(back), "--undo", str(report)]) == 0
    for k, v in read_whole(back).items():
        torch.testing.assert_close(v, state[k], rtol=2 * torch.finfo(v.dtype).eps, atol=0)
    auto = ["dash", str(source), "-o", str(back), "--force", "--floor", "auto"]
    assert main([*auto, "--entry", "warm_entry:make"]) == 0
    model.load_state_dict(state)
    dash_shrink(model, batches, floor="auto")
    new = read_whole(back)
    assert all(torch.equal(new[k], v.bfloat16()) for k, v in model.state_dict().items())
    capsys.readouterr()
    for entry, message in (
        ("warm_entry", "takes module:function"),
        ("warm_entry:nothing", "has no function 'nothing'"),
        ("warm_entry:wrong", "must return (model, batches) or (model, batches, loss_fn), got Net"),
        ("warm_entry:other", "does not fit the model of warm_entry:other"),
        ("no_such_module:f", "No module named 'no_such_module'"),
    ):
        x = str(tmp_path / "x" / out.name)
        assert main(["dash", str(source), "-o", x, "--entry", entry]) == 2
        assert message in capsys.readouterr().err
        assert not Path(x).exists()


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


def test_command_line_refuses_and_leaves_files_alone(tmp_path: Path, capsys) -> None:
    """No silent overwrite, no half-written file, no code from pickles, one clear line."""
    source = saved(tmp_path, ".pt")
    content = source.read_bytes()

    def error(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        return capsys.readouterr().err

    out = tmp_path / "out.pt"
    assert "exists; --force replaces it" in error("uniform", str(source), "-o", str(source))
    assert "does not exist" in error("uniform", str(tmp_path / "no.pt"), "-o", str(out))
    assert "factor must be in (0, 1]" in error(
        "uniform", str(source), "-o", str(out), "--factor", "0"
    )
    assert "different formats" in error(
        "uniform", str(source), "-o", str(tmp_path / "o.safetensors")
    )
    assert "-o OUT is missing" in error("uniform", str(source))
    assert "dash needs --directions" in error("dash", str(source), "-o", str(out))
    assert "include pattern 'nothing*' matches no" in error(
        "uniform", str(source), "-o", str(out), "--include", "nothing*"
    )
    evil = tmp_path / "evil.pt"
    torch.save({"x.weight": subprocess.Popen}, evil)
    assert "Weights only load failed" in error("uniform", str(evil), "-o", str(out))
    assert "has no state dict" in error("uniform", str(_other(tmp_path)), "-o", str(out))
    assert source.read_bytes() == content
    assert not out.exists()
    assert main(["uniform", str(source), "-o", str(source), "--force"]) == 0
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert main(["uniform", str(source), "--dry-run"]) == 0


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
    real, calls = safetensors_torch.save_file, []

    def full_disk(tensors, path, metadata=None) -> None:
        calls.append(path)
        if len(calls) == 1 + sharded:  # the second shard
            Path(path).write_bytes(b"half")
            raise OSError("no space left on device")
        real(tensors, path, metadata)

    monkeypatch.setattr(safetensors_torch, "save_file", full_disk)
    command = ["uniform", str(source), "-o", str(target)]
    assert main(command) == 2
    assert "exists; --force" in capsys.readouterr().err
    assert not calls
    assert main([*command, "--force"]) == 2
    assert "no space left" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in target.parent.iterdir()} == before


def _other(folder: Path) -> Path:
    path = folder / "other.pt"
    torch.save({"epoch": 3}, path)
    return path


def test_runs_as_a_module() -> None:
    """python -m warmstart is the documented entry."""
    out = subprocess.run(
        [sys.executable, "-m", "warmstart", "--help"], capture_output=True, text=True
    )
    assert out.returncode == 0
    assert "inspect" in out.stdout
