"""What every rank does in the spawned processes; `test_ranks.py` reads the numbers it returns."""

import copy
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)

from ranks import leave
from torch_specgd import Muon, SpecGD, muon_step
from torch_specgd.distributed import exchange
from torch_specgd.distributed.layout import local_like
from torch_specgd.stacks import Stack

# Uneven, fewer rows than ranks (empty pieces), single rows and columns, a convolution, an expert
# stack, a vector, and two of one shape that must share a batch.
SHAPES = [(8, 6), (3, 7), (1, 9), (9, 1), (12, 5), (8, 6), (5, 3, 2, 2), (6, 4, 5), (7,), (65, 33)]

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "muon": lambda p: Muon(p, lr=0.02),
    "muon-plain-rms": lambda p: Muon(
        p, lr=0.02, nesterov=False, adjust_lr_fn="match_rms_adamw", max_batch_bytes=400
    ),
    "muon-normuon-cautious": lambda p: Muon(
        p, lr=0.02, neuron_beta=0.9, cautious_weight_decay=True
    ),
    "muon-maximize-one-by-one": lambda p: Muon(p, lr=0.02, maximize=True, foreach=False),
    "muon-split-lr-tensor": lambda p: Muon(
        [{"params": p[:1], "split": (0, (3, 3, 2))}, {"params": p[1:]}], lr=torch.tensor(0.02)
    ),
    "specgd": lambda p: SpecGD(p, lr=0.02),
    "specgd-momentum-l2": lambda p: SpecGD(
        p, lr=0.02, momentum=0.9, nesterov=True, l2=0.1, weight_decay=0.1, method="smoothed"
    ),
}


def weights_and_gradients(steps: int = 3) -> tuple[list[Tensor], list[list[Tensor]]]:
    generator = torch.Generator().manual_seed(5)
    draw = lambda: [torch.randn(s, generator=generator) for s in SHAPES]  # noqa: E731
    return draw(), [draw() for _ in range(steps)]


def run(
    make: Callable[[Any], torch.optim.Optimizer],
    place: Callable[[Tensor], Tensor],
    weights: list[Tensor],
    gradients: list[list[Tensor]],
) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    params = [nn.Parameter(place(w.clone())) for w in weights]
    optimizer = make(params)
    for step in gradients:
        for p, g in zip(params, step, strict=True):
            p.grad = place(g.to(p.dtype))
        optimizer.step()
    return params, optimizer


def full(x: Tensor) -> Tensor:
    x = x.detach()
    return x.full_tensor() if isinstance(x, DTensor) else x


def largest_difference(xs: Any, ys: Any) -> float:
    return max(float((full(x) - full(y)).abs().max()) for x, y in zip(xs, ys, strict=True))


def placed(mesh: DeviceMesh, *placements: Placement) -> Callable[[Tensor], Tensor]:
    """Distributes a tensor; dimensions that it does not have stay replicated."""

    def place(x: Tensor) -> Tensor:
        fitting = [
            p if not isinstance(p, Shard) or p.dim < x.ndim else Replicate() for p in placements
        ]
        return distribute_tensor(x, mesh, fitting)

    return place


def compare_all(place: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Largest difference to the unsharded run, for every optimizer."""
    weights, gradients = weights_and_gradients()
    result = {}
    for name, make in OPTIMIZERS.items():
        plain, _ = run(make, lambda x: x, weights, gradients)
        result[name] = largest_difference(run(make, place, weights, gradients)[0], plain)
    return result


@contextmanager
def counted(module: Any, name: str, calls: list[Any]) -> Iterator[None]:
    """Records the first argument of every call of a function."""
    original = getattr(module, name)

    def recording(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[0])
        return original(*args, **kwargs)

    setattr(module, name, recording)
    try:
        yield
    finally:
        setattr(module, name, original)


def matrices_seen(place: Callable[[Tensor], Tensor], **options: Any) -> list[int]:
    """Number of matrices that each rank orthogonalizes in one step; shapes in whole."""
    weights, gradients = weights_and_gradients(1)
    keep = [i for i, s in enumerate(SHAPES) if len(s) in (2, 4)]
    calls: list[list[Tensor]] = []
    stacks: list[list[Stack]] = []
    with (
        counted(muon_step, "orthogonalize_all", calls),
        counted(muon_step, "orthogonalize_stacks", stacks),
    ):
        run(
            lambda p: Muon(p, **options),
            place,
            [weights[i] for i in keep],
            [[g[i] for i in keep] for g in gradients],
        )
    calls += [list(stack.places) for call in stacks for stack in call]
    shapes = [tuple(x.shape) for call in calls for x in call]
    assert set(shapes) <= set(SHAPES), "an orthogonalized tensor is no whole matrix"
    counts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(counts, len(shapes))
    return counts


def everywhere_equal(xs: Any) -> bool:
    """Whether all ranks hold the same bits."""
    mine = [full(x) for x in xs]
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    return all(torch.equal(a, b) for other in every for a, b in zip(every[0], other, strict=True))


# ------------------------------------------------------------------ models that train


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


# ------------------------------------------------------------------ checks on two ranks


def check_shard_rows(mesh: DeviceMesh, folder: Path) -> Any:
    return compare_all(placed(mesh, Shard(0)))


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


def check_state(mesh: DeviceMesh, folder: Path) -> Any:
    """Keys on this rank, and whether each tensor lies as its parameter does."""
    weights, gradients = weights_and_gradients(1)
    make = lambda p: Muon(p, neuron_beta=0.9)  # noqa: E731
    params, optimizer = run(make, placed(mesh, Shard(0)), weights, gradients)
    keys = [sorted(optimizer.state[p]) for p in params]
    like_parameter = all(
        isinstance(x, DTensor) and x.placements == p.placements
        for p in params
        for key, x in optimizer.state[p].items()
        if key != "step"
    )
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, keys)
    return all(k == keys for k in every), like_parameter


def check_reload(mesh: DeviceMesh, folder: Path) -> Any:
    """state_dict() through load_state_dict() keeps DTensors, their dtype and the run."""
    weights, gradients = weights_and_gradients(4)
    place = placed(mesh, Shard(0))
    make = lambda p: Muon(p, lr=0.02, state_dtype="float32")  # noqa: E731
    straight, _ = run(make, place, [w.bfloat16() for w in weights], gradients)
    params, optimizer = run(make, place, [w.bfloat16() for w in weights], gradients[:2])
    resumed = [nn.Parameter(p.detach().clone()) for p in params]
    second = make(resumed)
    second.load_state_dict(optimizer.state_dict())
    own = {x.to_local().data_ptr() for s in optimizer.state.values() for x in _dtensors(s)}
    theirs = [x for s in second.state.values() for x in _dtensors(s)]
    for step in gradients[2:]:
        for p, g in zip(resumed, step, strict=True):
            p.grad = place(g.to(p.dtype))
        second.step()
    momenta = [s["momentum_buffer"] for s in second.state.values() if "momentum_buffer" in s]
    return {
        "difference": largest_difference(resumed, straight),
        "shared": any(x.to_local().data_ptr() in own for x in theirs if x.to_local().numel()),
        "dtypes": sorted({str(x.dtype) for x in momenta}),
    }


def _dtensors(state: dict[str, Any]) -> list[DTensor]:
    return [x for x in state.values() if isinstance(x, DTensor)]


def check_unused_parameter(mesh: DeviceMesh, folder: Path) -> Any:
    """A parameter without a gradient stays, and the others' exchanges still match."""
    weights, gradients = weights_and_gradients(1)
    params = [nn.Parameter(distribute_tensor(w, mesh, [Shard(0)])) for w in weights]
    for p, g in zip(params[1:], gradients[0][1:], strict=True):
        p.grad = distribute_tensor(g, mesh, [Shard(0)])
    optimizer = Muon(params, lr=0.02)
    optimizer.step()
    plain, _ = run(OPTIMIZERS["muon"], lambda x: x, weights[1:], [gradients[0][1:]])
    untouched = torch.equal(full(params[0]), weights[0])
    return untouched, largest_difference(params[1:], plain)


def check_fsdp_training(mesh: DeviceMesh, folder: Path) -> Any:
    plain, _ = trained(net(), 5)
    model, _ = trained(sharded_net(mesh), 5, my_share())
    # The default schedule, on gradients that are the same to the last bit: the same batch
    # everywhere.
    same, other = net(), sharded_net(mesh)
    for m in (same, other):
        train(m, muon_of(m), range(5))
    return {
        "shares": largest_difference(model.parameters(), plain.parameters()),
        "same batch, default schedule": largest_difference(other.parameters(), same.parameters()),
    }


def check_ddp_share_work(mesh: DeviceMesh, folder: Path) -> Any:
    plain, _ = trained(net(), 5)
    model = nn.parallel.DistributedDataParallel(net())
    optimizer = muon_of(model.module, share_work=True, ns_coefficients=[(1.5, -0.5)] * 3)
    train(model, optimizer, range(5), my_share())
    return {
        "difference": largest_difference(model.parameters(), plain.parameters()),
        "same bits": everywhere_equal(model.parameters()),
        "matrices": matrices_seen(lambda x: x, share_work=True),
        "without": matrices_seen(lambda x: x),
        "whole optimizers": compare_shared(),
    }


def compare_shared() -> dict[str, float]:
    weights, gradients = weights_and_gradients()
    result = {}
    for name, kind in {"muon": Muon, "specgd": partial(SpecGD, momentum=0.9)}.items():
        plain, _ = run(kind, lambda x: x, weights, gradients)
        shared, _ = run(partial(kind, share_work=True), lambda x: x, weights, gradients)
        result[name] = largest_difference(shared, plain)
    return result


def check_compiled_step(mesh: DeviceMesh, folder: Path) -> Any:
    """torch.compile of the step runs, cut at the exchange."""
    weights, gradients = weights_and_gradients(2)
    keep = [0, 2, 8]
    weights = [weights[i] for i in keep]
    gradients = [[g[i] for i in keep] for g in gradients]
    plain, _ = run(OPTIMIZERS["muon"], lambda x: x, weights, gradients)
    params = [nn.Parameter(distribute_tensor(w, mesh, [Shard(0)])) for w in weights]
    optimizer = OPTIMIZERS["muon"](params)
    step = torch.compile(optimizer.step, backend="eager")
    for grads in gradients:
        for p, g in zip(params, grads, strict=True):
            p.grad = distribute_tensor(g, mesh, [Shard(0)])
        step()
    return largest_difference(params, plain)


def check_fresh_state_dict(mesh: DeviceMesh, folder: Path) -> Any:
    """get_state_dict of a fresh optimizer steps with zero gradients and rate zero."""
    model = sharded_net(mesh)
    before = [p.detach().to_local().clone() for p in model.parameters()]
    for options in ({}, {"neuron_beta": 0.9, "cautious_weight_decay": True}):
        optimizer = muon_of(model, **options)
        get_state_dict(model, optimizer)
        assert optimizer.param_groups[0]["lr"] == 0.02
    get_state_dict(model, SpecGD(model.parameters(), momentum=0.9))
    after = [p.detach().to_local() for p in model.parameters()]
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def save(model: nn.Module, optimizer: Any, path: Path, flat: bool) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    weights, state = get_state_dict(model, optimizer, options=options)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=str(path))


def load(model: nn.Module, optimizer: Any, path: Path, flat: bool, **kwargs: Any) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    weights, state = get_state_dict(model, optimizer, options=options)
    content = {"model": weights, "optimizer": state}
    dcp.load(content, checkpoint_id=str(path), **kwargs)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=content["model"],
        optim_state_dict=content["optimizer"],
        options=options,
    )


def check_checkpoint(mesh: DeviceMesh, folder: Path) -> Any:
    """Saved after 3 steps, gone on with after loading; the parent process loads it too."""
    result = {}
    for flat in (False, True):
        model, optimizer = trained(sharded_net(mesh), 3, my_share())
        path = folder / f"two-ranks-flat-{flat}"
        save(model, optimizer, path, flat)
        train(model, optimizer, range(3, 6), my_share())
        other = sharded_net(mesh)
        resumed = muon_of(other)
        load(other, resumed, path, flat)
        train(other, resumed, range(3, 6), my_share())
        result[flat] = largest_difference(other.parameters(), model.parameters())
        straight = [full(p) for p in model.parameters()]
        torch.save(straight, folder / f"straight-{flat}-{dist.get_rank()}")
    return result


def check_bfloat16_checkpoint(mesh: DeviceMesh, folder: Path) -> Any:
    """float32 momentum of bfloat16 weights through a distributed checkpoint, bit for bit."""
    model = sharded_net(mesh, torch.bfloat16)
    optimizer = muon_of(model, state_dtype="float32")
    train(model, optimizer, range(2), my_share())
    save(model, optimizer, folder / "bfloat16", False)
    other = sharded_net(mesh, torch.bfloat16)
    resumed = muon_of(other, state_dtype="float32")
    load(other, resumed, folder / "bfloat16", False)
    pairs = [
        (optimizer.state[p]["momentum_buffer"], resumed.state[q]["momentum_buffer"])
        for p, q in zip(model.parameters(), other.parameters(), strict=True)
        if p.ndim == 2
    ]
    return {
        "equal": all(torch.equal(a.to_local(), b.to_local()) for a, b in pairs),
        "float32": all(b.dtype == torch.float32 for _, b in pairs),
        "needed": any(not torch.equal(full(b), full(b).bfloat16().float()) for _, b in pairs),
    }


# ------------------------------------------------------------------ checks on four ranks, 2 x 2


def check_hsdp(mesh: DeviceMesh, folder: Path) -> Any:
    return compare_all(placed(mesh, Replicate(), Shard(0)))


def check_hsdp_owners(mesh: DeviceMesh, folder: Path) -> Any:
    return matrices_seen(placed(mesh, Replicate(), Shard(0)))


def check_hsdp_training(mesh: DeviceMesh, folder: Path) -> Any:
    plain, _ = trained(net(), 4)
    model, _ = trained(sharded_net(mesh), 4, my_share())
    return largest_difference(model.parameters(), plain.parameters())


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


TWO = [
    check_shard_rows, check_shard_columns, check_replicated, check_mixed_kinds, check_bfloat16,
    check_each_matrix_once, check_experts_stay, check_partial_gradient, check_refusals,
    check_state, check_reload, check_unused_parameter, check_fsdp_training, check_ddp_share_work,
    check_compiled_step, check_fresh_state_dict, check_checkpoint, check_bfloat16_checkpoint,
]  # fmt: skip
FOUR = [
    check_hsdp, check_hsdp_owners, check_hsdp_training, check_rows_and_columns,
    check_columns_and_experts, check_rows_twice, check_replicated_inside,
    check_tensor_parallel_and_fsdp,
]  # fmt: skip


def work(rank: int, world: int, folder: str) -> None:
    """Runs every check and writes its result, or its traceback, to a file of this rank."""
    torch.set_num_threads(1)
    for category in (FutureWarning, DeprecationWarning):
        warnings.simplefilter("error", category)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store-{world}",
        rank=rank,
        world_size=world,
        timeout=timedelta(minutes=5),  # a busy machine needs one to import torch six times
    )
    if world == 2:
        mesh, checks = init_device_mesh("cpu", (2,)), TWO
    else:
        mesh, checks = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b")), FOUR
    results: dict[str, Any] = {}
    for check in checks:
        name = check.__name__.removeprefix("check_")
        try:
            results[name] = copy.deepcopy(check(mesh, Path(folder)))
        except Exception:
            results[name] = traceback.format_exc()
        torch.save(results, f"{folder}/results-{world}-{rank}")
    leave()
