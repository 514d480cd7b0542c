"""One suite, one row per optimizer and mode: the contract of torch.optim that tools rely on."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedulers

from optimizers.conformance import (
    assert_same,
    every_row,
    loss_of,
    network,
    through_a_file,
    train,
    weights,
)
from torch_specgd import Muon


@every_row
def test_resume_equals_uninterrupted(make: Callable[[Any], Optimizer]) -> None:
    """A checkpoint through torch.save and a weights-only load loses nothing."""
    straight, first = network(), network()
    train(straight, make(straight.parameters()), range(6))
    optimizer = make(first.parameters())
    train(first, optimizer, range(3))
    second = network()
    second.load_state_dict(first.state_dict())
    resumed = make(second.parameters())
    resumed.load_state_dict(state_dict=through_a_file(optimizer.state_dict()))
    train(second, resumed, range(3, 6))
    assert_same(straight, second)


@every_row
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_continue_alike(make: Callable[[Any], Optimizer], duplicate: Any) -> None:
    """deepcopy and pickle (as schedulers and sweeps use them) keep parameters and state."""
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, range(2))
    copied = duplicate((model, optimizer))
    train(model, optimizer, range(2, 4))
    train(*copied, range(2, 4))
    assert_same(model, copied[0])


@every_row
def test_loaded_state_is_not_shared(make: Callable[[Any], Optimizer]) -> None:
    """Two optimizers fed from one live state dict do not step each other's buffers."""
    a, b = network(), network()
    first, second = make(a.parameters()), make(b.parameters())
    train(a, first, range(2))
    second.load_state_dict(first.state_dict())
    ours = {t.data_ptr() for s in first.state.values() for t in s.values()}
    theirs = {t.data_ptr() for s in second.state.values() for t in s.values()}
    assert not ours & theirs


@every_row
def test_float32_state_of_bfloat16_weights_survives(make: Callable[[Any], Optimizer]) -> None:
    """The base class would round it to the parameter's dtype without a word."""
    model = network(torch.bfloat16)
    optimizer = make(model.parameters())
    train(model, optimizer, range(1))
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        for key, value in state.items():
            state[key] = value.float() + 1e-5
    optimizer.load_state_dict(saved)
    loaded = optimizer.state_dict()["state"]
    for index, state in saved["state"].items():
        for key, value in state.items():
            assert loaded[index][key].dtype == torch.float32
            assert torch.equal(loaded[index][key], value)
    train(model, optimizer, range(1, 3))
    assert all(p.isfinite().all() and p.dtype == torch.bfloat16 for p in model.parameters())


@every_row
def test_zero_gradients_and_zero_lr_change_nothing(make: Callable[[Any], Optimizer]) -> None:
    """torch.distributed.checkpoint does exactly this, by keyword, to every fresh optimizer."""
    model = network()
    optimizer = make(model.parameters())
    before = weights(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.0)
    optimizer.step(closure=None)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


@every_row
def test_gradients_are_never_written(make: Callable[[Any], Optimizer]) -> None:
    """Accumulation, clipping and logging read .grad after the step."""
    model = network()
    optimizer = make(model.parameters())
    loss_of(model, 0).backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.step()
    after = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@every_row
def test_frozen_and_unused_parameters_stay(make: Callable[[Any], Optimizer]) -> None:
    """No gradient, no step: not even weight decay."""
    model = network()
    optimizer = make(model.parameters())
    loss_of(model, 0).backward()
    model[4].weight.grad = None
    frozen, unused = model[0].bias.clone(), model[4].weight.clone()
    optimizer.step()
    assert torch.equal(model[0].bias, frozen)
    assert torch.equal(model[4].weight, unused)
    assert model[0].bias not in optimizer.state


@every_row
def test_closure_runs_with_gradients_and_returns_its_loss(make: Any) -> None:
    """Lightning's automatic optimization drives every optimizer in this way."""
    model = network()
    optimizer = make(model.parameters())

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    before = weights(model)
    assert optimizer.step(closure).requires_grad
    assert not torch.equal(before[0], weights(model)[0])


@every_row
def test_tensor_lr_takes_the_same_step(make: Callable[[Any], Optimizer]) -> None:
    """A learning rate held in a tensor (compiled steps, CUDA graphs) means the same."""
    a, b = network(), network()
    first, second = make(a.parameters()), make(b.parameters())
    for group in second.param_groups:
        group["lr"] = torch.tensor(group["lr"])
    for seed in range(3):
        # Given, not computed: a network's gradients would answer to the last bit of a weight, and
        # the polar factor blows that up in directions where the gradient is next to zero.
        generator = torch.Generator().manual_seed(seed)
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            if p.requires_grad:
                p.grad = torch.randn(p.shape, generator=generator)
                q.grad = p.grad.clone()
        first.step()
        second.step()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@every_row
def test_named_parameters_and_late_groups(make: Callable[[Any], Optimizer]) -> None:
    """Names travel in the checkpoint; a head added later is trained like the rest."""
    model = network()
    optimizer = make(model[:4].named_parameters())
    assert optimizer.param_groups[0]["param_names"][0] == "0.weight"
    optimizer.add_param_group({"params": model[4].named_parameters()})
    before = weights(model)
    train(model, optimizer, range(1))
    moved = [not torch.equal(a, b) for a, b in zip(before, weights(model), strict=True)]
    assert moved == [p.requires_grad for p in model.parameters()]
    assert "lr: " in repr(optimizer)


@every_row
def test_works_with_grad_scaler(make: Callable[[Any], Optimizer]) -> None:
    """A step whose gradients overflowed is skipped, the next one is not."""
    model = network()
    optimizer = make(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for bad in (True, False):
        before = weights(model)
        optimizer.zero_grad()
        scaler.scale(loss_of(model, 0)).backward()
        if bad:
            model[4].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before[0], weights(model)[0]) == bad


def cycled(o: Optimizer) -> bool:
    """SpecGD without momentum has none to cycle, and refuses the others without it."""
    return isinstance(o, Muon)


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda k: 0.5**k),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda k: 0.5),
    "StepLR": lambda o: schedulers.StepLR(o, 1, 0.5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [1, 2], 0.5),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.5),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.5), schedulers.ExponentialLR(o, 0.9)], [2]
    ),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 4),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.StepLR(o, 1, 0.5), schedulers.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=0),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, cycle_momentum=cycled(o)),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 2),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=5, cycle_momentum=cycled(o)),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 4),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.001, anneal_epochs=3),
}


def test_every_scheduler_of_torch_is_among_them() -> None:
    """A new release's scheduler must be tried before the claim covers it."""
    assert SCHEDULERS.keys() == {*schedulers.__all__, "SWALR"} - {"LRScheduler"}


@every_row
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_lr_schedulers_drive_it(make: Callable[[Any], Optimizer], scheduler: Any) -> None:
    """Every scheduler of torch changes the rate that the next step uses."""
    model = network()
    optimizer = make(model.parameters())
    schedule = scheduler(optimizer)
    rates = set()
    for seed in range(3):
        train(model, optimizer, range(seed, seed + 1))
        schedule.step(*[1.0] * isinstance(schedule, schedulers.ReduceLROnPlateau))
        rates.add(round(float(optimizer.param_groups[0]["lr"]), 8))
    assert len(rates) > 1
    assert all(p.isfinite().all() for p in model.parameters())


@every_row
def test_descends_a_matrix_parabola(make: Callable[[Any], Optimizer]) -> None:
    """Steepest descent reaches the target's neighbourhood, or climbs away under maximize."""
    target = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    p = nn.Parameter(torch.zeros(6, 4))
    optimizer = make([p])
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 0.05, 0.0
    start = float((p - target).norm().detach())
    for _ in range(100):
        optimizer.zero_grad()
        (0.5 * (p - target).square().sum()).backward()
        optimizer.step()
    end = float((p - target).norm().detach())
    assert end > start if optimizer.defaults["maximize"] else end < 0.5 * start


@every_row
def test_global_random_state_is_untouched(make: Callable[[Any], Optimizer]) -> None:
    """A step draws no random number: the user's seeds keep their meaning."""
    model = network()
    optimizer = make(model.parameters())
    loss_of(model, 0).backward()
    before = torch.get_rng_state()
    optimizer.step()
    assert torch.equal(before, torch.get_rng_state())


@every_row
def test_same_step_twice_is_bit_identical(make: Callable[[Any], Optimizer]) -> None:
    """Runs repeat exactly on one machine."""
    a, b = network(), network()
    train(a, make(a.parameters()), range(3))
    train(b, make(b.parameters()), range(3))
    assert_same(a, b)
