"""Prune under Accelerate: the index travels inside the batch, so its look-ahead does no harm.

pip install accelerate
python examples/prune_accelerate.py                      # or: accelerate launch ...
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from data_prune import DualScoreSampler, index_batches


def digits() -> TensorDataset:
    data = load_digits()
    return TensorDataset(
        torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    )


def train(data: TensorDataset, model: nn.Module, epochs: int = 8) -> DualScoreSampler:
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    sampler = DualScoreSampler(data, prune_ratio=0.5, score_epochs=5, window=3)
    loader = index_batches(DataLoader(data, batch_size=64), sampler)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    # Accelerate divides the sampler's order among the ranks; it must not be divided before.
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for epoch in range(epochs):
        seen = 0
        for x, y, index in loader:
            logits = model(x)
            accelerator.backward(nn.functional.cross_entropy(logits, y))
            optimizer.step()
            optimizer.zero_grad()
            sampler.update(index, logits, y)
            seen += len(index)
        accelerator.print(f"epoch {epoch}: {seen} examples on this rank")
    return sampler


if __name__ == "__main__":
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    result = train(digits(), network)
    print(f"kept {len(result.kept)} of {len(result.table)} examples")
