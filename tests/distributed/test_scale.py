"""64 ranks, of which one is real: shapes, owners and memory, not values."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from specgd_common.tensors import local
from torch_specgd import Muon
from torch_specgd.distributed.layout import Layout, check_layout, least_divided
from torch_specgd.distributed.orthogonalize import orthogonalize_distributed
from torch_specgd.step import muon as muon_step

RANK, WORLD = 37, 64


@pytest.fixture(autouse=True)
def one_of_many() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=WORLD)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("mesh", "placements"),
    [
        ((64,), (Shard(0),)),
        ((8, 8), (Replicate(), Shard(0))),
        ((8, 8), (Shard(0), Shard(1))),
        ((2, 4, 8), (Replicate(), Shard(0), Shard(1))),
    ],
)
def test_work_of_one_rank_shrinks_with_the_world(
    mesh: tuple[int, ...], placements: tuple[Placement, ...]
) -> None:
    """With as many matrices as ranks, each rank orthogonalizes one, whole, and sees no other."""
    torch.manual_seed(0)
    device_mesh = init_device_mesh("cpu", mesh)
    shape, count = torch.Size((40, 24)), 2 * WORLD
    params: list[DTensor] = []
    for _ in range(count):
        p = torch.distributed.tensor.zeros(*shape, device_mesh=device_mesh, placements=placements)
        check_layout(p)
        params.append(p)
    seen: list[Tensor] = []

    def compute(xs: list[Tensor], members: list[int]) -> list[Tensor]:
        seen.extend(xs)
        return xs

    pieces = [local(p) for p in params]
    done = orthogonalize_distributed(
        pieces, [Layout.of(p) for p in params], ["auto"] * count, compute, bucket_bytes=1
    )
    assert [x.shape for x in seen] == [shape] * (count // WORLD)
    assert [x.shape for x in done] == [x.shape for x in pieces]


@pytest.mark.parametrize(
    ("mesh", "placements", "pieces"),
    [
        ((64,), (Shard(0),), 64),
        ((8, 8), (Replicate(), Shard(0)), 8),
        ((8, 8), (Shard(0), Shard(1)), 64),
        ((64,), (Replicate(),), 1),
    ],
)
def test_a_round_has_a_matrix_for_every_rank(
    mesh: tuple[int, ...],
    placements: tuple[Placement, ...],
    pieces: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bounded by whole matrices, seven of eight GPUs waited in every round of a large model."""
    device_mesh = init_device_mesh("cpu", mesh)
    params = []
    for _ in range(2 * WORLD):
        p = torch.distributed.tensor.zeros(64, 64, device_mesh=device_mesh, placements=placements)
        params.append(torch.nn.Parameter(p))
        params[-1].grad = p
    assert least_divided(params) == (pieces, WORLD)
    assert least_divided([*params, torch.zeros(3, 3)]) == (1, 1)
    rounds: list[int] = []

    def noted(updates: list[Tensor], *_: object) -> list[Tensor]:
        rounds.append(len(updates))
        return updates

    monkeypatch.setattr(muon_step, "orthogonalize_all", noted)
    # As many bytes as two whole matrices and their results have.
    Muon(params, lr=0.1, max_batch_bytes=2 * 2 * 4 * 64 * 64).step()
    assert rounds == [2 * pieces] * (WORLD // pieces)
