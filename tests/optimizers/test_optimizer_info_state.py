"""PyTorch's generic optimizer checks (see test_optimizer_info): state dicts."""

import copy
import inspect
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim.optimizer import (
    Optimizer,
)
from torch.testing import assert_close
from torch.testing._internal.common_optimizers import (
    OptimizerInfo,
)

from optimizers.optimizer_info_problem import (
    Problem,
    assert_same_state,
    every_case,
    every_row,
    make,
    state_of,
    yes_no,
)


@every_case
@pytest.mark.parametrize(("named_0", "named_1"), [(True, False), (False, True)])
def test_state_dict_deterministic(case: Any, named_0: bool, named_1: bool) -> None:
    """A loaded twin takes bit-identical steps and has the same state dict."""
    a = Problem()
    first = make(case, a.named if named_0 else a.params)
    a.run(first, 4)
    b = a.twin()
    second = make(case, b.named if named_1 else b.params)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(4):
        a.run(first, 1)
        b.run(second, 1)
        assert_close(b.params, a.params, rtol=0, atol=0)
    assert_same_state(state_of(first), state_of(second))
    second.param_groups.extend(second.param_groups)
    assert state_of(first)["param_groups"][-1] == state_of(second)["param_groups"][-1]


def conv_net() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Conv2d(4, 2, 1, stride=2), nn.BatchNorm2d(2)), torch.rand(1, 4, 16, 16)


def train(model: nn.Module, x: Tensor, optimizer: Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()


@every_case
def test_can_load_older_state_dict(case: Any) -> None:
    """A checkpoint that lacks all that torch.optim.Muon does not have loads, and steps on."""
    model, x = conv_net()
    optimizer = make(case, model.parameters())
    train(model, x, optimizer)
    old = copy.deepcopy(optimizer.state_dict())
    torchs = inspect.signature(torch.optim.Muon).parameters.keys() | {"params"}
    for group in old["param_groups"]:
        for key in group.keys() - torchs | set(case[0].not_og_supported_flags):
            group.pop(key, None)
    optimizer.load_state_dict(old)
    train(model, x, optimizer, 1)
    assert all(p.isfinite().all() for p in model.parameters())
    assert (
        optimizer.param_groups[0].keys()
        == make(case, conv_net()[0].parameters()).param_groups[0].keys()
    )


@every_row
@pytest.mark.parametrize("named_0", yes_no, ids=["named", "unnamed"])
@pytest.mark.parametrize("named_1", yes_no, ids=["to named", "to unnamed"])
def test_can_load_from_to_named_state_dict(
    row: OptimizerInfo, named_0: bool, named_1: bool
) -> None:
    """Names survive when either side has them; a checkpoint goes from each kind to each."""
    model, x = conv_net()
    optimizer = row.optim_cls(model.named_parameters() if named_0 else model.parameters())
    train(model, x, optimizer)
    second = row.optim_cls(model.named_parameters() if named_1 else model.parameters())
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, x, second, 1)
    if named_0 or named_1:
        names = [name for name, _ in model.named_parameters()]
        assert second.state_dict()["param_groups"][0]["param_names"] == names


@every_case
@pytest.mark.parametrize("named", yes_no, ids=["named", "unnamed"])
def test_save_load_equality_with_weights_only(case: Any, named: bool) -> None:
    """torch.save and both kinds of torch.load return the state dict that was saved."""
    problem = Problem()
    optimizer = make(case, problem.named if named else problem.params)
    problem.run(optimizer, 3)
    saved = optimizer.state_dict()
    for weights_only in yes_no:
        buffer = io.BytesIO()
        torch.save(saved, buffer)
        buffer.seek(0)
        assert_same_state(torch.load(buffer, weights_only=weights_only), saved)


@every_case
def test_load_nontensor_step(case: Any) -> None:
    """A step count stored as a number, as by other tools, continues as the tensor would."""
    a = Problem()
    first = make(case, a.params)
    a.run(first, 3)
    b = a.twin()
    second = make(case, b.params)
    state = copy.deepcopy(first.state_dict())
    for entry in state["state"].values():
        if "step" in entry:
            entry["step"] = float(entry["step"])
    second.load_state_dict(state)
    a.run(first, 2)
    b.run(second, 2)
    assert_close(b.params, a.params, rtol=0, atol=0)


@pytest.mark.gpu
@every_case
def test_state_dict_with_cuda_params(case: Any) -> None:
    """A checkpoint written on CPU continues on the GPU; the count of steps stays on the CPU."""
    a = Problem()
    first = make(case, a.params)
    a.run(first, 3)
    b = a.twin()
    b.weight, b.bias = Parameter(b.weight.detach().cuda()), Parameter(b.bias.detach().cuda())
    b.input = b.input.cuda()
    second = make(case, b.params)
    state = copy.deepcopy(first.state_dict())
    kept = copy.deepcopy(state)
    second.load_state_dict(state)
    assert_same_state(state, kept)
    for entry in second.state.values():
        for key, value in entry.items():
            assert value.is_cuda == (key != "step")
    a.run(first, 5)
    b.run(second, 5)
    # 1e-3: a triple of coefficients is iterated in bfloat16, and lr times its rounding is 1e-5;
    # five steps of it, and the two devices sum in different orders.
    for p, q in zip(a.params, b.params, strict=True):
        assert_close(q.cpu(), p, rtol=1e-3, atol=1e-3)
