"""Names that wrappers prefix, keys that scripts choose, buffers of older versions: understood."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from warmstart import GradientDirection, shrink_state_dict
from warmstart.__main__ import main
from warmstart.files.nested import find_weights, names_in_file

ENTRY = """
import torch
from torch import nn

def make():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    g = torch.Generator().manual_seed(1)
    batches = [(torch.randn(16, 1, 6, 6, generator=g) + 1, torch.arange(16) % 3) for _ in range(3)]
    return model, batches
"""


@pytest.fixture
def entry(tmp_path: Path, monkeypatch) -> str:
    """A module with a function that builds a model and its data."""
    (tmp_path / "names_entry.py").write_text(ENTRY)
    monkeypatch.syspath_prepend(tmp_path)
    return "names_entry:make"


def model_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3)
    ).state_dict()


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "net.encoder."]
)
def test_prefixes_are_followed(tmp_path: Path, entry: str, prefix: str, capsys) -> None:
    """A checkpoint of a wrapped model did not fit the model of --entry."""
    state = {f"{prefix}{n}": x for n, x in model_state().items()}
    paths = [tmp_path / n for n in ("a.pt", "o.pt", "b.pt", "r.json")]
    source, out, back, report = map(str, paths)
    torch.save(state, source)
    assert main(["dash", source, "-o", out, "--entry", entry, "--report", report]) == 0
    assert ("differ by a prefix" in capsys.readouterr().out) == bool(prefix)
    new = torch.load(out, weights_only=True)
    assert list(new) == list(state)
    assert not torch.equal(new[f"{prefix}0.weight"], state[f"{prefix}0.weight"])
    assert main(["dash", out, "-o", back, "--undo", report]) == 0
    torch.testing.assert_close(torch.load(back, weights_only=True), state)


def test_directions_without_the_prefix(tmp_path: Path) -> None:
    """Directions are fed inside the wrapper, checkpoints are saved outside, or the other way."""
    net = nn.Sequential(nn.Linear(4, 3))
    direction = GradientDirection(net)
    direction.update({n: torch.randn(p.shape) for n, p in direction.parameters.items()})
    expected, _ = shrink_state_dict(net.state_dict(), direction)
    torch.save(direction.state_dict(), tmp_path / "d.pt")
    torch.save({f"module.{n}": x for n, x in net.state_dict().items()}, tmp_path / "a.pt")
    command = ["dash", str(tmp_path / "a.pt"), "-o", str(tmp_path / "o.pt")]
    assert main([*command, "--directions", str(tmp_path / "d.pt")]) == 0
    new = torch.load(tmp_path / "o.pt", weights_only=True)
    assert all(torch.equal(new[f"module.{n}"], x) for n, x in expected.items())


def test_names_that_do_not_fit_stay() -> None:
    assert names_in_file(["a.weight"], ["b.weight"]) == {"b.weight": "b.weight"}
    assert names_in_file(["x.a", "y.b"], ["a", "b"]) == {"a": "a", "b": "b"}
    assert names_in_file(["a", "b"], ["m.a", "m.b"]) == {"m.a": "a", "m.b": "b"}


def test_buffers_of_older_versions_are_left(tmp_path: Path, entry: str, capsys) -> None:
    """transformers once saved position_ids; a model of today has no place for them."""
    state = {**model_state(), "embeddings.position_ids": torch.arange(4)}
    torch.save(state, tmp_path / "a.pt")
    command = ["dash", str(tmp_path / "a.pt"), "-o", str(tmp_path / "o.pt"), "--entry", entry]
    assert main(command) == 0
    assert (
        "buffers that the model does not have: embeddings.position_ids" in capsys.readouterr().out
    )
    new = torch.load(tmp_path / "o.pt", weights_only=True)
    assert torch.equal(new["embeddings.position_ids"], torch.arange(4))


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({"model_state": {"a": torch.ones(1)}}, ("model_state",)),
        ({"net": {"a": torch.ones(1)}, "epoch": 3}, ("net",)),
        ({"policy": {"a": torch.ones(1)}}, ("policy",)),
        ({"ema": {"a": torch.ones(1)}}, ("ema",)),
        ({"model": {"state_dict": {"a": torch.ones(1)}}}, ("model", "state_dict")),
        ({"state_dict": {"a": torch.ones(1)}, "loss": torch.ones(())}, ("state_dict",)),
        ({"a": torch.ones(1)}, ()),
        (
            {"state": {"net": {"a": torch.ones(1, 1)}}, "rng": {"cpu": torch.ones(9)}},
            ("state", "net"),
        ),
        ({"train": {"run": {"model": {"a": torch.ones(1, 1)}}}}, ("train", "run", "model")),
        (
            {"nets": {"a": torch.ones(1, 1)}, "opt": {"a": {"exp_avg": torch.ones(1, 1)}}},
            ("nets",),
        ),
    ],
)
def test_usual_keys(content: dict, keys: tuple[str, ...]) -> None:
    """Training scripts keep the weights under names of their own."""
    assert find_weights(content, None) == keys


def test_several_unusual_keys_are_offered() -> None:
    """A user reads which to name, and need not open the file."""
    weights = {"a.weight": torch.ones(2, 2)}
    content = {"generator": weights, "nets": {"critic": weights}, "epoch": 3}
    with pytest.raises(
        ValueError, match=r"2 state dicts; name one: --key generator or --key nets\.critic"
    ):
        find_weights(content, None)
    assert find_weights(content, "nets.critic") == ("nets", "critic")


@pytest.mark.parametrize("content", [{None: 0}, {7: 0}, {"nets": [0]}], ids=["none", "7", "list"])
def test_weights_where_no_key_leads_are_no_weights(content: dict) -> None:
    """A list, or a key that is no word, cannot be named on a command line."""
    where = content.get("nets", content)
    key = 0 if "nets" in content else next(iter(content))
    where[key] = {"a.weight": torch.ones(2, 2)}
    with pytest.raises(ValueError, match="has no state dict under"):
        find_weights(content, None)


def test_statistics_are_renewed_with_the_model(tmp_path: Path, entry: str) -> None:
    """Without it the first evaluation of the written file is chance."""
    torch.save(model_state(), tmp_path / "a.pt")
    command = ["dash", str(tmp_path / "a.pt"), "-o", str(tmp_path / "o.pt"), "--entry", entry]
    assert main([*command, "--recalibrate-norm", "2", "--reliability"]) == 0
    old, new = model_state(), torch.load(tmp_path / "o.pt", weights_only=True)
    assert not torch.equal(new["1.running_mean"], old["1.running_mean"])
    assert (new["1.running_var"] > 0).all()
    assert torch.equal(new["1.weight"], old["1.weight"])


def test_inspect_as_json(tmp_path: Path, capsys) -> None:
    """Scripts ask how many weights there are, which are broken, and what would be shrunk."""
    state = {**model_state(), "bad.weight": torch.full((2, 2), float("nan"))}
    torch.save({"net": state}, tmp_path / "a.pt")
    assert main(["inspect", str(tmp_path / "a.pt"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["totals"]["tensors"] == len(state)
    assert told["totals"]["not finite"] == 4
    assert told["totals"]["would be shrunk"] == 5
    tensors = {t["name"]: t for t in told["tensors"]}
    assert tensors["0.weight"]["unit"] == "kernel"
    assert tensors["1.running_var"]["left"] == "buffer"


@pytest.mark.parametrize("verb", ["inspect", "uniform", "perturb", "fire", "dash"])
def test_help_has_an_example_and_a_meaning_for_each_option(verb: str, capsys) -> None:
    """A newcomer gets from --help to a shrunk checkpoint without the docs."""
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "example:" in text
    assert "default: None" not in text
    assert "default: False" not in text
    from warmstart.files.options import parser

    commands = next(a for a in parser()._actions if a.dest == "command")
    assert all(action.help for action in commands.choices[verb]._actions)
