"""Adapters under the Hugging Face Trainer, and the examples of LoRA mode."""

import math
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from optimizers.adapters import third_party, tiny_llama, with_adapters
from torch_specgd import (
    Muon,
    SpecGD,
    SpectrumTracker,
    find_lora_pairs,
    lora_param_groups,
    lora_report,
)

EXAMPLES = Path(__file__).parents[2] / "examples"


def hf_trainer(model: nn.Module, folder: Path, optimizer: Any, **options: Any) -> Any:
    """Six steps of the Hugging Face trainer on repeated sequences."""
    from transformers import Trainer, TrainingArguments

    tokens = torch.randint(0, 64, (24, 16), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in tokens]
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=6, per_device_train_batch_size=4, learning_rate=0.02,
        use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no",
        seed=0,
    )  # fmt: skip
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        optimizer_cls_and_kwargs=optimizer,
        **options,
    )


@third_party
@pytest.mark.parametrize("optimizer", [SpecGD, Muon])
def test_hf_trainer_with_an_optimizer_class(optimizer: type, tmp_path: Path) -> None:
    """The documented one-liner for transformers, and adapters that survive saving and loading."""
    from peft import PeftModel

    model = with_adapters()
    tracker = SpectrumTracker(model, every=3)
    trainer = hf_trainer(
        model, tmp_path, (optimizer, {"lr": 0.02}), callbacks=[tracker.hf_callback()]
    )
    tokens = torch.arange(16)[None]
    before = float(model(input_ids=tokens, labels=tokens).loss.detach())
    trainer.train()
    assert tracker.history(tracker.names()[0])[0].tolist() == [0, 3, 6]
    assert tracker.records[0]["rate"] > 0  # at the end the trainer has decayed it to 0
    after = model(input_ids=tokens, labels=tokens)
    assert float(after.loss.detach()) != before
    assert all(bool(p.lora_b.any()) for p in find_lora_pairs(model))
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter")
    assert torch.allclose(loaded(input_ids=tokens).logits, after.logits, atol=1e-6)


@third_party
def test_hf_trainer_with_rates_per_factor(tmp_path: Path) -> None:
    """Groups of one's own go through the trainer under the name that it knows: params."""
    model = with_adapters()
    groups = lora_param_groups(model, lr_b=0.04, lr_a=0.01)
    trainer = hf_trainer(model, tmp_path, (SpecGD, {"params": groups, "lr": 0.02}))
    trainer.create_optimizer()
    # The trainer wraps the optimizer only when it trains.
    assert [g["lr"] for g in trainer.optimizer.param_groups] == [0.04, 0.01]
    report = lora_report(model, trainer.optimizer)
    assert report[0].effective_rate == pytest.approx(math.sqrt(2.0 * 0.04 * 0.01))
    trainer.train()
    assert all(bool(p.lora_b.any()) for p in find_lora_pairs(model))


def test_example_loop_arrives_when_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    """The example by hand runs as it stands, and its forecast comes true."""
    runpy.run_path(str(EXAMPLES / "lora_loop.py"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    for line in lines[:5]:
        predicted, reached = re.findall(r"step\s+(\d+)", line)
        assert abs(int(predicted) - int(reached)) <= 3


@third_party
def test_example_of_the_trainer_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The example for the Hugging Face trainer runs as it stands."""
    runpy.run_path(str(EXAMPLES / "lora_trainer.py"))
    printed = capsys.readouterr().out
    assert printed.count("sigma_r / sigma_1 = 0.") == 4
