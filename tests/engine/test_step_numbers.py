"""What a step under the capture of a CUDA graph refuses, and rates of one dimension."""

import copy
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim import Optimizer

from torch_specgd import Muon, SpecGD
from torch_specgd.triton_kernels import momentum_step, orthogonalize, weight_step
from torch_specgd.triton_kernels.kernels import configuration

Captured = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Captured:
    """A block in which all that asks is told that a CUDA graph is being captured."""
    names = ("muon", "optimizer", "triton_kernels.iterate.run")
    # By name: the package has a function `muon`.
    modules = [importlib.import_module(f"torch_specgd.{name}") for name in names]

    @contextmanager
    def block():
        with monkeypatch.context() as patched:
            for module in modules:
                patched.setattr(module, "capturing", lambda device: True)
            yield

    return block


def refused(optimizer: Optimizer, captured: Captured, message: str) -> None:
    """A captured step must say why it cannot be, and leave weights and state as they were."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p in params:
        p.grad = torch.randn_like(p)
    before = copy.deepcopy((params, optimizer.state_dict()))
    with captured(), pytest.raises(RuntimeError, match=message):
        optimizer.step()
    saved = optimizer.state_dict()
    assert all(torch.equal(p, q) for p, q in zip(params, before[0], strict=True))
    assert saved["param_groups"] == before[1]["param_groups"]
    for i, state in saved["state"].items():
        for key, x in state.items():
            assert torch.equal(x, before[1]["state"][i][key])


@pytest.mark.parametrize("kept", [None, "bfloat16", "int8", "int4"])
def test_what_is_made_once_is_not_made_in_a_graph(kept: str | None, captured: Captured) -> None:
    """State that the graph itself makes would be zero again in each replay."""
    w = nn.Parameter(torch.randn(4, 6))
    optimizer = Muon([w], lr=0.1, state_dtype=kept)
    refused(optimizer, captured, "state must be there before a CUDA graph is captured, got none")
    optimizer.step()
    if kept is not None:
        other = Muon([w], lr=0.1)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        refused(other, captured, f"the count of state_dtype='{kept}' must be there before a CUDA")
    before = w.detach().clone()
    with captured():
        optimizer.step()
    assert not torch.equal(w, before)
    specgd = SpecGD([w], momentum=0.9)
    refused(specgd, captured, "state must be there before a CUDA graph is captured, got none")


def test_adamw_counts_its_steps_on_the_gpu(captured: Captured) -> None:
    """Replays would correct the means as in the step that was captured, and say nothing."""
    optimizer = Muon([nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(5))], lr=0.1)
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.randn_like(p)
    optimizer.step()
    refused(optimizer, captured, "capturable must be True while a CUDA graph is captured, got Fal")
    counts = [state["step"] for state in optimizer.state.values() if "step" in state]
    assert counts == [1]  # of the step that was taken, not of the refused one


def test_decompositions_are_refused(captured: Captured) -> None:
    """They wait for the host: CUDA ends such a capture with an error that names nothing."""
    x = torch.randn(4, 6)
    kinds: Any = {"svd": {}, "smoothed": {"method": "smoothed"}}
    for name, options in kinds.items():
        message = f"method must be one of products while a CUDA graph is captured, got '{name}'"
        refused(SpecGD([nn.Parameter(x.clone())], **options), captured, message)
        with captured(), pytest.raises(RuntimeError, match=message):
            orthogonalize(x, method=name)
    with captured():
        assert orthogonalize(x, method="precise").isfinite().all()


# Dynamo warns that it leaves out the profiler's label around step().
@pytest.mark.filterwarnings("ignore:.*Profiler.*:UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        Muon,
        partial(Muon, state_dtype="bfloat16", capturable=True),
        partial(Muon, state_dtype="int4", second_moment="neuron"),
        partial(SpecGD, momentum=0.9, method="precise"),
    ],
)
def test_a_compiled_step_on_a_gpu_is_one_graph(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a capture is under way, for one, cannot be traced: a step would be many graphs."""
    monkeypatch.setattr(configuration, "_of_device", lambda index: "sm_90")
    # Bound methods ask a build without CUDA for the current device; operators do not.
    monkeypatch.setattr(FakeTensor, "copy_", lambda self, x: torch.ops.aten.copy_(self, x))
    monkeypatch.setattr(
        FakeTensor,
        "contiguous",
        lambda self: torch.ops.aten.clone(self, memory_format=torch.contiguous_format),
    )
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    with FakeTensorMode(allow_non_fake_inputs=True):
        shapes = ((64, 48), (48, 64), (3, 16, 32), (7,))
        params = [nn.Parameter(torch.empty(s, device="cuda")) for s in shapes]
        for p in params:
            p.grad = torch.empty_like(p)
        optimizer = make(params)
        step = torch.compile(optimizer.step, backend=counter, fullgraph=True)
        for _ in range(3):
            step()
    assert counter.frame_count == 2  # the first makes the state


def test_numbers_of_one_dimension() -> None:
    """A rate of shape (1,) on the CPU ended the step of weights on another device."""
    rate = torch.tensor([0.25])
    for device in ("cpu", "meta"):
        w, o, g = (torch.ones(2, 2, device=device) for _ in range(3))
        momentum_step([g], [w], [o], rate)
        weight_step([w], [o], [2.0], rate, 0.5)
        assert w.shape == (2, 2)
        if device == "cpu":
            assert w[0, 0].item() == 1 - 0.25 * 0.5 - 0.25 * 2.0
