"""PyTorch's generic optimizer checks (see test_optimizer_info): hooks of checkpoints and steps."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.testing._internal.common_optimizers import (
    OptimizerInfo,
)

from optimizers.optimizer_info_problem import (
    Problem,
    assert_same_state,
    every_row,
    state_of,
)


@every_row
def test_state_dict_pre_hook(row: OptimizerInfo) -> None:
    """A hook before saving may put its own entry into the state."""
    optimizer = row.optim_cls(Problem().params)
    optimizer.register_state_dict_pre_hook(lambda opt: opt.state.update(test=1))
    assert optimizer.state_dict()["state"]["test"] == 1


@every_row
def test_state_dict_post_hook(row: OptimizerInfo) -> None:
    """A hook after saving may replace the dict."""
    optimizer = row.optim_cls(Problem().params)
    optimizer.register_state_dict_post_hook(lambda opt, state: {**state, "seen": True})
    assert optimizer.state_dict()["seen"]


@every_row
def test_state_dict_pre_post_hook(row: OptimizerInfo) -> None:
    """The hook after saving sees what the hook before it did, and may undo it."""
    optimizer = row.optim_cls(Problem().params)
    optimizer.register_state_dict_pre_hook(lambda opt: opt.state.update(test=1))
    optimizer.register_state_dict_post_hook(
        lambda opt, state: state.update(seen=state["state"].pop("test"))
    )
    state = optimizer.state_dict()
    assert state["seen"] == 1
    assert "test" not in state["state"]


def set_lr(lr: float) -> Callable[[Optimizer, dict[str, Any]], dict[str, Any]]:
    def hook(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        changed = copy.deepcopy(state)
        changed["param_groups"][0]["lr"] = lr
        return changed

    return hook


@every_row
def test_load_state_dict_pre_hook_and_prepend(row: OptimizerInfo) -> None:
    """Hooks before loading run in their order and may return another dict."""
    problem = Problem()
    optimizer = row.optim_cls(problem.params)
    problem.run(optimizer, 2)
    state = optimizer.state_dict()
    optimizer.register_load_state_dict_pre_hook(set_lr(0.002))
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.002
    optimizer.register_load_state_dict_pre_hook(set_lr(0.003), prepend=True)
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.002


@every_row
def test_load_state_dict_hooks_see_and_change_state_tensors(row: OptimizerInfo) -> None:
    """What a hook makes of the tensors is what is loaded, in the dtype that it chose."""
    problem = Problem()
    optimizer = row.optim_cls(problem.params, momentum=0.9)
    problem.run(optimizer, 2)

    def double(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        changed = copy.deepcopy(state)
        buffer = changed["state"][0]["momentum_buffer"]
        changed["state"][0]["momentum_buffer"] = 2 * buffer.double()
        return changed

    before = optimizer.state[problem.weight]["momentum_buffer"].clone()
    optimizer.register_load_state_dict_pre_hook(double)
    optimizer.load_state_dict(optimizer.state_dict())
    after = optimizer.state[problem.weight]["momentum_buffer"]
    assert torch.equal(after, 2 * before.double())


@every_row
def test_load_state_dict_post_hook(row: OptimizerInfo) -> None:
    """A hook after loading runs once, with everything in place."""
    problem = Problem()
    optimizer = row.optim_cls(problem.params, momentum=0.9)
    problem.run(optimizer, 2)
    seen: list[Any] = []
    optimizer.register_load_state_dict_post_hook(lambda opt: seen.append(state_of(opt)))
    optimizer.load_state_dict(optimizer.state_dict())
    assert len(seen) == 1
    assert_same_state(seen[0], state_of(optimizer))


@every_row
def test_load_state_dict_pre_post_hook(row: OptimizerInfo) -> None:
    """The hook after loading sees what the hook before it changed."""
    optimizer = row.optim_cls(Problem().params)
    seen: list[float] = []
    optimizer.register_load_state_dict_pre_hook(set_lr(0.003))
    optimizer.register_load_state_dict_post_hook(lambda opt: seen.append(opt.param_groups[0]["lr"]))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [0.003]


# ---- hooks of the step ----


def assert_runs_until_removed(optimizer: Optimizer, register: Callable[..., Any]) -> None:
    calls: list[Optimizer] = []
    handle = register(lambda opt, args, kwargs: calls.append(opt))
    optimizer.step()
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert calls == [optimizer, optimizer]


@every_row
def test_step_pre_hook(row: OptimizerInfo) -> None:
    """A hook before the step runs once for each step, until it is removed."""
    optimizer = row.optim_cls([torch.ones(2)])
    assert_runs_until_removed(optimizer, optimizer.register_step_pre_hook)


@every_row
def test_step_post_hook(row: OptimizerInfo) -> None:
    """A hook after the step runs once for each step, until it is removed."""
    optimizer = row.optim_cls([torch.ones(2)])
    assert_runs_until_removed(optimizer, optimizer.register_step_post_hook)


@every_row
def test_step_all_hooks(row: OptimizerInfo) -> None:
    """Global and local hooks run in torch's order, around this optimizer and around SGD."""
    p = torch.ones(2)
    optimizers = [row.optim_cls([p]), torch.optim.SGD([p])]
    order: list[str] = []

    def hook(name: str) -> Callable[..., None]:
        return lambda opt, args, kwargs: order.append(name)

    handles = [
        register_optimizer_step_pre_hook(hook("global before")),
        register_optimizer_step_post_hook(hook("global after")),
    ]
    try:
        for optimizer in optimizers:
            handles.append(optimizer.register_step_pre_hook(hook("before")))
            handles.append(optimizer.register_step_post_hook(hook("after")))
        for optimizer in optimizers:
            optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    assert order == ["global before", "before", "after", "global after"] * 2
    optimizers[0].step()
    assert len(order) == 8
