"""WarmStart under Lightning and the Hugging Face Trainer: data grows, runs are killed, resumed."""

import json
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from transformers import Trainer, TrainingArguments

from muon_text import DocumentationText, tiny_llama
from warmstart import WarmStart

pytestmark = [
    # As in test_lightning.py: Lightning's own deprecations and advice.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty.*"),
    pytest.mark.usefixtures("fresh_accelerator"),
]


class Count(nn.Module):
    """A metric, as torchmetrics has them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def compute(self) -> int:
        return self.seen

    def reset(self) -> None:
        self.seen = 0


class Net(lightning.LightningModule):
    """A module that logs and counts in its training step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        self.count = Count()
        self.at_start: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        if index == 0:
            self.at_start.append({n: p.detach().clone() for n, p in self.named_parameters()})

    def training_step(self, batch: Any, _: int) -> Any:
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.count.seen += len(y)
        self.log("loss", loss, on_step=True)
        return {"loss": loss}

    def on_train_epoch_end(self) -> None:
        self.log("count", float(self.count.compute()))
        self.count.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def digits(n: int) -> DataLoader:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=g)
    return DataLoader(TensorDataset(x[:n], (x[:n, 0] > 0).long()), batch_size=16, shuffle=True)


def fit(folder: Path, epochs: int, n: int, *, net: Any = None, beside: Any = (), **options):
    """One start of the same script."""
    warm = WarmStart(**options)
    net = net or Net()
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1,
        callbacks=[
            warm.lightning_callback(),
            *beside,
            lightning.pytorch.callbacks.ModelCheckpoint(folder, save_last=True),
        ],
    )  # fmt: skip
    last = folder / "last.ckpt"
    trainer.fit(net, digits(n), ckpt_path=last if last.exists() else None)
    return net, warm, trainer


def test_lightning(tmp_path: Path) -> None:
    """Shrunk once, on resume with more data; logs, metrics and modes know nothing of it."""
    net, warm, _ = fit(tmp_path, 2, 32)
    assert warm.report is None
    assert warm.seen == {"examples": 32}
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    before = last["state_dict"]
    net, warm, trainer = fit(tmp_path, 4, 64)
    start = net.at_start[0]
    told = json.loads((tmp_path / "warmstart-32-64.json").read_text())
    assert {p["name"] for p in told["parameters"]} == {
        "net.0.weight", "net.0.bias", "net.3.weight", "net.3.bias"
    }  # fmt: skip
    for row in warm.report.rows:
        factor = warm.report.factors[row.name]
        torch.testing.assert_close(start[row.name], before[row.name] * factor)
    assert any(
        "old data (2 batches)" in n and "new data (2 batches)" in n for n in warm.report.notes
    )
    assert trainer.callback_metrics["count"] == 64
    assert net.training
    assert "log" not in vars(net)
    state = trainer.optimizers[0].state[net.net[0].weight]
    assert float(state["step"]) == 8, "two epochs of four batches since the reset"
    # The same start once more: nothing is new.
    _, warm, _ = fit(tmp_path, 5, 64)
    assert warm.report is None
    assert warm.seen == {"examples": 64}


def test_lightning_killed_in_the_first_epoch(tmp_path: Path) -> None:
    """No checkpoint was taken since the shrink: the next start makes the same one."""

    class Killed(Net):
        def on_train_batch_start(self, batch: Any, index: int) -> None:
            super().on_train_batch_start(batch, index)
            if index == 1:
                raise KeyError("killed")

    fit(tmp_path, 2, 32)
    net = Killed()
    with pytest.raises(KeyError):
        fit(tmp_path, 4, 64, net=net)
    assert (tmp_path / "warmstart-32-64.json").exists()
    later, warm, _ = fit(tmp_path, 4, 64)
    assert warm.report is not None
    for name, p in later.at_start[0].items():
        assert torch.equal(p, net.at_start[0][name])


def test_lightning_manual_optimization_needs_a_forward(tmp_path: Path) -> None:
    """A step that steps itself must not run for a measurement."""

    class Manual(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, _: int) -> None:
            optimizer = self.optimizers()
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    with pytest.raises(ValueError, match="manual optimization"):
        fit(tmp_path, 1, 64, net=Manual(), seen=32)

    def forward(module: Net, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(module.net(batch[0]), batch[1])

    _, warm, _ = fit(tmp_path, 1, 64, net=Manual(), seen=32, forward=forward)
    assert warm.report.num_batches == 4


def test_lightning_hands_every_optimizer_over(tmp_path: Path) -> None:
    """State of both is scaled with the weights."""

    class Two(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [
                torch.optim.SGD(self.net[i].parameters(), lr=1e-2, momentum=0.9) for i in (0, 3)
            ]

        def training_step(self, batch: Any, _: int) -> None:
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    class Seen(lightning.Callback):
        def on_train_start(self, trainer: Any, net: Any) -> None:
            self.state = [len(o.state) for o in trainer.optimizers]

    fit(tmp_path, 1, 32, net=Two())
    seen = Seen()
    _, warm, _ = fit(tmp_path, 2, 64, net=Two(), beside=[seen], method="uniform")
    assert warm.report is not None
    assert seen.state == [0, 0]


def trainer_of(folder: Path, epochs: int, n: int, **options: Any) -> tuple[Trainer, WarmStart]:
    arguments = TrainingArguments(
        output_dir=str(folder), num_train_epochs=epochs, per_device_train_batch_size=8,
        learning_rate=1e-3, save_strategy="epoch", use_cpu=True, report_to="none",
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    warm = WarmStart(**options)
    trainer = Trainer(
        model=tiny_llama(),
        args=arguments,
        train_dataset=Subset(DocumentationText(32), range(n)),
        callbacks=[warm.hf_callback()],
    )
    return trainer, warm


def test_trainer(tmp_path: Path) -> None:
    """Shrunk once, on resume with more data; the state lies in trainer_state.json."""
    first, warm = trainer_of(tmp_path, 1, 16)
    first.train()
    assert warm.report is None
    assert warm.seen == {"examples": 16}
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["WarmStart"] == {"seen": {"examples": 16}, "report": None}
    second, warm = trainer_of(tmp_path, 2, 32)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert warm.report.num_batches == 4
    told = json.loads((tmp_path / "warmstart-16-32.json").read_text())
    assert told["settings"]["optimizer_state"] == "reset"
    third, warm = trainer_of(tmp_path, 3, 32)
    third.train(resume_from_checkpoint=True)
    assert warm.report is None
    assert warm.seen == {"examples": 32}


def test_trainer_killed_before_its_checkpoint(tmp_path: Path) -> None:
    """The checkpoint still has the old weights and the old state: the same shrink again."""
    trainer_of(tmp_path, 1, 16)[0].train()
    factors = []
    for _ in range(2):
        run, warm = trainer_of(tmp_path, 2, 32)
        run.args.save_strategy = "no"
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        factors.append(warm.report.factors)
    torch.testing.assert_close(*factors, rtol=0, atol=0)


def test_trainer_joins_a_run_that_was_without(tmp_path: Path) -> None:
    """An older checkpoint knows of no WarmStart: seen= tells what it was trained on."""
    old, _ = trainer_of(tmp_path, 1, 16)
    old.callback_handler.callbacks.pop()
    old.train()
    run, warm = trainer_of(tmp_path, 2, 32, seen=16)
    run.train(resume_from_checkpoint=True)
    assert warm.report is not None
    assert list(tmp_path.glob("checkpoint-*/trainer_state.json"))
