"""The problem that PyTorch's optimizer checks solve, and what is compared afterwards."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import (
    Optimizer,
)
from torch.testing import assert_close
from torch.testing._internal.common_optimizers import (
    OptimizerInfo,
)

from optimizers.optimizer_info import (
    CASES,
    ROWS,
    case_name,
    kwargs_of,
)

every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
every_case = pytest.mark.parametrize("case", CASES, ids=case_name)
yes_no = (True, False)


class Problem:
    """The least-squares problem of PyTorch's tests: a matrix and a vector, so both parts run."""

    def __init__(self, *, contiguous: bool = True, devices: tuple[str, str] = ("cpu", "cpu")):
        if contiguous:
            weight, bias = torch.randn(10, 5), torch.randn(10)
        else:
            weight, bias = torch.randn(10, 5, 2)[..., 0], torch.randn(10, 2)[..., 0]
        self.weight = Parameter(weight.to(devices[0]))
        self.bias = Parameter(bias.to(devices[1]))
        self.input = torch.randn(5, device=devices[0])

    @property
    def params(self) -> list[Parameter]:
        return [self.weight, self.bias]

    @property
    def named(self) -> list[tuple[str, Parameter]]:
        return [("weight", self.weight), ("bias", self.bias)]

    def loss(self) -> Tensor:
        product = self.weight.mv(self.input).to(self.bias.device)
        return (product + self.bias).pow(2).sum()

    def backward(self) -> Tensor:
        self.weight.grad = self.bias.grad = None
        loss = self.loss()
        loss.backward()
        return loss

    def twin(self) -> "Problem":
        return copy.deepcopy(self)

    def run(self, optimizer: Optimizer, steps: int, schedulers: Any = ()) -> None:
        for _ in range(steps):
            loss = optimizer.step(self.backward)
            for scheduler in schedulers:
                scheduler.step(
                    *([loss.detach()] if isinstance(scheduler, ReduceLROnPlateau) else [])
                )


def make(case: tuple[OptimizerInfo, int], params: Any, **changes: Any) -> Optimizer:
    return case[0].optim_cls(params, **{**kwargs_of(case), **changes})


def assert_right_direction(problem: Problem, before: Tensor, optimizer: Optimizer) -> None:
    after = problem.loss()
    assert after > before if optimizer.defaults["maximize"] else after < before


def state_of(optimizer: Optimizer) -> dict[str, Any]:
    """The state dict without names, which the two sides may give differently."""
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group.pop("param_names", None)
    return state


def assert_same_state(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["param_groups"] == b["param_groups"]
    assert_close(a["state"], b["state"], rtol=0, atol=0)
