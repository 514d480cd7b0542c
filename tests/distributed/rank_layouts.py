"""Checks in the spawned processes: every way to spread a tensor takes the unsharded step."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rank_runs import (
    OPTIMIZERS,
    compare_all,
    counted,
    full,
    largest_difference,
    matrices_seen,
    placed,
    run,
    weights_and_gradients,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)

from torch_specgd import Muon, SpecGD
from torch_specgd.distributed import exchange
from torch_specgd.distributed.layout import local_like


def check_shard_rows(mesh: DeviceMesh, folder: Path) -> Any:
    return compare_all(placed(mesh, Shard(0)))


def check_light_state(mesh: DeviceMesh, folder: Path) -> Any:
    """Momentum in few bits is rounded by an entry's place in the whole matrix."""
    weights, gradients = weights_and_gradients()
    keep = [i for i, w in enumerate(weights) if w.ndim > 1]
    weights, gradients = [weights[i] for i in keep], [[g[i] for i in keep] for g in gradients]
    result = {}
    for bits in ("int8", "int4"):
        make = partial(Muon, lr=0.02, state_dtype=bits)
        plain, _ = run(make, lambda x: x, weights, gradients)
        spread, _ = run(make, placed(mesh, Shard(0)), weights, gradients)
        result[bits] = largest_difference(spread, plain)
    with pytest.raises(ValueError, match="divided along dimension 0"):
        run(make, placed(mesh, Shard(1)), weights, gradients)
    return result


def check_shard_columns(mesh: DeviceMesh, folder: Path) -> Any:
    return compare_all(placed(mesh, Shard(1)))


def check_replicated(mesh: DeviceMesh, folder: Path) -> Any:
    return compare_all(placed(mesh, Replicate()))


def check_mixed_kinds(mesh: DeviceMesh, folder: Path) -> Any:
    """Plain and sharded parameters in one optimizer."""
    place = placed(mesh, Shard(0))
    return compare_all(lambda x: place(x) if x.shape[0] % 2 else x)


def check_bfloat16(mesh: DeviceMesh, folder: Path) -> Any:
    weights, gradients = weights_and_gradients()
    weights = [w.bfloat16() for w in weights]
    gradients = [[g.bfloat16() for g in step] for step in gradients]
    make = OPTIMIZERS["muon"]
    plain, _ = run(make, lambda x: x, weights, gradients)
    params, _ = run(make, placed(mesh, Shard(0)), weights, gradients)
    # In units of what has been rounded: the weight at both ends of the run, and an update.
    return max(
        float(((full(p) - full(q)).abs() / (w.abs() + full(q).abs() + 0.02)).max())
        for p, q, w in zip(params, plain, weights, strict=True)
    )


def check_each_matrix_once(mesh: DeviceMesh, folder: Path) -> Any:
    return matrices_seen(placed(mesh, Shard(0)))


def check_experts_stay(mesh: DeviceMesh, folder: Path) -> Any:
    """Collectives of a step on expert stacks, sharded over the experts."""
    calls: list[Any] = []
    stack = [torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(1))]
    with counted(dist, "all_to_all_single", calls), counted(exchange, "all_gather_flat", calls):
        params, _ = run(OPTIMIZERS["muon"], placed(mesh, Shard(0)), stack, [stack])
        sent = len(calls)
    plain, _ = run(OPTIMIZERS["muon"], lambda x: x, stack, [stack])
    return sent, largest_difference(params, plain)


def check_partial_gradient(mesh: DeviceMesh, folder: Path) -> Any:
    """Gradients of replicated weights arrive as partial sums under sequence parallelism."""
    weights, gradients = weights_and_gradients(1)
    plain, _ = run(OPTIMIZERS["muon"], lambda x: x, weights, gradients)
    params = [nn.Parameter(distribute_tensor(w, mesh, [Replicate()])) for w in weights]
    optimizer = OPTIMIZERS["muon"](params)
    for p, g in zip(params, gradients[0], strict=True):
        part = g if dist.get_rank() == 0 else torch.zeros_like(g)
        p.grad = DTensor.from_local(part, mesh, [Partial()], run_check=False)
    optimizer.step()
    return largest_difference(params, plain)


def check_refusals(mesh: DeviceMesh, folder: Path) -> Any:
    x = torch.ones(4, 2)
    summed = nn.Parameter(DTensor.from_local(x, mesh, [Partial()], run_check=False))
    backwards = DeviceMesh("cpu", [1, 0])
    reversed_ = nn.Parameter(distribute_tensor(x, backwards, [Shard(0)]))
    messages = {}
    for name, p in {"partial": summed, "backwards": reversed_}.items():
        for kind in (Muon, SpecGD):
            try:
                kind([(name, p)])
            except ValueError as error:
                messages[f"{name}-{kind.__name__}"] = str(error)
    try:
        local_like(distribute_tensor(x, mesh, [Shard(0)]), nn.Parameter(x.clone()))
    except RuntimeError as error:
        messages["kinds"] = str(error)
    return messages


def check_hsdp(mesh: DeviceMesh, folder: Path) -> Any:
    return compare_all(placed(mesh, Replicate(), Shard(0)))


def check_hsdp_owners(mesh: DeviceMesh, folder: Path) -> Any:
    return matrices_seen(placed(mesh, Replicate(), Shard(0)))


def check_rows_and_columns(mesh: DeviceMesh, folder: Path) -> Any:
    return compare_all(placed(mesh, Shard(0), Shard(1)))


def check_columns_and_experts(mesh: DeviceMesh, folder: Path) -> Any:
    """The stack's experts stay on the second dimension while columns travel on the first."""
    return compare_all(placed(mesh, Shard(2), Shard(0)))


def check_rows_twice(mesh: DeviceMesh, folder: Path) -> Any:
    return compare_all(placed(mesh, Shard(0), Shard(0)))


def check_replicated_inside(mesh: DeviceMesh, folder: Path) -> Any:
    return compare_all(placed(mesh, Shard(1), Replicate()))


def check_tensor_parallel_and_fsdp(mesh: DeviceMesh, folder: Path) -> Any:
    """FSDP around row- and column-wise tensor parallelism: strided shards."""
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    def mlp() -> nn.Sequential:
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(6, 16, bias=False), nn.Tanh(), nn.Linear(16, 4, bias=False))

    plain = mlp()
    model = mlp()
    parallelize_module(model, mesh["b"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["a"])
    optimizers = [Muon(m.parameters(), lr=0.02) for m in (plain, model)]
    gradients = [
        torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        for i, p in enumerate(plain.parameters())
    ]
    strided = False
    for p, q, g in zip(plain.parameters(), model.parameters(), gradients, strict=True):
        p.grad = g
        start = p.detach().clone()
        assert torch.equal(full(q), start)
        q.grad = cut_like(q, g)
        strided |= any("Strided" in type(x).__name__ for x in q.placements)
    for optimizer in optimizers:
        optimizer.step()
    return strided, largest_difference(model.parameters(), plain.parameters())


def cut_like(p: DTensor, x: Tensor) -> DTensor:
    """This rank's piece of x, found by marking every element of p's layout with its position."""
    positions = torch.arange(x.numel(), dtype=x.dtype).view(x.shape)
    whole = p.full_tensor()
    # Positions of this rank's elements: its values are looked up in the full parameter.
    flat = {float(v): i for i, v in enumerate(whole.detach().flatten())}
    local = p.detach().to_local()
    index = torch.tensor([flat[float(v)] for v in local.flatten()], dtype=torch.long)
    assert len(flat) == positions.numel(), "the parameter's values must be distinct"
    piece = x.flatten()[index].view(local.shape)
    return DTensor.from_local(
        piece, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
    )
