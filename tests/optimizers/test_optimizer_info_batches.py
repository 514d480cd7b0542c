"""PyTorch's generic optimizer checks (see test_optimizer_info): batches, devices, compilers."""

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
    CASES,
    applies,
    case_name,
    kwargs_of,
)
from optimizers.optimizer_info_problem import (
    Problem,
    every_row,
    make,
    yes_no,
)


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
