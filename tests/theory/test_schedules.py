"""Step-size schedules and the travel budget."""

import copy
import warnings

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

from torch_specgd import (
    ConstantThenGeometric,
    ConstantThenLinear,
    SpecGD,
    TravelBudgetWarning,
    check_travel_budget,
)


def optimizer(lr: float | torch.Tensor = 0.5) -> SpecGD:
    w, v = (torch.nn.Parameter(torch.eye(2)) for _ in range(2))
    return SpecGD([{"params": [w], "lr": lr}, {"params": [v], "lr": 2 * lr}])


def rates(schedule: LRScheduler, steps: int) -> list[float]:
    """Learning rates that the steps of a training loop see."""
    seen = []
    for _ in range(steps):
        seen.append(float(schedule.optimizer.param_groups[0]["lr"]))
        schedule.optimizer.step()
        schedule.step()
    return seen


def test_linear_and_geometric_follow_their_formulas() -> None:
    """The decay begins where it says, ends where it says, and stays there."""
    linear = ConstantThenLinear(optimizer(), 10, constant_fraction=0.4, final_factor=0.25)
    assert rates(linear, 12) == pytest.approx(
        [0.5 * f for f in (1, 1, 1, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.25)]
    )
    geometric = ConstantThenGeometric(optimizer(), 6, constant_fraction=0.5, final_factor=1e-3)
    assert rates(geometric, 8) == pytest.approx(
        [0.5 * f for f in (1, 1, 1, 1, 0.1, 0.01, 1e-3, 1e-3)]
    )


@pytest.mark.parametrize("kind", [ConstantThenLinear, ConstantThenGeometric])
def test_resumes_from_a_checkpoint(kind: type[ConstantThenLinear]) -> None:
    """A resumed run continues the schedule instead of starting it again."""
    schedule = kind(optimizer(), 20)
    whole = rates(kind(optimizer(), 20), 20)
    rates(schedule, 13)
    other = kind(optimizer(), 7, constant_fraction=0.1)
    other.optimizer.load_state_dict(copy.deepcopy(schedule.optimizer.state_dict()))
    other.load_state_dict(copy.deepcopy(schedule.state_dict()))
    assert rates(other, 7) == pytest.approx(whole[13:])


def test_tensor_learning_rates_stay_the_same_tensor() -> None:
    """Compiled steps read the rate from the tensor that they were traced with."""
    lr = torch.tensor(0.5)
    opt = SpecGD([torch.nn.Parameter(torch.eye(2))], lr=lr)
    rates(ConstantThenLinear(opt, 4), 3)
    assert opt.param_groups[0]["lr"] is lr
    assert float(lr) == pytest.approx(0.25)


def test_constant_over_the_whole_run() -> None:
    """The edge of the range: no division by the length of an empty decay."""
    assert rates(ConstantThenLinear(optimizer(), 3, constant_fraction=1.0), 4)[:3] == [0.5] * 3


def test_travel_is_the_sum_of_the_steps() -> None:
    """What the budget is checked with is what the optimizer will walk."""
    schedule = ConstantThenGeometric(optimizer(), 50)
    assert schedule.travel() == pytest.approx(sum(rates(schedule, 50)))
    assert schedule.travel(1) == pytest.approx(2 * schedule.travel(0))


def test_budget_warns_only_when_the_target_is_out_of_reach() -> None:
    """The failure that it names: a run too short ends far from the target without any error."""
    schedule = ConstantThenLinear(optimizer(0.01), 100)
    with pytest.warns(TravelBudgetWarning, match=r"add up to 0\.75.*about 3 long"):
        budget = check_travel_budget(schedule, 9.0)
    assert not budget.sufficient
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_travel_budget(schedule, 0.25).sufficient
        # The LoRA scale and the depth shorten the way; a start elsewhere lengthens it.
        assert check_travel_budget(schedule, 9.0, scale=16.0).required == pytest.approx(0.75)
        assert check_travel_budget([1.0, 1.0], 8.0, depth=3).required == pytest.approx(2.0)
    with pytest.warns(TravelBudgetWarning):
        check_travel_budget(schedule, 0.25, initial_norm=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_steps": 0}, "total_steps must be at least 1, got 0"),
        ({"constant_fraction": 1.5}, r"constant_fraction must be in \[0, 1\], got 1.5"),
        ({"final_factor": 2.0}, r"final_factor must be in .*, got 2.0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, float], message: str) -> None:
    """At construction, not as a strange learning rate."""
    for kind in (ConstantThenLinear, ConstantThenGeometric):
        with pytest.raises(ValueError, match=message):
            kind(optimizer(), **{"total_steps": 10, **arguments})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="final_factor"):
        ConstantThenGeometric(optimizer(), 10, final_factor=0.0)
    for bad in ({"sigma_max": -1.0}, {"initial_norm": -0.1}, {"scale": 0.0}, {"depth": 0}):
        with pytest.raises(ValueError, match="sigma_max and initial_norm must be at least 0"):
            check_travel_budget([1.0], **{"sigma_max": 1.0, **bad})  # type: ignore[arg-type]


def test_the_ends_of_the_ranges_are_in_them() -> None:
    """One step, no constant part, a target of zero, a single weight: all of them ordinary."""
    assert rates(ConstantThenLinear(optimizer(), 1), 2) == pytest.approx([0.5, 0.0])
    all_decay = ConstantThenLinear(optimizer(), 4, constant_fraction=0.0)
    assert rates(all_decay, 5) == pytest.approx([0.5, 0.375, 0.25, 0.125, 0.0])
    geometric = ConstantThenGeometric(optimizer(), 2, constant_fraction=0.0)
    assert rates(geometric, 3) == pytest.approx([0.5, 0.5e-3, 0.5e-6])
    assert check_travel_budget([1.0], 0.0).required == 0.0
    assert check_travel_budget([15.0], 7.0, depth=1, scale=0.5).required == pytest.approx(14.0)
