"""Prune under Lightning: hand it an indexed loader, and switch its own sharding off.

Runs on any number of processes and resumes from the checkpoint of any epoch.

    pip install lightning
    python examples/prune_lightning.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from data_prune import DualScoreSampler, index_batches

BATCH = 64


class Classifier(lightning.LightningModule):
    """A network that credits every batch to the sampler."""

    def __init__(self, network: nn.Module, sampler: DualScoreSampler, epochs: int = 8) -> None:
        super().__init__()
        self.network, self.scores, self.epochs = network, sampler, epochs
        self.seen: list[int] = []
        self.rates: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch; the index came with it."""
        x, y, index = batch
        logits = self.network(x)
        self.scores.update(index, logits, y)
        self.seen.append(len(index))
        self.rates.append(self.lr_schedulers().get_last_lr()[0])  # type: ignore[union-attr]
        return nn.functional.cross_entropy(logits, y)

    def on_train_epoch_end(self) -> None:
        """Let the ranks agree on what was recorded, so that one of them saves it for all."""
        self.scores.close_epoch()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the recording and the position beside the weights."""
        assert self.scores.tracker is not None
        checkpoint["sampler"] = self.scores.state_dict()
        checkpoint["tracker"] = self.scores.tracker.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        assert self.scores.tracker is not None
        self.scores.load_state_dict(checkpoint["sampler"])
        self.scores.tracker.load_state_dict(checkpoint["tracker"])

    def configure_optimizers(self) -> Any:
        """Adam, with a rate that ends at zero: total_steps counts the shorter epochs as well."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=2e-3)
        total = self.scores.total_steps(self.epochs, BATCH)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def digits() -> TensorDataset:
    data = load_digits()
    return TensorDataset(
        torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    )


def train(
    data: TensorDataset,
    network: nn.Module,
    epochs: int = 8,
    folder: Path | None = None,
    stop_after: int | None = None,
    **trainer: Any,
) -> tuple[DualScoreSampler, Classifier]:
    """Train for some epochs; with a folder, save after each one and go on from what is there.

    ``stop_after`` so many epochs the run ends as if it had been killed.
    """
    # Lightning's own division of the order would keep the length of the first epoch for ever.
    sampler = DualScoreSampler(data, prune_ratio=0.5, score_epochs=5, window=3, num_replicas="auto")
    loader = index_batches(DataLoader(data, batch_size=BATCH), sampler)
    model = Classifier(network, sampler, epochs)
    saves, last = [], None
    if folder is not None:
        saves = [ModelCheckpoint(folder, filename="{epoch}", save_last=True)]
        last = folder / "last.ckpt"
    lightning.Trainer(
        max_epochs=stop_after or epochs,
        accelerator="cpu",
        use_distributed_sampler=False,
        logger=False,
        callbacks=saves,
        enable_checkpointing=bool(saves),
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer,
    ).fit(model, loader, ckpt_path=str(last) if last is not None and last.exists() else None)
    return sampler, model


if __name__ == "__main__":
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    result, _ = train(digits(), net)
    print(f"kept {len(result.kept)} of {len(result.table)} examples")
