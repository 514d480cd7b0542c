"""Hugging Face Trainer: two unnamed groups, resuming, and routing by name."""

from pathlib import Path

import pytest
import torch

import muon_trainer
from muon_text import tiny_llama
from torch_specgd import Muon

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> muon_trainer.Trainer:
    """Sixteen steps with a checkpoint in the middle."""
    trainer = muon_trainer.make_trainer(str(tmp_path_factory.mktemp("straight")), steps=16)
    trainer.train()
    return trainer


def test_class_and_settings_are_enough(trained: muon_trainer.Trainer) -> None:
    """Trainer(optimizer_cls_and_kwargs=(Muon, {...})) trains, whatever shapes its groups mix."""
    optimizer = trained.optimizer.optimizer
    assert type(optimizer) is Muon
    decayed, others = optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert "param_names" not in decayed
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in others["params"]} == {1}
    for p in trained.model.parameters():
        assert ("momentum_buffer" in optimizer.state[p]) == (p.ndim == 2)
    losses = muon_trainer.losses(trained)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.5


def test_resumes_identically(trained: muon_trainer.Trainer) -> None:
    """Another model, resumed from the checkpoint, ends with the same weights and state."""
    output = Path(trained.args.output_dir)
    other_start = tiny_llama(seed=1)
    resumed = muon_trainer.make_trainer(str(output), steps=16, model=other_start)
    resumed.train(resume_from_checkpoint=str(output / "checkpoint-8"))
    for p, q in zip(trained.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)
    first, second = (t.optimizer.state_dict() for t in (trained, resumed))
    torch.testing.assert_close(first["state"], second["state"], rtol=0, atol=0)


def test_example_routes_by_name_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example as a user runs it: the table of routes, the loss falling, then --resume."""
    command = ["muon_trainer.py", "--output", str(tmp_path), "--route", "--steps"]
    monkeypatch.setattr("sys.argv", [*command, "8"])
    muon_trainer.main()
    printed = capsys.readouterr().out
    assert "model.embed_tokens.weight" in printed
    assert "output head" in printed
    losses = [float(x) for x in printed.rpartition("loss: ")[2].split(" -> ")]
    assert losses[-1] < losses[0]
    monkeypatch.setattr("sys.argv", [*command, "12", "--resume"])
    muon_trainer.main()
    resumed = [float(x) for x in capsys.readouterr().out.rpartition("loss: ")[2].split(" -> ")]
    assert resumed[: len(losses)] == losses
    assert resumed[-1] < losses[-1]
