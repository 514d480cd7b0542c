"""Muon in a plain torchrun script with DistributedDataParallel.

    torchrun --standalone --nproc_per_node 2 examples/muon_ddp.py

It works as any optimizer does. ``share_work=True`` adds that each matrix is orthogonalized by one
rank, which sends the result to the others, where by default every rank orthogonalizes them all.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from real_data import load
from torch_specgd import Muon


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def train(*, epochs: int = 3) -> tuple[nn.Module, list[float]]:
    torch.manual_seed(0)
    model = DistributedDataParallel(net())
    optimizer = Muon(model, lr=5e-3, adjust_lr_fn="match_rms_adamw", share_work=True)
    data = load("digits")
    dataset = TensorDataset(data.train_x, data.train_y)
    sampler = DistributedSampler(dataset, drop_last=True)
    losses = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for x, y in DataLoader(dataset, batch_size=64, sampler=sampler):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return model.module, losses


def largest_difference(model: nn.Module) -> float:
    """The largest difference of any weight between the ranks and rank 0."""
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    first = weights.clone()
    dist.broadcast(first, src=0)
    difference = (weights - first).abs().max()
    dist.all_reduce(difference, op=dist.ReduceOp.MAX)
    return difference.item()


def main() -> None:
    if not dist.is_torchelastic_launched():
        raise SystemExit("start it with " + __doc__.splitlines()[2].strip())
    dist.init_process_group("gloo")
    model, losses = train()
    difference = largest_difference(model)
    if dist.get_rank() == 0:
        print(f"loss: {sum(losses[:8]) / 8:.3f} -> {sum(losses[-8:]) / 8:.3f}")
        print(f"largest difference between ranks: {difference}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
