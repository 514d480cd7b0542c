"""The command line with the user's own model."""

import importlib
import json
from pathlib import Path

import pytest
import torch

from warmstart import (
    dash_shrink,
)
from warmstart.__main__ import main
from warmstart.files.commands import read_whole

safetensors_torch = pytest.importorskip("safetensors.torch")


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
