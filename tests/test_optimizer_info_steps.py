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

from optimizer_info import (
    CASES,
    applies,
    case_name,
    kwargs_of,
)
from optimizer_info_problem import (
    Problem,
    assert_right_direction,
    assert_same_state,
    every_case,
    every_row,
    make,
    yes_no,
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
    changes = {"l2": 0.0} if "l2" in kwargs_of(case) else {}
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


def assert_together_is_alone(
    case: Any, params: list[Parameter], rtol: float | None = None, atol: float | None = None
) -> None:
    """Steps the parameters in one optimizer and in one each; the third step has no gradients."""
    alone = copy.deepcopy(params)
    together, separate = make(case, params), [make(case, [p]) for p in alone]
    for step in range(4):
        for p, q in zip(params, alone, strict=True):
            p.grad = None if step == 2 else torch.randn_like(p)
            q.grad = None if p.grad is None else p.grad.clone()
        together.step()
        for optimizer in separate:
            optimizer.step()
    for p, q in zip(params, alone, strict=True):
        assert p.isfinite().all()
        assert_close(p, q, rtol=rtol, atol=atol)


# Stochastic rounding draws its bits for all buffers in a row: each is unbiased, none is the same.
every_repeatable_case = pytest.mark.parametrize(
    "case", [c for c in CASES if kwargs_of(c).get("state_dtype") != "bfloat16"], ids=case_name
)


@every_repeatable_case
def test_batch_equals_one_by_one(case: Any) -> None:
    """Parameters stepped together move as each alone."""
    params = [Parameter(torch.randn(s)) for s in [(4, 3), (4, 3), (3, 4), (2, 3, 4), (5,), (5,)]]
    # A triple is iterated in bfloat16, where a batch sums in another order: a few of its
    # roundings, 2^-8 of a step whose size is lr.
    lr = float(kwargs_of(case).get("lr", case[0].optim_cls(params).defaults["lr"]))
    assert_together_is_alone(case, params, rtol=1e-5, atol=max(1e-6, 4 * lr * 2**-8))


@every_repeatable_case
def test_mixed_device_dtype(case: Any) -> None:
    """Parameters of four dtypes in one optimizer move as each alone (on CPU: one device)."""
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    assert_together_is_alone(
        case, [Parameter(torch.rand(s).to(d)) for d in dtypes for s in [(2, 3), (3,)]]
    )


@pytest.mark.parametrize("row", applies("test_foreach_matches_forloop"), ids=lambda row: row.name)
def test_foreach_matches_forloop(row: OptimizerInfo) -> None:
    """foreach=True and False take the same steps, through frozen layers and missing gradients."""
    for given in row.optim_inputs_func(device="cpu"):
        if given.kwargs.get("state_dtype") == "bfloat16":
            continue
        model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1), nn.Sigmoid()).double()
        scalar = Parameter(torch.rand((), dtype=torch.float64))
        models = [(model, scalar), copy.deepcopy((model, scalar))]
        optimizers = [
            row.optim_cls([*m.parameters(), s], **copy.deepcopy(given.kwargs), foreach=foreach)
            for (m, s), foreach in zip(models, yes_no, strict=True)
        ]
        x = torch.rand(3, 2, dtype=torch.float64)
        for i in range(7):
            for (m, s), optimizer in zip(models, optimizers, strict=True):
                optimizer.zero_grad()
                m[2].requires_grad_(i not in (3, 4))
                if i != 2:
                    (m(x).sum() * s).backward()
                optimizer.step()
            for p, q in zip(*(o.param_groups[0]["params"] for o in optimizers), strict=True):
                # A triple is iterated in bfloat16: a rounding, 2^-8, of lr at most 0.01.
                coarse = isinstance(given.kwargs.get("ns_coefficients"), tuple)
                assert_close(p, q, **({"rtol": 0, "atol": i * 4e-5} if coarse else {}))
                states = [o.state[r] for o, r in zip(optimizers, (p, q), strict=True)]
                assert states[0].keys() == states[1].keys()


@every_row
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_set_default_dtype_works_with_foreach(row: OptimizerInfo, default: torch.dtype) -> None:
    """Steps taken under set_default_dtype(bfloat16) would count to 256 and no further."""
    problem = Problem()
    optimizer = row.optim_cls(problem.params)
    problem.backward()
    torch.set_default_dtype(default)
    try:
        optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    for state in optimizer.state.values():
        if "step" in state:
            assert state["step"].dtype in (torch.float32, torch.float64)


@pytest.mark.gpu
@pytest.mark.parametrize("row", applies("test_foreach_large_tensor"), ids=lambda row: row.name)
def test_foreach_large_tensor(row: OptimizerInfo) -> None:
    """A parameter of 2^32 elements is stepped: no index is held in 32 bits."""
    if torch.cuda.get_device_properties(0).total_memory < 72e9:
        pytest.skip("needs 72 GB of device memory")
    p = torch.ones(2**32, device="cuda", dtype=torch.float16)
    p.grad = torch.ones_like(p)
    row.optim_cls([p], foreach=True, lr=0.5).step()
    assert float(p[0]) == float(p[-1]) < 0.6


@pytest.mark.gpu
@pytest.mark.parametrize("row", applies("test_graph_optims"), ids=lambda row: row.name)
def test_graph_optims(row: OptimizerInfo) -> None:
    """A captured CUDA graph of the step, replayed, moves the weights as eager steps do."""
    problem = Problem(devices=("cuda", "cuda"))
    twin = problem.twin()
    problem.backward()
    for p, q in zip(problem.params, twin.params, strict=True):
        q.grad = p.grad.clone()
    eager = row.optim_cls(twin.params, capturable=True)
    for _ in range(6):
        eager.step()
    captured = row.optim_cls(problem.params, capturable=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            captured.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for _ in range(3):
        graph.replay()
    assert_close(problem.params, twin.params)


@every_row
def test_correctness(row: OptimizerInfo) -> None:
    """The compiled step takes the eager step; torch's Muon is excused from this, ours is not."""
    problem = Problem()
    twin = problem.twin()
    optimizer, eager = row.optim_cls(problem.params), row.optim_cls(twin.params)
    torch.compiler.reset()
    step = torch.compile(optimizer.step, backend="eager")
    for _ in range(3):
        problem.backward()
        step()
        twin.run(eager, 1)
    assert_close(problem.params, twin.params)
