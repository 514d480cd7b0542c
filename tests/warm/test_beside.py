"""Copies of the weights and optimizer states inside one checkpoint go along, or are named."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from warmstart.__main__ import main
from warmstart.files.nested import resolve


def training_checkpoint(path: Path, seed: int = 0) -> dict:
    """Weights, an average of them under a wrapper's names, an optimizer, and the epoch."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    weights = model.state_dict()
    content = {
        "state_dict": weights,
        "state_dict_ema": {f"module.{n}": 2 * x for n, x in weights.items()},
        "optimizer": optimizer.state_dict(),
        "loss": torch.tensor(0.5),
        "epoch": 3,
    }
    torch.save(content, path)
    return content


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def test_what_is_left_is_named(tmp_path: Path, capsys) -> None:
    """Only the first of three was shrunk, without a word; the next evaluation used the others."""
    old = training_checkpoint(tmp_path / "a.pt")
    assert main(["uniform", str(tmp_path / "a.pt"), "-o", str(tmp_path / "o.pt")]) == 0
    said = capsys.readouterr().out
    assert (
        "'state_dict_ema' holds a copy of the weights and was left: --along state_dict_ema" in said
    )
    assert "'optimizer' holds an optimizer" in said
    assert "--reset-optimizer" in said
    new = load(tmp_path / "o.pt")
    torch.testing.assert_close(new["state_dict"]["weight"], 0.3 * old["state_dict"]["weight"])
    torch.testing.assert_close(new["state_dict_ema"], old["state_dict_ema"], rtol=0, atol=0)
    assert (new["epoch"], list(new)) == (3, list(old))


def test_copies_follow_and_come_back(tmp_path: Path, capsys) -> None:
    """--along shrinks a copy by the same factors, and the report's undo takes it back, too."""
    old = training_checkpoint(tmp_path / "a.pt")
    paths = [str(tmp_path / n) for n in ("a.pt", "o.pt", "b.pt", "r.json")]
    source, out, back, report = paths
    beside = ["--along", "state_dict_ema", "--reset-optimizer"]
    assert main(["uniform", source, "-o", out, "--report", report, *beside]) == 0
    assert "was left" not in capsys.readouterr().out
    new = load(tmp_path / "o.pt")
    for n, x in old["state_dict_ema"].items():
        torch.testing.assert_close(new["state_dict_ema"][n], 0.3 * x)
    assert new["optimizer"]["state"] == {}
    assert new["optimizer"]["param_groups"] == old["optimizer"]["param_groups"]
    torch.optim.AdamW(nn.Linear(3, 2).parameters()).load_state_dict(new["optimizer"])
    assert json.loads(Path(report).read_text())["settings"]["along"] == ["state_dict_ema"]
    assert main(["uniform", out, "-o", back, "--undo", report]) == 0
    torch.testing.assert_close(load(tmp_path / "b.pt")["state_dict_ema"], old["state_dict_ema"])


def test_new_values_go_along(tmp_path: Path) -> None:
    """An average of the old weights has no meaning beside perturbed ones: it becomes them."""
    training_checkpoint(tmp_path / "a.pt")
    command = ["perturb", str(tmp_path / "a.pt"), "-o", str(tmp_path / "o.pt")]
    assert main([*command, "--along", "state_dict_ema"]) == 0
    new = load(tmp_path / "o.pt")
    for n, x in new["state_dict"].items():
        assert torch.equal(new["state_dict_ema"][f"module.{n}"], x)


def test_nested_keys_and_lists(tmp_path: Path) -> None:
    """Lightning keeps its optimizers in a list; others nest their weights."""
    content = {
        "train": {"model": {"a.weight": torch.ones(2, 2)}, "best": {"a.weight": torch.ones(2, 2)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}],
    }
    torch.save(content, tmp_path / "a.ckpt")
    command = [
        "uniform",
        str(tmp_path / "a.ckpt"),
        "-o",
        str(tmp_path / "o.ckpt"),
        "--factor",
        "0.5",
    ]
    assert (
        main([*command, "--key", "train.model", "--along", "train.best", "--reset-optimizer"]) == 0
    )
    new = load(tmp_path / "o.ckpt")
    for key in ("model", "best"):
        assert torch.equal(new["train"][key]["a.weight"], torch.full((2, 2), 0.5))
    assert new["optimizer_states"] == [{"state": {}, "param_groups": []}]


def test_keys_with_dots_of_their_own(tmp_path: Path) -> None:
    """Averages are often kept under their decay: ema.0.99 is a key, or two, or three."""
    content = {
        "ema.0.99": {"model": {"a.weight": torch.ones(2, 2)}},
        "ema": {"0.5": {"a.weight": torch.ones(2, 2)}},
        "ema.0": "leads nowhere",
    }
    torch.save(content, tmp_path / "a.pt")
    command = ["uniform", str(tmp_path / "a.pt"), "-o", str(tmp_path / "o.pt"), "--factor", "0.5"]
    assert main([*command, "--key", "ema.0.99.model", "--along", "ema.0.5"]) == 0
    new = load(tmp_path / "o.pt")
    for changed in (new["ema.0.99"]["model"], new["ema"]["0.5"]):
        assert torch.equal(changed["a.weight"], torch.full((2, 2), 0.5))


def test_of_two_ways_the_longest_key_is_taken() -> None:
    """The same key leads to the same weights in every program."""
    assert resolve({"a": {"b": {"c": 0}, "b.c": 0}, "a.b": {"c": 0}}, "a.b.c") == ("a.b", "c")
    assert resolve({"a": {"b": {"c": 0}, "b.c": 0}, "a.b": {}}, "a.b.c") == ("a", "b.c")


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["--along", "ema"], "has nothing at key 'ema'; its keys: ['state_dict',"),
        (["--along", "state_dict"], "names the weights themselves"),
        (["--along", "optimizer"], "holds no state dict"),
        (["--key", "epoch"], "has no state dict at key 'epoch'"),
        (["--key", "state_dict.weight"], "has no state dict at key"),
        (["--along", "short"], "--along short has no tensor named 'bias'"),
        (["--along", "other"], "--along other has (1, 1) for 'weight' (2, 3)"),
    ],
)
def test_keys_that_lead_nowhere(tmp_path: Path, options: list[str], cause: str, capsys) -> None:
    """Refused with what is there instead, before anything is written."""
    content = training_checkpoint(tmp_path / "a.pt")
    content["short"] = {"weight": torch.ones(2, 3)}
    content["other"] = {"weight": torch.ones(1, 1), "bias": torch.ones(2)}
    torch.save(content, tmp_path / "a.pt")
    assert main(["uniform", str(tmp_path / "a.pt"), "-o", str(tmp_path / "o.pt"), *options]) == 2
    error = capsys.readouterr().err
    assert cause in error
    assert error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("option", [["--reset-optimizer"], ["--along", "ema"]])
def test_weights_alone_have_nothing_beside_them(tmp_path: Path, option: list[str], capsys) -> None:
    """An option without an object is a misunderstanding."""
    torch.save({"a.weight": torch.ones(2, 2)}, tmp_path / "a.pt")
    assert main(["uniform", str(tmp_path / "a.pt"), "-o", str(tmp_path / "o.pt"), *option]) == 2
    assert "holds weights alone" in capsys.readouterr().err
