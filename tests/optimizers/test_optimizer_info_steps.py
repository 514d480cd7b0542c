"""PyTorch's generic optimizer checks (see test_optimizer_info): what a step does."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.testing import assert_close
from torch.testing._internal.common_optimizers import (
    OptimizerInfo,
)

from optimizers.optimizer_info import (
    kwargs_of,
)
from optimizers.optimizer_info_problem import (
    Problem,
    assert_right_direction,
    assert_same_state,
    every_case,
    every_row,
    make,
)

# ---- the loss moves in the right direction ----


@every_case
@pytest.mark.parametrize(
    ("contiguous", "with_lrsched"),
    [(True, False), (False, True)],
    ids=["plain", "strided, lrsched"],
)
def test_forloop_goes_right_direction(case: Any, contiguous: bool, with_lrsched: bool) -> None:
    """Twenty steps lower the loss (raise it under maximize), with the table's schedulers too."""
    for constructors in case[0].scheduler_inputs if with_lrsched else [[]]:
        problem = Problem(contiguous=contiguous)
        optimizer = make(case, problem.params)
        schedulers = [constructor(optimizer) for constructor in constructors]
        before = problem.loss()
        problem.run(optimizer, 20, schedulers)
        assert_right_direction(problem, before, optimizer)


@pytest.mark.gpu
@every_case
def test_forloop_goes_right_direction_multigpu(case: Any) -> None:
    """Matrix and vector on two devices train in one optimizer."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    problem = Problem(devices=("cuda:0", "cuda:1"))
    optimizer = make(case, problem.params)
    before = problem.loss()
    problem.run(optimizer, 20)
    assert_right_direction(problem, before, optimizer)


@every_row
def test_param_group_with_lrscheduler_goes_right_direction(row: OptimizerInfo) -> None:
    """Groups with rates of their own are scheduled together."""
    for constructors in row.scheduler_inputs:
        problem = Problem()
        optimizer = row.optim_cls(
            [{"params": [problem.weight]}, {"params": [problem.bias], "lr": 0.01}]
        )
        before = problem.loss()
        problem.run(optimizer, 20, [constructor(optimizer) for constructor in constructors])
        assert_right_direction(problem, before, optimizer)


@every_case
def test_tensor_lr(case: Any) -> None:
    """A tensor learning rate takes the steps that the same float takes."""
    a = Problem()
    b = a.twin()
    first, second = make(case, a.params, lr=1e-3), make(case, b.params, lr=torch.tensor(1e-3))
    for _ in range(5):
        a.run(first, 1)
        b.run(second, 1)
        assert_close(b.params, a.params)


@every_case
def test_param_groups_weight_decay(case: Any) -> None:
    """Two groups, one without decay (as every framework builds them), train."""
    problem = Problem()
    plain = {**kwargs_of(case), "weight_decay": 0.0}
    optimizer = case[0].optim_cls(
        [
            {"params": [problem.weight], **kwargs_of(case)},
            {"params": [problem.bias], **plain},
        ],
        maximize=plain.get("maximize", False),
    )
    assert optimizer.param_groups[1]["weight_decay"] == 0.0
    before = problem.loss()
    problem.run(optimizer, 20)
    assert_right_direction(problem, before, optimizer)


@every_case
def test_param_groups_lr(case: Any) -> None:
    """A group's own rate counts; a group left at a rate of nearly 0 stays where it was."""
    problem = Problem()
    idle = [Parameter(torch.randn(2)), Parameter(torch.randn(3, 2))]
    start = [p.detach().clone() for p in idle]
    kwargs = {"lr": 1e-3, **kwargs_of(case)}
    optimizer = case[0].optim_cls(
        [{"params": problem.params, **kwargs}, {"params": idle}],
        lr=1e-28,
        maximize=kwargs.get("maximize", False),
    )
    before = problem.loss()
    for p in idle:
        p.grad = torch.rand_like(p)
    problem.run(optimizer, 20)
    assert_right_direction(problem, before, optimizer)
    assert all(torch.equal(p, q) for p, q in zip(idle, start, strict=True))


# ---- steps that change nothing ----


@every_case
def test_step_is_noop_when_params_have_no_grad(case: Any) -> None:
    """Parameters without gradient, not even decayed; the closure's loss comes back."""
    params = [torch.randn(2, 3), torch.randn(2)]
    before = copy.deepcopy(params)
    assert make(case, params).step(lambda: torch.tensor([1.0])) == 1.0
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


@every_case
def test_step_is_noop_for_zero_grads(case: Any) -> None:
    """Zero gradients decay the weights and do nothing else: exactly nothing without decay."""
    params = [Parameter(torch.randn(5, 1)), Parameter(torch.randn(4, 6)), Parameter(torch.randn(5))]
    before = copy.deepcopy(params)
    changes: dict[str, Any] = {"l2": 0.0} if "l2" in kwargs_of(case) else {}
    if "adamw_weight_decay" in kwargs_of(case):
        changes["adamw_weight_decay"] = None  # AdamW's decay is then that of all
    optimizer = make(case, params, weight_decay=0.0, **changes)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step(lambda: torch.tensor([1.0]))
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    lr, decay = 0.01, 0.1
    if "adamw_lr_ratio" in optimizer.defaults:
        changes["adamw_lr_ratio"] = 1.0
    make(case, params, lr=lr, weight_decay=decay, **changes).step()
    # Cautious decay asks the update's sign, and there is no update: vectors alone decay then.
    decayed = params[2:] if kwargs_of(case).get("cautious_weight_decay") else params
    for p, q in zip(params, before, strict=True):
        assert_close(p, q * (1 - lr * decay) if any(p is d for d in decayed) else q)


# ---- the object ----


@every_case
def test_optimizer_can_be_printed(case: Any) -> None:
    """print(optimizer) shows the class and each hyper-parameter, before the first step."""
    optimizer = make(case, Problem().params)
    text = repr(optimizer)
    assert text.startswith(case[0].name)
    assert all(f"{key}: " in text for key in kwargs_of(case))


@every_case
def test_deepcopy_copies_all_public_attrs(case: Any) -> None:
    """A copy has the attributes, the groups and the state of the original."""
    problem = Problem()
    optimizer = make(case, problem.params)
    problem.run(optimizer, 3)
    copied = copy.deepcopy(optimizer)
    public = [{k for k in vars(o) if not k.startswith("_")} for o in (optimizer, copied)]
    assert public[0] == public[1]
    assert_same_state(
        {"param_groups": [], "state": list(optimizer.state.values())},
        {"param_groups": [], "state": list(copied.state.values())},
    )


@every_case
def test_non_empty_state(case: Any) -> None:
    """Each parameter has state after a step, but for SpecGD without momentum, which keeps none."""
    model = nn.Linear(5, 5)
    optimizer = make(case, model.parameters())
    model(torch.rand(2, 5)).sum().backward()
    optimizer.step()
    stateless = optimizer.defaults["momentum"] == 0
    assert len(optimizer.state) == (0 if stateless else 2)
    assert all(len(state) > 0 for state in optimizer.state.values())
