"""Prune under Lightning: hand it an indexed loader, and switch its own sharding off.

pip install lightning
python examples/prune_lightning.py
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from data_prune import DualScoreSampler, index_batches


class Classifier(lightning.LightningModule):
    """A network that credits every batch to the sampler."""

    def __init__(self, network: nn.Module, sampler: DualScoreSampler) -> None:
        super().__init__()
        self.network, self.scores = network, sampler
        self.seen: list[int] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch; the index came with it."""
        x, y, index = batch
        logits = self.network(x)
        self.scores.update(index, logits, y)
        self.seen.append(len(index))
        return nn.functional.cross_entropy(logits, y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.network.parameters(), lr=2e-3)


def digits() -> TensorDataset:
    data = load_digits()
    return TensorDataset(
        torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    )


def train(
    data: TensorDataset, network: nn.Module, epochs: int = 8, **trainer: Any
) -> tuple[DualScoreSampler, Classifier]:
    # Lightning's own division of the order would keep the length of the first epoch for ever.
    sampler = DualScoreSampler(data, prune_ratio=0.5, score_epochs=5, window=3, num_replicas="auto")
    loader = index_batches(DataLoader(data, batch_size=64), sampler)
    model = Classifier(network, sampler)
    lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer,
    ).fit(model, loader)
    return sampler, model


if __name__ == "__main__":
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    result, _ = train(digits(), net)
    print(f"kept {len(result.kept)} of {len(result.table)} examples")
