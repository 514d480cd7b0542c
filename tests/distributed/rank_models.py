"""A small model that the spawned processes train, and its data."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from torch_specgd import Muon


class Net(nn.Module):
    """A small model with the shapes that break naive sharding: (1, N), (3, N), odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 17), nn.Tanh(), nn.Linear(17, 3), nn.Tanh())
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x)))


def net() -> Net:
    torch.manual_seed(3)
    return Net()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(64, 6, generator=generator), torch.randn(64, 1, generator=generator)


def train(model: nn.Module, optimizer: Any, steps: range, share: slice = slice(None)) -> None:
    for step in steps:
        x, y = batch(step)
        dtype = next(model.parameters()).dtype
        optimizer.zero_grad()
        (model(x[share].to(dtype)) - y[share].to(dtype)).square().mean().backward()
        optimizer.step()


def muon_of(model: nn.Module, **options: Any) -> Muon:
    return Muon(model.named_parameters(), lr=0.02, **options)


def sharded_net(mesh: DeviceMesh, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = net().to(dtype)
    fully_shard(model.body, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def my_share() -> slice:
    return slice(dist.get_rank(), None, dist.get_world_size())


def trained(model: nn.Module, steps: int, share: slice = slice(None)) -> tuple[nn.Module, Muon]:
    # A schedule that hardly amplifies small singular values: the gradients of shares of a batch
    # are summed in another order than those of the batch, and the default schedule makes full
    # directions of what differs by rounding only.
    optimizer = muon_of(model, ns_coefficients=[(1.5, -0.5)] * 3)
    train(model, optimizer, range(steps), share)
    return model, optimizer
