"""The command line does what the functions do, and refuses in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from warm.checkpoints import equal, fed, load, net, saved
from warmstart import (
    dash_shrink,
    fire_reinit,
    fire_state_dict,
    perturb_state_dict,
    shrink_state_dict,
    undo_state_dict,
)
from warmstart.__main__ import main

safetensors_torch = pytest.importorskip("safetensors.torch")


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
    silent = {k: x for k, x in state.items() if not k.endswith("bias")}
    with pytest.raises(ValueError, match=wrong):
        shrink_state_dict(silent, {k: direction[k] for k in silent})
    with pytest.raises(ValueError, match=wrong):
        fire_state_dict(silent)
    told, _ = shrink_state_dict(state, direction)  # the biases tell it
    assert equal(told, shrink_state_dict(state, direction, transposed=flipped)[0])
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
    assert main(["fire", str(source), "-o", str(out), "--transposed", *flipped]) == 0
    assert equal(load(out), offline)
    torch.save(silent, source)
    assert main(["fire", str(source), "-o", str(out), "--force"]) == 2
    assert "--transposed on the command line" in capsys.readouterr().err


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
    assert "no code of a file is run" in error("uniform", str(evil), "-o", str(out))
    assert "has no state dict" in error("uniform", str(_other(tmp_path)), "-o", str(out))
    assert source.read_bytes() == content
    assert not out.exists()
    assert main(["uniform", str(source), "-o", str(source), "--force"]) == 0
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert main(["uniform", str(source), "--dry-run"]) == 0


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
