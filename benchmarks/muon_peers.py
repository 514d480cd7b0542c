"""The optimizers that are timed, each set up as its own documentation says.

A peer takes (model, parameters) and returns the leaves that get gradients and a step. Where a peer
does not take a convolution or a stack of experts, its leaves are 2-D views of the parameter.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import time
import types
from collections.abc import Callable
from functools import partial

import torch
from muon_models import Model, as_2d
from torch import Tensor
from torch.optim import AdamW

from torch_specgd import Muon

LR, DECAY, MOMENTUM = 0.02, 0.1, 0.95
Step = Callable[[], object]
Peer = Callable[[Model, list[Tensor]], tuple[list[Tensor], Step]]


class Absent(Exception):
    """The peer cannot be run here; the message says why."""


def need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise Absent("not installed")


def refuse_slow_float16(model: Model) -> None:
    """Raises Absent where the model's float16 products would take minutes a step."""
    a = torch.ones(256, 256, dtype=torch.float16)
    rate = 0.0
    for _ in range(3):  # the first product loads code
        start = time.perf_counter()
        a @ a
        rate = max(rate, 2 * 256**3 / (time.perf_counter() - start))
    seconds = sum(20 * torch.Size(s).numel() * min(as_2d(s)) for s in model.matrices) / rate
    if seconds > 10:
        raise Absent(f"its float16 products run at {rate / 1e9:.2g} GFLOP/s here: {seconds:.0f} s")


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def views(params: list[Tensor], *, stacks: bool, convolutions: bool) -> list[Tensor]:
    """Leaves of matrices: stacks cut into experts, convolutions flattened, where asked for."""
    leaves: list[Tensor] = []
    for p in params:
        if p.ndim == 3 and stacks:
            leaves += [leaf(expert) for expert in p]
        else:
            leaves.append(leaf(p.view(p.shape[0], -1) if p.ndim == 4 and convolutions else p))
    return leaves


def split(model: Model, params: list[Tensor], **cut: bool) -> tuple[list[Tensor], list[Tensor]]:
    count = len(model.matrices)
    return views(params[:count], **cut), [leaf(p) for p in params[count:]]


def both(first: torch.optim.Optimizer, others: list[Tensor]) -> Step:
    """A step of `first` and of torch's AdamW, foreach, for the others."""
    if not others:
        return first.step
    second = AdamW(others, lr=LR, weight_decay=DECAY, foreach=True)
    return lambda: (first.step(), second.step())


def ours(
    model: Model, params: list[Tensor], coefficients: object = "auto"
) -> tuple[list[Tensor], Step]:
    """One optimizer for everything, parameters as they are."""
    matrices, others = split(model, params, stacks=False, convolutions=False)
    groups = [{"params": matrices, "use_muon": True}]
    if others:
        groups.append({"params": others, "use_muon": False})
    optimizer = Muon(groups, lr=LR, weight_decay=DECAY, ns_coefficients=coefficients)
    return matrices + others, optimizer.step


def torch_muon(model: Model, params: list[Tensor]) -> tuple[list[Tensor], Step]:
    """torch.optim.Muon on 2-D views."""
    matrices, others = split(model, params, stacks=True, convolutions=True)
    step = both(torch.optim.Muon(matrices, lr=LR, weight_decay=DECAY, momentum=MOMENTUM), others)
    return matrices + others, step


def gram_newton_schulz(
    model: Model, params: list[Tensor], dtype: str = "float16"
) -> tuple[list[Tensor], Step]:
    """gram-newton-schulz's Muon on its plain-torch path, in its own float16 or another dtype."""
    need("gram_newton_schulz")
    if dtype == "float16":
        refuse_slow_float16(model)
    from gram_newton_schulz.muon.muon import Muon as Peer

    matrices, others = split(model, params, stacks=False, convolutions=True)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its choice of restarts
        optimizer = Peer(matrices, lr=LR, weight_decay=DECAY, ns_use_kernels=False)
    if dtype != "float16":
        optimizer.newton_schulz = in_dtype(dtype)(
            ns_use_kernels=False,
            ns_coefficients=optimizer.ns_coefficients,
            gram_newton_schulz_reset_iterations=optimizer.gram_newton_schulz_reset_iterations,
        )
    return matrices + others, both(optimizer, others)


def in_dtype(dtype: str) -> type:
    """The peer's own class, its source unchanged but for the dtype of its arithmetic."""
    spec = importlib.util.find_spec("gram_newton_schulz.gram_newton_schulz")
    assert spec is not None
    assert spec.origin is not None
    with open(spec.origin) as file:
        source = file.read().replace("torch.float16", f"torch.{dtype}")
    module = types.ModuleType(f"gram_newton_schulz.{dtype}")
    module.__package__ = "gram_newton_schulz"
    sys.modules[module.__name__] = module
    exec(compile(source, spec.origin, "exec"), module.__dict__)
    return module.GramNewtonSchulz


def pytorch_optimizer(
    model: Model, params: list[Tensor], method: str = "newton_schulz"
) -> tuple[list[Tensor], Step]:
    """pytorch_optimizer's Muon, which has AdamW inside and flattens convolutions itself."""
    need("pytorch_optimizer")
    if method == "gram_newton_schulz":
        refuse_slow_float16(model)
    from pytorch_optimizer import Muon as Peer

    matrices, others = split(model, params, stacks=True, convolutions=False)
    groups = [{"params": matrices, "use_muon": True, "lr": LR, "weight_decay": DECAY}]
    if others:
        groups.append({"params": others, "use_muon": False, "lr": LR, "weight_decay": DECAY})
    return matrices + others, Peer(groups, ns_method=method).step


def heavyball(model: Model, params: list[Tensor]) -> tuple[list[Tensor], Step]:
    """HeavyBall's Muon, compiled as is its default, on 2-D views."""
    need("heavyball")
    from heavyball import Muon as Peer

    matrices, others = split(model, params, stacks=True, convolutions=True)
    optimizer = Peer(matrices, lr=LR, weight_decay=DECAY, betas=(MOMENTUM, 0.99))
    return matrices + others, both(optimizer, others)


PEERS: dict[str, Peer] = {
    "torch.optim.Muon": torch_muon,
    "torch-specgd": ours,
    "gram-newton-schulz": gram_newton_schulz,
    "gram-newton-schulz, bfloat16": partial(gram_newton_schulz, dtype="bfloat16"),
    "gram-newton-schulz, float32": partial(gram_newton_schulz, dtype="float32"),
    "pytorch_optimizer": pytorch_optimizer,
    "pytorch_optimizer, Gram": partial(pytorch_optimizer, method="gram_newton_schulz"),
    "HeavyBall": heavyball,
}
