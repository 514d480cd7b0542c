"""Prune under Accelerate: the index travels inside the batch, so its look-ahead does no harm.

Runs on any number of processes and resumes from the checkpoint of any epoch.

    pip install accelerate
    python examples/prune_accelerate.py    # or: accelerate launch ...
"""

from __future__ import annotations

from pathlib import Path

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


def train(
    data: TensorDataset,
    model: nn.Module,
    epochs: int = 8,
    folder: Path | None = None,
    stop_after: int | None = None,
) -> tuple[DualScoreSampler, list[float]]:
    """Train for some epochs; with a folder, save after each one and go on from what is there.

    ``stop_after`` so many epochs the run ends as if it had been killed.

    Returns:
        The sampler, and the learning rate of each step that was made.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    sampler = DualScoreSampler(data, prune_ratio=0.5, score_epochs=5, window=3)
    loader = index_batches(DataLoader(data, batch_size=64), sampler)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    # total_steps counts the shorter epochs after pruning. A prepared schedule would take one step
    # for each process: this one is not prepared.
    total = sampler.total_steps(epochs, 64 * accelerator.num_processes)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    # Accelerate divides the sampler's order among the ranks; it must not be divided before.
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    accelerator.register_for_checkpointing(sampler, sampler.tracker, schedule)
    if folder is not None and folder.exists():
        accelerator.load_state(str(folder))
    rates: list[float] = []
    while sampler.epoch < (stop_after or epochs):
        for x, y, index in loader:
            logits = model(x)
            accelerator.backward(nn.functional.cross_entropy(logits, y))
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            rates.append(schedule.get_last_lr()[0])
            sampler.update(index, logits, y)
        sampler.close_epoch()  # the ranks agree on what was recorded, so that one saves it for all
        if folder is not None:
            accelerator.save_state(str(folder))
    return sampler, rates


if __name__ == "__main__":
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    result, _ = train(digits(), network)
    print(f"kept {len(result.kept)} of {len(result.table)} examples")
