"""``head``, ``compare``, ``--verify`` and the help: what a newcomer types."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from warm.checkpoints import load, net
from warmstart import head_reset
from warmstart.__main__ import main
from warmstart.files.head import head_state_dict

COMMANDS = ("inspect", "uniform", "perturb", "fire", "dash", "head", "compare")
ENTRY = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))

def make():
    torch.manual_seed(1)
    return net(), []

def batches(n):
    g = torch.Generator().manual_seed(n)
    x = torch.randn(n, 2, generator=g)
    return [(b, (b[:, 0] > 0).long()) for b in x.split(8)]

def parts():
    return net, batches(32), batches(40)

def all_parts():
    return {
        "model_fn": net, "old_data": batches(32), "new_data": batches(24), "test_data": batches(16),
        "loss_fn": nn.functional.cross_entropy,
        "optimizer_fn": lambda p: torch.optim.AdamW(p, lr=0.01),
    }

def normed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    return model, batches(32)

def wrong():
    return net()

def texts():
    return net, ["a"], ["b", "c"]

def broken():
    return lambda: net().missing, batches(8), batches(8)
"""


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a model and data, and a checkpoint of a wrapped model."""
    (tmp_path / "warm_verbs_entry.py").write_text(ENTRY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    torch.save({f"module.{n}": x for n, x in model.state_dict().items()}, "in.pt")
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_a_meaning_for_each_option(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """From --help to a shrunk checkpoint without the docs."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    told = capsys.readouterr().out
    assert f"example:\n  warmstart {command} " in told
    options = told.partition("\noptions:\n")[2].partition("\nexample:")[0]
    for block in re.split(r"\n  (?=-)", options.strip()):
        name, _, meaning = re.sub(r"\s+", " ", block).partition(" ")
        assert len(re.sub(r"[A-Z{][\w.,}:\]\[]*|\.\.\.", "", meaning).split()) >= 2, name


def test_the_example_lines_are_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """What the help shows is understood, up to the files that are not there."""
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.partition("examples:\n")[2].splitlines()
    assert len(lines) == 8
    for line in lines:
        assert refused(capsys, *line.split()[1:]).startswith("error: ")


def test_head_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The head alone is new, within torch's bounds, and the same for the same seed."""
    torch.manual_seed(0)
    parts = {"body": nn.Linear(6, 6), "classifier": nn.Linear(6, 400), "norm": nn.LayerNorm(6)}
    old = nn.ModuleDict(parts).state_dict()
    source, out, report = (tmp_path / n for n in ("in.pt", "out.pt", "r.json"))
    torch.save(old, source)
    command = ["head", str(source), "-o", str(out)]
    assert main([*command, "--report", str(report)]) == 0
    said = capsys.readouterr().out
    assert f"wrote {out}\nwrote {report}\n" in said
    new = load(out)
    changed = {n for n in old if not torch.equal(old[n], new[n])}
    assert changed == {"classifier.weight", "classifier.bias"}
    for name in changed:
        bound, size = 6**-0.5, float(new[name].abs().max())
        assert 0.9 * bound < size <= bound
    assert main([*command, "--force"]) == 0
    assert all(torch.equal(a, b) for a, b in zip(new.values(), load(out).values(), strict=True))
    assert main([*command, "--force", "--seed", "1"]) == 0
    assert not torch.equal(new["classifier.weight"], load(out)["classifier.weight"])
    assert main([*command, "--force", "--layers", "body", "norm", "--fresh", str(out)]) == 0
    assert main([*command, "--force", "--layers", "norm"]) == 0
    capsys.readouterr()
    assert "has no factors" in refused(capsys, *command[:-1], str(out), "--undo", str(report))


def test_head_refuses_where_names_do_not_tell(capsys: pytest.CaptureFixture[str]) -> None:
    """A language model whose head is its embedding must not lose a layer inside."""
    body = {
        "model.layers.0.mlp.weight": torch.ones(4, 4),
        "model.embed_tokens.weight": torch.ones(9, 4),
    }
    with pytest.raises(ValueError, match="no module of the file is called as a head is"):
        head_state_dict(body)
    tied = {**body, "lm_head.weight": body["model.embed_tokens.weight"]}
    with pytest.raises(ValueError, match="tied to an embedding"):
        head_state_dict(tied)
    with pytest.raises(ValueError, match="no module with weights is named"):
        head_state_dict(tied, ["lm_haed"])
    with pytest.raises(ValueError, match="give fresh"):
        head_state_dict(tied, ["lm_head"])
    new, _ = head_state_dict(tied, ["lm_head"], fresh={n: x + 1 for n, x in tied.items()})
    assert new["lm_head.weight"] is new["model.embed_tokens.weight"]
    assert float(new["lm_head.weight"].mean()) == 2


def test_head_of_the_users_model(entry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--entry draws what the model's own constructor draws."""
    import warm_verbs_entry

    command = ["head", "in.pt", "-o", "out.pt", "--entry", "warm_verbs_entry:make"]
    assert main(command) == 0
    model, _ = warm_verbs_entry.make()
    fresh = {n: x.clone() for n, x in model.state_dict().items()}
    old = {n.removeprefix("module."): x for n, x in load(entry / "in.pt").items()}
    model.load_state_dict(old)
    head_reset(model, fresh=fresh)
    new = load(entry / "out.pt")
    assert all(torch.equal(new[f"module.{n}"], x) for n, x in model.state_dict().items())
    assert main([*command, "--force", "--layers", "0"]) == 2  # a number: the last none
    assert "layers must be in [1, 2]" in capsys.readouterr().err


def test_compare(entry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table, a verdict and every run as JSON; progress goes to the other stream."""
    command = ["compare", "in.pt", "--max-epochs", "2", "--seeds", "0", "--report", "r.json"]
    methods = ["--methods", "none", "uniform"]
    assert main([*command, *methods, "--entry", "warm_verbs_entry:parts"]) == 0
    said = capsys.readouterr()
    assert re.search(r"^use: (none|uniform) \(", said.out, re.MULTILINE)
    assert said.out.endswith("wrote r.json\n")
    assert said.err.startswith("1 of 2: none, seed 0: ")
    runs = json.loads((entry / "r.json").read_text())["runs"]
    assert [r["method"] for r in runs] == ["none", "uniform"]
    both = [*command, "--force", "--entry", "warm_verbs_entry:all_parts", "--methods", "none"]
    assert main(both) == 0


def test_compare_refuses_in_one_line(entry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is trained."""

    def command(function: str, *more: str) -> list[str]:
        return ["compare", "in.pt", "--entry", f"warm_verbs_entry:{function}", *more]

    assert "must return (model_fn, old_data" in refused(capsys, *command("wrong"))
    assert "got tuple; model_fn() must" in refused(capsys, *command("make"))
    assert "unknown methods ['dsh']" in refused(capsys, *command("parts", "--methods", "dsh"))
    assert "in.pt: exists" in refused(capsys, *command("parts", "--report", "in.pt"))
    assert "pairs, got str" in refused(capsys, *command("texts"))
    Path("file").touch()
    assert "file" in refused(capsys, *command("parts", "--report", "file/r.json"))
    torch.save(net().state_dict(), "in.pt")
    assert "does not fit the model" in refused(capsys, *command("parts"))
    assert main(command("broken")) == 2
    assert "error: the parts of --entry warm_verbs_entry:broken failed" in capsys.readouterr().err


def test_verify_without_factors(tmp_path: Path, capsys, monkeypatch) -> None:
    """Noise, isometries and new heads are held by the norms that the report tells."""
    monkeypatch.chdir(tmp_path)
    torch.save(net().state_dict(), "in.pt")
    for command, *options in (["perturb"], ["fire"], ["head", "--layers", "4"]):
        assert (
            main([command, "in.pt", "-o", "out.pt", *options, "--report", "r.json", "--force"]) == 0
        )
        capsys.readouterr()
        check = [command, "in.pt", "-o", "out.pt", "--verify", "r.json"]
        assert main(check) == 0
        assert "verified out.pt: " in capsys.readouterr().out
        new = load(Path("out.pt"))
        for name in ("4.weight", "1.running_var"):
            wrong = {n: x * 1.01 if n == name else x for n, x in new.items()}
            torch.save(wrong, "out.pt")
            assert f"'{name}'" in refused(capsys, *check)


def test_verify_lets_renewed_statistics_pass(
    entry: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--recalibrate-norm changes them on purpose; without it they must be the input's."""
    import warm_verbs_entry

    torch.save(warm_verbs_entry.normed()[0].state_dict(), "in.pt")
    command = ["dash", "in.pt", "-o", "out.pt", "--entry", "warm_verbs_entry:normed", "--force"]
    check = ["dash", "in.pt", "-o", "out.pt", "--verify", "r.json"]
    assert main([*command, "--report", "r.json", "--recalibrate-norm", "2"]) == 0
    assert main(check) == 0
    assert "(running statistics renewed)" in capsys.readouterr().out
    renewed = load(Path("out.pt"))
    assert main([*command, "--report", "r.json"]) == 0
    assert main(check) == 0
    torch.save(renewed, "out.pt")
    capsys.readouterr()
    assert "'1.running_mean' is not the input's" in refused(capsys, *check)
