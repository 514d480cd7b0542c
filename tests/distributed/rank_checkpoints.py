"""Checks in the spawned processes: state, its dtypes, and distributed checkpoints."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from rank_models import muon_of, my_share, sharded_net, train, trained
from rank_runs import full, largest_difference, placed, run, take_steps, weights_and_gradients
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from torch_specgd import Muon, SpecGD


def check_state(mesh: DeviceMesh, folder: Path) -> Any:
    """Keys on this rank, and whether each tensor lies as its parameter does, or is whole."""
    weights, gradients = weights_and_gradients(1)
    make = lambda p: Muon(p, second_moment="neuron", precondition="shampoo")  # noqa: E731
    params, optimizer = run(make, placed(mesh, Shard(0)), weights, gradients)
    keys = [sorted(optimizer.state[p]) for p in params]
    like_parameter = all(
        isinstance(x, DTensor)
        and x.placements == ((Replicate(),) if "precondition" in key else p.placements)
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
    take_steps(resumed, second.step, place, gradients[2:])
    momenta = [s["momentum_buffer"] for s in second.state.values() if "momentum_buffer" in s]
    return {
        "difference": largest_difference(resumed, straight),
        "shared": any(x.to_local().data_ptr() in own for x in theirs if x.to_local().numel()),
        "dtypes": sorted({str(x.dtype) for x in momenta}),
    }


def _dtensors(state: dict[str, Any]) -> list[DTensor]:
    return [x for x in state.values() if isinstance(x, DTensor)]


def check_fresh_state_dict(mesh: DeviceMesh, folder: Path) -> Any:
    """get_state_dict of a fresh optimizer steps with zero gradients and rate zero."""
    model = sharded_net(mesh)
    before = [p.detach().to_local().clone() for p in model.parameters()]
    rules = {"precondition": "eigenbasis", "second_moment": "element"}
    for options in ({}, {"neuron_beta": 0.9, "cautious_weight_decay": True}, rules):
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
        if "momentum_buffer" in optimizer.state[p]
    ]
    return {
        "equal": all(torch.equal(a.to_local(), b.to_local()) for a, b in pairs),
        "float32": all(b.dtype == torch.float32 for _, b in pairs),
        "needed": any(not torch.equal(full(b), full(b).bfloat16().float()) for _, b in pairs),
    }


class Both:
    """Muon for one part of a model and SpecGD for the other, stepped together."""

    def __init__(self, model: nn.Module) -> None:
        rest = [*model.norm.parameters(), *model.head.parameters()]
        self.parts = [Muon(model.body.parameters(), lr=0.02), SpecGD(rest, momentum=0.9)]

    def zero_grad(self) -> None:
        for optimizer in self.parts:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self.parts:
            optimizer.step()


def check_two_optimizers(mesh: DeviceMesh, folder: Path) -> Any:
    """A list of optimizers goes through one distributed checkpoint."""
    result = {}
    for flat in (False, True):
        model, other = sharded_net(mesh), sharded_net(mesh)
        both, resumed = Both(model), Both(other)
        train(model, both, range(2), my_share())
        save(model, both.parts, folder / f"list-flat-{flat}", flat)
        train(model, both, range(2, 4), my_share())
        load(other, resumed.parts, folder / f"list-flat-{flat}", flat)
        train(other, resumed, range(2, 4), my_share())
        result[flat] = largest_difference(other.parameters(), model.parameters())
    return result
