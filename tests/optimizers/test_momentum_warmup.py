"""The momentum's warm-up: its values, beside other schedulers, saved, resumed and compiled."""

from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR

from torch_specgd import MomentumWarmup, Muon, SpecGD

STEPS = 12


def weights() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4, 6))]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(6, 4, generator=generator), torch.randn(4, 6, generator=generator)]


def train(params: list[nn.Parameter], optimizer: Any, schedulers: list[Any], steps: range) -> None:
    for k in steps:
        for p, g in zip(params, gradients(k), strict=True):
            p.grad = g
        optimizer.step()
        for s in schedulers:
            s.step()


def test_follows_modded_nanogpt_and_the_update_rule() -> None:
    """Weights equal a loop that sets the momentum by hand, in float64, step by step."""
    p = nn.Parameter(torch.randn(6, 4, dtype=torch.float64))
    w, b = p.detach().clone(), torch.zeros(6, 4, dtype=torch.float64)
    optimizer = Muon([p], lr=0.1, weight_decay=0.0, ns_coefficients="polar_express_8")
    warmup = MomentumWarmup(optimizer, total_steps=5)
    for k in range(STEPS):
        g = torch.randn(6, 4, dtype=torch.float64)
        fraction = min(k / 5, 1)
        momentum = (1 - fraction) * 0.85 + fraction * 0.95
        b = momentum * b + (1 - momentum) * g
        u, _, vh = torch.linalg.svd((1 - momentum) * g + momentum * b, full_matrices=False)
        w = w - 0.1 * (6 / 4) ** 0.5 * u @ vh
        p.grad = g
        optimizer.step()
        warmup.step()
        torch.testing.assert_close(p.detach(), w, rtol=1e-4, atol=1e-4)


def test_each_group_ends_at_its_own_momentum_also_a_late_one() -> None:
    a, b = weights()
    optimizer = Muon([{"params": [a]}, {"params": [b], "momentum": 0.9}], momentum=0.98)
    warmup = MomentumWarmup(optimizer, total_steps=4, start=0.5)
    assert [g["momentum"] for g in optimizer.param_groups] == [0.5, 0.5]
    train([a, b], optimizer, [warmup], range(2))
    assert [g["momentum"] for g in optimizer.param_groups] == pytest.approx([0.74, 0.7])
    optimizer.add_param_group({"params": [nn.Parameter(torch.randn(3, 3))]})
    train([a, b], optimizer, [warmup], range(2, 9))
    assert [g["momentum"] for g in optimizer.param_groups] == pytest.approx([0.98, 0.9, 0.98])


@pytest.mark.parametrize("tensor", [False, True])
def test_learning_rates_are_left_to_other_schedulers(tensor: bool) -> None:
    """Alone, chained, or stepped beside it: a cosine's rates are those without the warm-up."""
    rates = []
    for way in ("without", "beside", "chained"):
        params = weights()
        lr = torch.tensor(0.1) if tensor else 0.1
        optimizer = Muon(params, lr=lr)
        cosine = CosineAnnealingLR(optimizer, STEPS)
        schedulers: list[Any] = [cosine]
        if way != "without":
            schedulers.append(MomentumWarmup(optimizer, total_steps=3))
        if way == "chained":
            schedulers = [ChainedScheduler(schedulers)]
        seen = []
        for k in range(STEPS):
            train(params, optimizer, schedulers, range(k, k + 1))
            seen.append(float(optimizer.param_groups[0]["lr"]))
        rates.append(seen)
    assert rates[0] == rates[1] == rates[2]


@pytest.mark.parametrize("saved", ["both", "optimizer"])
@pytest.mark.parametrize("tensor", [False, True])
def test_resumed_run_equals_the_uninterrupted_one(saved: str, tensor: bool, tmp_path: Any) -> None:
    """With the scheduler's checkpoint or, as torch's, by last_epoch from the optimizer's alone."""

    def make(last: int = -1) -> tuple[list[nn.Parameter], Muon, MomentumWarmup]:
        params = weights()
        optimizer = Muon(params, momentum=torch.tensor(0.95) if tensor else 0.95)
        return params, optimizer, MomentumWarmup(optimizer, total_steps=8, last_epoch=last)

    params, optimizer, warmup = make()
    train(params, optimizer, [warmup], range(5))
    torch.save([list(params), optimizer.state_dict(), warmup.state_dict()], tmp_path / "x.pt")
    train(params, optimizer, [warmup], range(5, STEPS))

    values, state, schedule = torch.load(tmp_path / "x.pt", weights_only=True)
    again, other, _ = make()
    with torch.no_grad():
        for p, value in zip(again, values, strict=True):
            p.copy_(value)
    other.load_state_dict(state)
    if saved == "optimizer":
        resumed = MomentumWarmup(other, total_steps=8, last_epoch=4)
    else:
        resumed = MomentumWarmup(other, total_steps=8)
        resumed.load_state_dict(schedule)
        other.load_state_dict(state)
    train(again, other, [resumed], range(5, STEPS))
    for p, q in zip(params, again, strict=True):
        assert torch.equal(p, q)


def test_tensor_momentum_takes_the_same_steps() -> None:
    for make in (Muon, lambda p, momentum: SpecGD(p, momentum=momentum, nesterov=True)):
        results = []
        for momentum in (0.95, torch.tensor(0.95)):
            params = weights()
            optimizer = make(params, momentum=momentum)
            train(params, optimizer, [MomentumWarmup(optimizer, 4)], range(6))
            results.append(params)
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("tensor", "most"), [(True, 1), (False, 2)])
def test_compiled_step_is_not_compiled_at_every_step(tensor: bool, most: int) -> None:
    """A tensor is filled in place; a float is traced as a variable after its first change."""
    torch._dynamo.reset()
    params, other = weights(), weights()
    compiled = Muon(params, momentum=torch.tensor(0.95) if tensor else 0.95)
    plain = Muon(other)
    counter = CompileCounterWithBackend("eager")
    # Before any scheduler exists: all of torch's wrap step() in what its compiler does not enter.
    step = torch.compile(compiled.step, backend=counter, fullgraph=True)
    schedulers = [MomentumWarmup(compiled, 6), MomentumWarmup(plain, 6)]
    for k in range(9):
        for ps in (params, other):
            for p, g in zip(ps, gradients(k), strict=True):
                p.grad = g
        if k == 0:
            compiled.step()  # makes the state
        else:
            step()
        plain.step()
        for s in schedulers:
            s.step()
    assert counter.frame_count <= most
    for a, b in zip(params, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_warmed_up_is_named() -> None:
    params = weights()
    with pytest.raises(ValueError, match="group 0 of AdamW has no momentum"):
        MomentumWarmup(torch.optim.AdamW(params))
    with pytest.raises(ValueError, match=r"start must be from 0 to the momentum of group 0, 0\.5"):
        MomentumWarmup(Muon(params, momentum=0.5))
    with pytest.raises(ValueError, match="total_steps must be an integer of at least 1, got 0"):
        MomentumWarmup(Muon(params), total_steps=0)
    MomentumWarmup(Muon(params, momentum=0.85))  # a start at the end is a constant
    with pytest.raises(TypeError, match=r"start must be a number in \[0, 1\), got '0.8' of str"):
        MomentumWarmup(Muon(params), start="0.8")


def test_defaults_are_those_of_modded_nanogpt() -> None:
    """From 0.85 over 300 steps; a start at zero, without any memory, is allowed."""
    warmup = MomentumWarmup(Muon(weights(), momentum=0.95))
    assert (warmup.start, warmup.total_steps) == (0.85, 300)
    optimizer = Muon(weights(), momentum=0.9)
    MomentumWarmup(optimizer, start=0.0)
    assert optimizer.param_groups[0]["momentum"] == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strange": 1}, r"unknown \['strange'\], missing \[\]"),
        ({"base_lrs": [0.1, 0.2]}, "base_lrs must be a list of a rate for each group"),
        ({"base_lrs": 0.1}, "base_lrs must be a list"),
        ({"last_epoch": -1}, "last_epoch must be"),
        ({"_step_count": -1}, "_step_count must be"),
    ],
)
def test_a_state_that_is_not_ours_is_refused(change: dict[str, Any], message: str) -> None:
    """Another scheduler's state, or a damaged one, is named before anything changes."""
    warmup = MomentumWarmup(Muon(weights()), total_steps=1)
    before = warmup.state_dict()
    warmup.load_state_dict({**before, "last_epoch": 0, "_step_count": 0})
    warmup.load_state_dict(before)
    with pytest.raises(ValueError, match=message):
        warmup.load_state_dict({**before, **change})
    short = {key: value for key, value in before.items() if key != "start"}
    with pytest.raises(ValueError, match=r"unknown \[\], missing \['start'\]"):
        warmup.load_state_dict(short)
    assert warmup.state_dict() == before


def test_one_step_is_a_warm_up() -> None:
    """The shortest warm-up there is: the first step at the start, all others at the target."""
    optimizer = Muon(weights())
    warmup = MomentumWarmup(optimizer, total_steps=1, start=0.5)
    seen = [optimizer.param_groups[0]["momentum"]]
    for k in range(2):
        train(optimizer.param_groups[0]["params"], optimizer, [warmup], range(k, k + 1))
        seen.append(optimizer.param_groups[0]["momentum"])
    assert seen == [0.5, 0.95, 0.95]


@pytest.mark.parametrize("changes", [{"start": 1.0}, {"start": -0.1}, {"total_steps": 0}])
def test_a_state_out_of_range_changes_nothing(changes: dict[str, Any]) -> None:
    """A momentum of one or more never forgets a gradient: the run would diverge."""
    warmup = MomentumWarmup(Muon(weights()), total_steps=4)
    before = warmup.state_dict()
    with pytest.raises(ValueError, match=f"{next(iter(changes))} must be"):
        warmup.load_state_dict({**before, **changes})
    assert warmup.state_dict() == before
