"""Lightning: automatic optimization with one optimizer, and resuming from its checkpoints."""

from pathlib import Path

import pytest
import torch

import muon_lightning
from muon_lightning import DigitsNet, digits_loader, make_trainer
from torch_specgd import Muon

pytestmark = [
    # Lightning 2.6 builds a class of torch's that torch 2.13 deprecates, on every fit.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    # Advice for loaders of real size; the examples load tensors that lie in memory.
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]


def test_example_trains(capsys: pytest.CaptureFixture[str]) -> None:
    """The loss falls under Lightning's own loop."""
    muon_lightning.main()
    printed = capsys.readouterr().out.rpartition("loss: ")[2]
    first, last = map(float, printed.split(" -> "))
    assert last < first / 2


def test_automatic_optimization_drives_one_optimizer() -> None:
    """Lightning runs forward and backward inside step(closure), clips, and counts steps."""
    model = DigitsNet()
    trainer = make_trainer(
        1, enable_checkpointing=False, gradient_clip_val=1.0, accumulate_grad_batches=2
    )
    trainer.fit(model, digits_loader())
    assert model.automatic_optimization
    (optimizer,) = trainer.optimizers
    assert type(optimizer) is Muon
    assert trainer.global_step == 4, "eight batches, two to a step"
    assert {float(s["step"]) for s in optimizer.state.values() if "step" in s} == {4.0}


def test_resumes_identically(tmp_path: Path) -> None:
    """fit(ckpt_path=...) of another model ends with the same weights, bit by bit."""
    straight = DigitsNet()
    make_trainer(4, enable_checkpointing=False).fit(straight, digits_loader())
    half = make_trainer(2, enable_checkpointing=False)
    half.fit(DigitsNet(), digits_loader())
    path = tmp_path / "half.ckpt"
    half.save_checkpoint(path)
    resumed = DigitsNet(seed=1)
    make_trainer(4, enable_checkpointing=False).fit(resumed, digits_loader(), ckpt_path=path)
    assert len(resumed.losses) == 16
    for p, q in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)
