"""Reports and undo: the report is safe, and undoes the one change that it tells of, once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from warm.checkpoints import load
from warmstart import shrink_state_dict, undo_state_dict, uniform_state_dict
from warmstart.__main__ import main


@pytest.fixture
def source(tmp_path: Path, monkeypatch) -> Path:
    """A file in the working folder."""
    monkeypatch.chdir(tmp_path)
    torch.save({"a.weight": torch.ones(2, 2), "b.weight": 3 * torch.ones(2, 2)}, "a.pt")
    return Path("a.pt")


def refused(capsys, *arguments: str) -> str:
    """The one line of a refusal, after which nothing has changed."""
    before = {p.name: p.read_bytes() for p in Path().iterdir() if p.is_file()}
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    assert {p.name: p.read_bytes() for p in Path().iterdir() if p.is_file()} == before
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("path", ["o.pt", "./o.pt", "a.pt", "x/../o.pt"])
def test_a_report_replaces_neither_output_nor_input(source: Path, path: str, capsys) -> None:
    """The weights that were just written were replaced by JSON, with status 0."""
    Path("x").mkdir()
    for force in ([], ["--force"]):
        said = refused(capsys, "uniform", source, "-o", "o.pt", "--report", path, *force)
        assert "the report would replace" in said
    os.link("a.pt", "same.pt")
    assert "would replace" in refused(
        capsys, "uniform", source, "-o", "o.pt", "--report", "same.pt", "--force"
    )


def test_a_report_that_cannot_be_written_stops_the_run(source: Path, capsys) -> None:
    """Without its factors a shrunk file cannot be undone: nothing is written then."""
    Path("f").write_text("")
    said = refused(capsys, "uniform", source, "-o", "o.pt", "--report", "f/r.json")
    assert "f/r.json: its folder cannot be made" in said
    Path("r.json").write_text("mine")
    said = refused(capsys, "uniform", source, "-o", "o.pt", "--report", "r.json")
    assert "r.json: exists; --force replaces it" in said
    Path("d").mkdir()
    assert "is a folder" in refused(capsys, "uniform", source, "-o", "o.pt", "--report", "d")


def test_a_reader_that_has_gone_is_no_error(source: Path) -> None:
    """`| head` closes the pipe early: output and report are there, and the status is 0."""
    torch.save({f"l{i}.weight": torch.ones(4, 4) for i in range(400)}, "many.pt")
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "warmstart", "uniform", "many.pt", "-o", "o.pt"]
    done = subprocess.run(
        [*command, "--report", "r.json"], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(json.loads(Path("r.json").read_text())["factors"]) == 400
    for arguments in (["--help"], ["inspect", "many.pt"]):
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "warmstart", *arguments]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
        os.close(writing)
        assert (done.returncode, done.stderr) == (0, b"")


def test_undo_takes_the_report_of_this_file_once(source: Path, capsys) -> None:
    """Dry runs, other files, second undos and damaged factors were accepted."""
    assert main(["uniform", "a.pt", "--dry-run", "--report", "dry.json"]) == 0
    said = refused(capsys, "uniform", "a.pt", "-o", "b.pt", "--undo", "dry.json")
    assert "dry.json: the report is of a dry run" in said
    assert main(["uniform", "a.pt", "-o", "o.pt", "--report", "r.json"]) == 0
    said = refused(capsys, "uniform", "a.pt", "-o", "b.pt", "--undo", "r.json")
    assert "'a.weight' has norm 2, but the report left it with 0.6" in said
    assert main(["uniform", "o.pt", "--dry-run", "--undo", "r.json"]) == 0
    assert not Path("b.pt").exists()
    assert main(["uniform", "o.pt", "-o", "b.pt", "--undo", "r.json"]) == 0
    torch.testing.assert_close(load(Path("b.pt")), load(source))
    assert "was undone already" in refused(
        capsys, "uniform", "b.pt", "-o", "c.pt", "--undo", "r.json"
    )


@pytest.mark.parametrize(
    "options",
    [["--include", "a*"], ["--exclude", "a*"], ["--report", "r2.json"], ["--factor", "0.5"],
     ["--transposed", "a*"], ["--bias", "skip"]],
)  # fmt: skip
def test_undo_refuses_what_it_would_ignore(source: Path, options: list[str], capsys) -> None:
    """`--undo --include nonsense` undid everything, without a word."""
    assert main(["uniform", "a.pt", "-o", "o.pt", "--report", "r.json"]) == 0
    said = refused(capsys, "uniform", "o.pt", "-o", "b.pt", "--undo", "r.json", *options)
    assert f"--undo does what the report says: leave out {options[0]}" in said


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r: r.update(applied=False), "dry run"),
        (lambda r: r.pop("applied"), "dry run"),
        (lambda r: r.pop("factors"), "has no factors"),
        (lambda r: r.update(factors=[]), "has no factors"),
        (lambda r: r["factors"]["a.weight"].update(shape=[3, 1]), "damaged factors of 'a.weight'"),
        (lambda r: r["factors"]["a.weight"].update(shape=[-1, 1]), "list of sizes"),
        (lambda r: r["factors"]["a.weight"].update(shape=None), "damaged factors"),
        (lambda r: r["factors"]["a.weight"].update(dtype="<i8"), "'<f4' or '<f8'"),
        (lambda r: r["factors"]["a.weight"].update({"zlib+base64": "AAAA"}), "damaged factors"),
        (lambda r: r["factors"].update({"a.weight": 3}), "damaged factors"),
        (lambda r: r.update(parameters=None), "does not tell the norm"),
        (lambda r: r["parameters"][0].update(norm_after=None), "does not tell the norm"),
        (lambda r: r["parameters"][0].update(norm_after=0.7), "has norm 0.6, but"),
    ],
)
def test_undo_refuses_reports_that_no_shrink_has_written(change, match: str) -> None:
    """From Python as on the command line, before any tensor is computed."""
    small, report = uniform_state_dict({"a.weight": torch.ones(2, 2)}, 0.3)
    told = report.to_dict(factors=True)
    change(told)
    with pytest.raises(ValueError, match=match):
        undo_state_dict(small, told)


@pytest.mark.parametrize("factor", [0.0, -0.3, 1.5, float("inf"), float("nan")])
def test_undo_refuses_factors_outside_the_unit_interval(factor: float) -> None:
    """Dividing by them gives weights that nobody had."""
    from warmstart.shrink.report import pack

    small, report = uniform_state_dict({"a.weight": torch.ones(2, 2)}, 0.3)
    told = report.to_dict(factors=True)
    told["factors"]["a.weight"] = pack(torch.full((1, 1), factor))
    with pytest.raises(ValueError, match=r"outside \(0, 1\]"):
        undo_state_dict(small, told)


def test_undo_knows_the_rounding_of_short_types() -> None:
    """A norm that bfloat16 has rounded is still the norm that the report tells."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        state = {"a.weight": torch.randn(64, 64).to(dtype)}
        small, report = uniform_state_dict(state, 0.3)
        back = undo_state_dict(small, report)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(back["a.weight"], state["a.weight"], rtol=2 * eps, atol=1e-7)
        with pytest.raises(ValueError, match="undone already"):
            undo_state_dict(back, report.to_dict(factors=True))


def test_verify_holds_an_output_against_input_and_report(source: Path, capsys) -> None:
    """Before the old file is thrown away: is the new one what the report tells?"""
    assert main(["uniform", "a.pt", "-o", "o.pt", "--report", "r.json"]) == 0
    assert main(["uniform", "a.pt", "-o", "o.pt", "--verify", "r.json"]) == 0
    assert (
        "verified o.pt: 2 tensors are as the report tells, 0 as they were"
        in capsys.readouterr().out
    )
    new = load(Path("o.pt"))
    new["b.weight"] = new["b.weight"] * 1.001
    torch.save(new, "p.pt")
    said = refused(capsys, "uniform", "a.pt", "-o", "p.pt", "--verify", "r.json")
    assert "p.pt: 'b.weight' is not the input times the report's factors" in said
    said = refused(capsys, "uniform", "a.pt", "-o", "o.pt", "--verify", "r.json", "--force")
    assert "leave out --force" in said


def test_large_tables_are_told_by_true_norms() -> None:
    """torch sums 12 million squares in float32 to within 4e-4: an undo refused its own file."""
    torch.manual_seed(0)
    table = torch.randn(12_000_000) * 0.05
    state = {"fc.weight": table.reshape(30_000, 400)}
    new, report = uniform_state_dict(state, 0.3)
    row = report.row("fc.weight")
    assert row.norm_before == pytest.approx(float(table.double().norm()), rel=1e-6)
    back = undo_state_dict(new, report.to_dict(factors=True))
    torch.testing.assert_close(back["fc.weight"], state["fc.weight"], rtol=1e-6, atol=0)
    direction = {"fc.weight": torch.ones(30_000, 400)}
    new, report = shrink_state_dict(state, direction)
    undo_state_dict(new, report.to_dict(factors=True))
