"""Ranks: DDP, FSDP2 (uneven rows), HSDP and tensor parallel give the unsharded run's weights.

One spawn of two gloo processes runs every check; each test reads its outcome.
"""

import copy
import tempfile
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ranks import leave
from warmstart import (
    GradientDirection,
    WarmStart,
    dash_shrink,
    fire_reinit,
    shrink_and_perturb,
    uniform_shrink,
)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 7), nn.ReLU(), nn.Linear(7, 5)
    )


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def data(shape: tuple[int, ...], classes: int) -> list:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, *shape, generator=g), torch.randint(classes, (8,), generator=g))
        for _ in range(3)
    ]


def mine(batches: list, rank: int) -> list:
    """This rank's half of every batch."""
    return [(x[rank::2], y[rank::2]) for x, y in batches]


def full_state(model: nn.Module) -> dict[str, torch.Tensor]:
    out = {}
    for n, p in model.named_parameters():
        p = p.detach()
        out[n] = (p.full_tensor() if hasattr(p, "full_tensor") else p).clone()
    return out


def distance(model: nn.Module, reference: nn.Module) -> float:
    a, b = full_state(model), full_state(reference)
    return max(float((a[n] - b[n]).abs().max()) for n in b)


def unsharded(model: nn.Module, batches: list, method=dash_shrink) -> nn.Module:
    method(model, batches)
    return model


def check_ddp(rank: int) -> float:
    model = nn.parallel.DistributedDataParallel(net())
    report = dash_shrink(model, mine(data((1, 6, 6), 5), rank))
    reference = unsharded(net(), data((1, 6, 6), 5))
    assert report.row("3.weight").units == 7
    return distance(model.module, reference)


def check_plain_model_with_a_group(rank: int) -> float:
    model = net()
    group = torch.distributed.group.WORLD
    dash_shrink(model, mine(data((1, 6, 6), 5), rank), process_group=group)
    return distance(model, unsharded(net(), data((1, 6, 6), 5)))


def sharded(mesh) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    model = net()
    for layer in model:
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def check_fsdp2_uneven_rows(rank: int) -> float:
    """3, 5 and 7 rows over two ranks, and bias vectors whose one unit is split."""
    model = sharded(torch.distributed.init_device_mesh("cpu", (2,)))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    grads = [p.grad for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    report = dash_shrink(
        model, mine(data((1, 6, 6), 5), rank), optimizer=optimizer, floor=0.3, reliability=True
    )
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    reference = net()
    expected = dash_shrink(reference, data((1, 6, 6), 5), floor=0.3, reliability=True)
    for name, s in expected.factors.items():
        halves = expected.row(name).reliability
        assert report.row(name).reliability == (halves and pytest.approx(halves, abs=1e-4))
        torch.testing.assert_close(report.factors[name], s, rtol=0, atol=1e-6)
        assert report.row(name).norm_after == pytest.approx(expected.row(name).norm_after, rel=1e-5)
    return distance(model, reference)


def check_hsdp(rank: int) -> float:
    mesh = torch.distributed.init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    model = sharded(mesh)
    dash_shrink(model, mine(data((1, 6, 6), 5), rank))
    return distance(model, unsharded(net(), data((1, 6, 6), 5)))


def check_tensor_parallel(rank: int) -> float:
    """Rows split over ranks in one layer, every row split in the other."""
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    model = parallelize_module(mlp(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    dash_shrink(model, data((6,), 4))
    return distance(model, unsharded(mlp(), data((6,), 4)))


def check_direction_fed_by_fsdp2(rank: int) -> float:
    """The user's own backward passes on a sharded model."""
    model = sharded(torch.distributed.init_device_mesh("cpu", (2,)))
    direction = GradientDirection(model)
    for x, y in mine(data((1, 6, 6), 5), rank):
        cross_entropy(model(x), y).backward()
        direction.update()
        model.zero_grad()
    state = copy.deepcopy(direction.state_dict())
    resumed = GradientDirection(model)
    resumed.load_state_dict(state)
    dash_shrink(model, resumed)
    return distance(model, unsharded(net(), data((1, 6, 6), 5)))


def check_peers_on_fsdp2(rank: int) -> float:
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    worst = 0.0
    for method in (uniform_shrink, shrink_and_perturb, fire_reinit):
        model, reference = sharded(mesh), net()
        method(model)
        method(reference)
        worst = max(worst, distance(model, reference))
    return worst


def check_warm_start(rank: int) -> float:
    """Every rank goes through all examples, whatever its sampler; one of them writes the report."""
    x, y = (torch.cat(z) for z in zip(*data((1, 6, 6), 5), strict=True))
    dataset = TensorDataset(x, y)
    sampler = DistributedSampler(dataset, 2, rank)
    loader = DataLoader(dataset, batch_size=8, sampler=sampler)
    reference = net()
    WarmStart(seen=16).shrink_if_grown(reference, loader)
    worst = distance(reference, unsharded(net(), data((1, 6, 6), 5)))
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    for model in (nn.parallel.DistributedDataParallel(net()), sharded(mesh)):
        with tempfile.TemporaryDirectory() as folder:
            warm = WarmStart(folder, seen=16)
            warm.shrink_if_grown(model, loader, torch.optim.SGD(model.parameters(), lr=0.1))
            assert len(list(Path(folder).iterdir())) == (rank == 0)
        assert warm.state_dict() == {"seen": {"examples": 24}, "report": None}
        worst = max(worst, distance(getattr(model, "module", model), reference))
    return worst


def refused(model: nn.Module, error: type, match: str, batches: list, **keywords) -> float:
    """The expected error on this rank, and no weight moved."""
    before = full_state(model)
    with pytest.raises(error, match=match):
        dash_shrink(model, batches, **keywords)
    after = full_state(model)
    return max(float((before[n] - after[n]).abs().max()) for n in before)


def check_failure_on_one_rank(rank: int) -> float:
    """Rank 1's loader breaks: both ranks raise, none waits for ever, no weight moves."""
    batches = mine(data((1, 6, 6), 5), rank)
    if rank == 1:
        batches[2] = "broken"
    error, match = (TypeError, "pass forward=") if rank else (RuntimeError, "another rank failed")
    return refused(nn.parallel.DistributedDataParallel(net()), error, match, batches)


def check_unequal_batches(rank: int) -> float:
    batches = mine(data((1, 6, 6), 5), rank)[: 3 - rank]
    model = nn.parallel.DistributedDataParallel(net())
    return refused(model, ValueError, "ranks saw between 2 and 3 batches", batches)


def check_nan_gradient_on_one_rank_of_fsdp2(rank: int) -> float:
    """The NaN is in the shared gradient: every rank must refuse it, whichever rows it holds."""

    def forward(model: nn.Module, batch) -> torch.Tensor:
        out = model(batch[0])
        # sqrt at zero: a finite loss with an infinite gradient, on rank 1 only
        bad = (out - out.detach()).square().sum()
        return cross_entropy(out, batch[1]) + (bad.sqrt() if rank else bad)

    model = sharded(torch.distributed.init_device_mesh("cpu", (2,)))
    batches = mine(data((1, 6, 6), 5), rank)
    return refused(model, ValueError, "batch 0: gradient is NaN", batches, forward=forward)


def check_bad_batches_on_one_rank_of_fsdp2(rank: int) -> float:
    """A NaN loss, a broken loader and a short loader must not leave the other rank waiting."""
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    batches = mine(data((1, 6, 6), 5), rank)
    short = refused(sharded(mesh), ValueError, "different numbers", batches[: 3 - rank])

    def broken():
        yield batches[0]
        raise OSError("disk is gone")

    error, match = (OSError, "disk") if rank else (RuntimeError, "another rank failed to fetch")
    lost = refused(sharded(mesh), error, match, broken() if rank else batches)
    if rank:
        batches[1][0][:] = torch.nan
    error, match = (
        (ValueError, "batch 1 is nan") if rank else (RuntimeError, "another rank refused")
    )
    return max(short, lost, refused(sharded(mesh), error, match, batches))


CHECKS = {
    f.__name__: f
    for f in (
        check_ddp,
        check_plain_model_with_a_group,
        check_fsdp2_uneven_rows,
        check_hsdp,
        check_tensor_parallel,
        check_direction_fed_by_fsdp2,
        check_peers_on_fsdp2,
        check_warm_start,
        check_failure_on_one_rank,
        check_unequal_batches,
        check_nan_gradient_on_one_rank_of_fsdp2,
        check_bad_batches_on_one_rank_of_fsdp2,
    )
}


def worker(rank: int, folder: str) -> None:
    import traceback

    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for name, check in CHECKS.items():
        try:
            outcome = repr(check(rank))
        except BaseException:
            outcome = traceback.format_exc()
        Path(folder, f"{name}.{rank}").write_text(outcome)
    leave()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, (str(folder),), nprocs=2, join=True)
    return folder


@pytest.mark.parametrize("name", CHECKS)
def test_ranks(outcomes: Path, name: str) -> None:
    """A sharded user gets the same weights as on one device, or the same error on every rank."""
    for rank in (0, 1):
        outcome = (outcomes / f"{name}.{rank}").read_text()
        assert "Traceback" not in outcome, outcome
        assert float(outcome) <= 1e-6
