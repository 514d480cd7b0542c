"""torch.compile(optimizer.step): one graph, no breaks, the same numbers."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim import Optimizer

from torch_specgd import Muon, Shampoo, SpecGD

JORDAN = (3.4445, -4.7750, 2.0315)
ROWS: dict[str, Callable[[Any], Optimizer]] = {
    "muon": lambda p: Muon(p, lr=torch.tensor(0.02)),
    "muon-torch-arithmetic": lambda p: Muon(p, lr=0.02, ns_coefficients=JORDAN),
    "muon-options": lambda p: Muon(p, lr=0.02, neuron_beta=0.9, cautious_weight_decay=True),
    "muon-bfloat16-state": lambda p: Muon(p, lr=0.02, state_dtype="bfloat16"),
    "muon-int4-state": lambda p: Muon(p, lr=0.02, state_dtype="int4"),
    "specgd": lambda p: SpecGD(p, lr=0.02, momentum=0.9),
}
# Dynamo warns that it leaves out the profiler's label around step(); values do not depend on it.
pytestmark = pytest.mark.filterwarnings("ignore:.*Profiler.*:UserWarning")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(12, 4))


def set_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def compare(make: Callable[[Any], Optimizer], backend: str) -> int:
    """Four plain and four compiled steps must agree; returns the number of graph breaks."""
    plain, compiled = network(), network()
    a, b = make(plain.parameters()), make(compiled.parameters())
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    step = torch.compile(b.step, backend=backend)
    for seed in range(4):
        set_gradients(plain, seed)
        set_gradients(compiled, seed)
        a.step()
        step()
    for p, q in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-5)
    assert counters["frames"]["ok"] > 0
    return sum(copy.copy(counters["graph_break"]).values())


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("make", ROWS.values(), ids=ROWS.keys())
def test_compiles_without_graph_breaks(make: Callable[[Any], Optimizer], backend: str) -> None:
    """A broken graph would run step() in pieces and recompile at every change."""
    assert compare(make, backend) == 0


@pytest.mark.parametrize("precondition", ["eigenbasis", Shampoo(every=2)])
def test_a_preconditioned_step_stays_uncompiled(precondition: str) -> None:
    """Its roots are refreshed at some steps alone: traced, each step would compile anew."""
    make = lambda p: Muon(p, lr=0.02, precondition=precondition)  # noqa: E731
    assert compare(make, "eager") > 0
    whole = torch.compile(make(network().parameters()).step, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        whole()


# Torch's own: importing inductor decorates script methods.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiles_with_inductor() -> None:
    """The default backend too: C++ is generated and gives the same numbers."""
    assert compare(ROWS["muon"], "inductor") == 0


@pytest.mark.parametrize(("lr", "graphs"), [(torch.tensor(0.02), 1), (0.02, 2)])
def test_new_learning_rates_do_not_compile_anew(lr: Any, graphs: int) -> None:
    """A schedule would recompile the step forever; a float becomes a variable after its change."""
    model = network()
    optimizer = Muon(model.parameters(), lr=lr)
    set_gradients(model, 0)
    optimizer.step()  # makes the state, which would be a graph of its own
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    step = torch.compile(optimizer.step, backend=counter)
    for seed in range(6):
        set_gradients(model, seed)
        step()
        (group,) = optimizer.param_groups
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].mul_(0.9)
        else:
            group["lr"] *= 0.9
    assert counter.frame_count == graphs
