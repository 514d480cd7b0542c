"""Checks in the spawned processes: models that train under FSDP2, HSDP, DDP and the compiler."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rank_models import batch, muon_of, my_share, net, sharded_net, train, trained
from rank_runs import (
    OPTIMIZERS,
    everywhere_equal,
    full,
    largest_difference,
    matrices_seen,
    placed,
    run,
    weights_and_gradients,
)
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

from torch_specgd import Muon, QKClip, SpecGD


def check_unused_parameter(mesh: DeviceMesh, folder: Path) -> Any:
    """A parameter without a gradient stays, and the others' exchanges still match."""
    weights, gradients = weights_and_gradients(1)
    others = gradients[0][1:]
    params, _ = run(OPTIMIZERS["muon"], placed(mesh, Shard(0)), weights, [[None, *others]])
    plain, _ = run(OPTIMIZERS["muon"], lambda x: x, weights[1:], [others])
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


def check_gradient_missing_on_one_rank(mesh: DeviceMesh, folder: Path) -> Any:
    """One small exchange instead of ranks that wait for each other's matrices for ever."""
    outcomes: dict[str, Any] = {}
    for kind in (Muon, partial(SpecGD, momentum=0.9)):
        for way in (True, "zeros"):
            params = [nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(3, 4))]
            optimizer = kind(params, share_work=way, weight_decay=0.0)
            for p in params:
                p.grad = torch.ones_like(p)
            if dist.get_rank() == 1:
                params[0].grad = None
            name = f"{type(optimizer).__name__} {way}"
            try:
                optimizer.step()
            except RuntimeError as error:
                outcomes[name] = str(error)
            else:
                moved = [bool((p != 1).any()) for p in params]
                outcomes[name] = (moved, everywhere_equal(params))
    return outcomes


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
    make, here = OPTIMIZERS["muon"], lambda x: x
    exact, _ = run(make, here, [w.double() for w in weights], gradients)
    plain, _ = run(make, here, weights, gradients)
    alone, _ = run(make, here, weights, gradients, backend="eager")
    spread, _ = run(make, placed(mesh, Shard(0)), weights, gradients, backend="eager")
    return {
        "to one process": largest_difference(spread, alone),
        "error": largest_difference(spread, exact),
        "error of the plain step": largest_difference(plain, exact),
    }


def check_hsdp_training(mesh: DeviceMesh, folder: Path) -> Any:
    plain, _ = trained(net(), 4)
    model, _ = trained(sharded_net(mesh), 4, my_share())
    return largest_difference(model.parameters(), plain.parameters())


def check_mixed_precision(mesh: DeviceMesh, folder: Path) -> Any:
    """bfloat16 forward and backward over float32 shards, with clipping, as FSDP2 scripts do."""
    model, policy = net(), MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for module in (model.body, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    optimizer = muon_of(model)
    x, y = batch(0)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    kept = [*model.parameters(), *(v for s in optimizer.state.values() for v in s.values())]
    return losses[0], losses[-1], {str(x.dtype) for x in kept}


def check_cpu_offload(mesh: DeviceMesh, folder: Path) -> Any:
    """Weights, gradients and state stay in the processor's memory between the passes."""
    plain, model = net(), net()
    for module in (model.body, model):
        fully_shard(module, mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))
    optimizer = muon_of(model)
    train(plain, muon_of(plain), range(5))
    train(model, optimizer, range(5))
    kept = [*model.parameters(), *(v for s in optimizer.state.values() for v in s.values())]
    return {
        "difference": largest_difference(model.parameters(), plain.parameters()),
        "devices": {str(x.device) for x in kept},
    }


def check_statistics(mesh: DeviceMesh, folder: Path) -> Any:
    """The numbers of a step are those of the whole weights, on every rank."""
    found = []
    for model in (net(), sharded_net(mesh)):
        optimizer = muon_of(model)
        found.append(optimizer.statistics(every=2))
        train(model, optimizer, range(3))
        assert found[-1].pop("orthogonalize_ms") > 0
    return [dict(numbers) for numbers in found]


class Attention(nn.Module):
    """What QK-clip knows of a model of transformers: names of layers, and one function."""

    is_causal = True

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.q_proj, self.k_proj = nn.Linear(6, 12), nn.Linear(6, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        attend = ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", None)
        q, k = (f(x).unflatten(-1, (4, 3)).transpose(-2, -3) for f in (self.q_proj, self.k_proj))
        return attend(self, q, k, k, None)[0]


def check_qk_clip(mesh: DeviceMesh, folder: Path) -> Any:
    """The largest logit is that of all ranks' shares, and shards are scaled as the whole."""
    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(6))
    ends, gammas = [], []
    for share, spread in ((slice(None), False), (my_share(), True)):
        model = nn.Sequential(Attention())
        if spread:
            fully_shard(model, mesh=mesh)
        with QKClip(model, tau=0.5) as clip:
            model(x[share]).square().mean().backward()
            gammas.append(clip.clip_()["0"])
        ends.append(list(model.parameters()))
    return {
        "weights": largest_difference(ends[1], ends[0]),
        "gamma": float((gammas[1] - gammas[0]).abs().max()),
        "clipped": int((gammas[0] < 1).sum()),
    }
