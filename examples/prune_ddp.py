"""Prune in a plain loop on any number of processes, killed and resumed wherever you like.

python examples/prune_ddp.py
torchrun --standalone --nproc_per_node 2 examples/prune_ddp.py   # equally many on each rank
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from data_prune import DualScoreSampler, ScoredLoader


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
) -> tuple[ScoredLoader, list[float]]:
    """Train for some epochs; with a folder, save at every step and go on from what is there.

    ``stop_after`` so many steps the run ends as if it had been killed.

    Returns:
        The loader, and the learning rate of each step that was made.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    order = DistributedSampler(data, world, rank)
    loader = DualScoreSampler.wrap(
        StatefulDataLoader(data, batch_size=32, sampler=order),
        prune_ratio=0.5, score_epochs=5, window=3,
    )  # fmt: skip
    model = DistributedDataParallel(network) if world > 1 else network
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # total_steps counts the shorter epochs after pruning: the rate ends at zero on the last step.
    total = loader.total_steps(epochs)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    parts = {"loader": loader, "model": network, "optimizer": optimizer, "schedule": schedule}
    # Each rank has seen other examples of the open epoch, so that each keeps a state of its own.
    state = None if folder is None else folder / f"rank{rank}.pt"
    if state is not None and state.exists():
        for name, content in torch.load(state, weights_only=True).items():
            parts[name].load_state_dict(content)
    rates: list[float] = []
    while loader.sampler.epoch < epochs:
        for x, y in loader:
            logits = model(x)
            loader.record(logits, y)
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, y).backward()
            optimizer.step()
            schedule.step()
            rates.append(schedule.get_last_lr()[0])
            if state is not None:
                torch.save({n: p.state_dict() for n, p in parts.items()}, state)
            if len(rates) == stop_after:
                return loader, rates
    return loader, rates


if __name__ == "__main__":
    torch.manual_seed(0)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    result, steps = train(digits(), net)
    print(f"kept {len(result.kept)} of {len(result.table)} examples, {len(steps)} steps")
    if dist.is_initialized():
        dist.destroy_process_group()
