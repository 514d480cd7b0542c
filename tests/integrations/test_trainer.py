"""Hugging Face Trainer: one argument, the Trainer's own settings, resuming."""

from pathlib import Path

import pytest
import torch

import muon_trainer
import muon_trainer_digits
from muon_text import tiny_llama
from torch_specgd import Muon, muon_for_trainer

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> muon_trainer.Trainer:
    """Sixteen steps with a checkpoint in the middle."""
    trainer = muon_trainer.make_trainer(str(tmp_path_factory.mktemp("straight")), steps=16)
    trainer.train()
    return trainer


def test_one_argument_is_enough(trained: muon_trainer.Trainer) -> None:
    """Routes by what each parameter is, with the rate and decay of TrainingArguments."""
    optimizer = trained.optimizer.optimizer
    assert type(optimizer) is Muon
    named, rate = dict(trained.model.named_parameters()), trained.args.learning_rate
    for group in optimizer.param_groups:
        for name in group["param_names"]:
            decay = group["initial_lr"] * group["weight_decay"]
            assert decay == pytest.approx(rate * 0.1 if named[name].ndim > 1 else 0.0), name
            table = name in ("model.embed_tokens.weight", "lm_head.weight")
            assert group["use_muon"] == (named[name].ndim > 1 and not table), name
    losses = muon_trainer.losses(trained)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.5


def test_matrices_take_the_rate_that_from_adamw_gives() -> None:
    """One rule for both ways from AdamW; Muon's own rate stays as it is."""
    model, arguments = (
        tiny_llama(),
        muon_trainer.TrainingArguments(learning_rate=2e-3, use_cpu=True),
    )
    make, settings = muon_for_trainer(model, arguments)
    other = Muon.from_adamw({"lr": 2e-3, "weight_decay": arguments.weight_decay}, model)
    rates = [
        {p: (g["lr"], g["adjust_lr_fn"]) for g in made.param_groups for p in g["params"]}
        for made in (make()(model, **settings), other)
    ]
    assert rates[0] == rates[1]
    assert len(set(rates[0].values())) == 2
    make, settings = muon_for_trainer(model, arguments, lr=0.02)
    assert {g["lr"] for g in make()(model, **settings).param_groups} == {0.02}


def test_a_class_and_settings_still_work(tmp_path: Path) -> None:
    """Trainer's two groups have no names: they go by shape, with a warning."""
    arguments = muon_trainer.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True,
        save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = muon_trainer.Trainer(
        model=tiny_llama(),
        args=arguments,
        train_dataset=muon_trainer.DocumentationText(8),
        optimizer_cls_and_kwargs=(Muon, {"lr": 1e-2}),
    )
    with pytest.warns(UserWarning, match="embedding or an output head"):
        trainer.train()
    assert len(trainer.optimizer.param_groups) == 2


def test_typing_errors_are_found_before_training() -> None:
    """A pattern that matches nothing, and a setting that does not exist."""
    arguments = muon_trainer.TrainingArguments(use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="no parameter matches"):
        muon_for_trainer(tiny_llama(), arguments, overrides={"lm_haed.*": False})
    make, settings = muon_for_trainer(None, arguments, lr=0.5, momentum=0.9)
    optimizer = make()(tiny_llama(), **settings)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.5, 0.9)


def test_from_adamw_in_one_line(tmp_path: Path) -> None:
    """The script on digits learns as well with the one changed line, at AdamW's own settings."""
    results = {}
    for muon in (False, True):
        trainer = muon_trainer_digits.make_trainer(muon, str(tmp_path))
        trainer.train()
        results[muon] = trainer.evaluate()
    assert results[True]["eval_accuracy"] > 0.95
    assert results[True]["eval_loss"] < 1.1 * results[False]["eval_loss"]


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
    command = ["muon_trainer.py", "--output", str(tmp_path), "--steps"]
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
