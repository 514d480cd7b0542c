"""`optimizer.statistics()`: numbers of the step that was taken, and no step that is another one."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_specgd import Muon, SpecGD, SpectrumTracker


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 9))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.arange(9)).square().mean().backward()
    optimizer.step()


def flat(xs: list[Tensor]) -> Tensor:
    return torch.cat([x.detach().double().flatten() for x in xs])


def test_numbers_are_those_of_the_step() -> None:
    """Held against the weights before and after, in float64."""
    model = net()
    optimizer = Muon(model, lr=0.02, weight_decay=0.1)
    measured = optimizer.statistics()
    assert dict(measured) == {}
    step(model, optimizer)
    olds = {p: p.detach().clone() for p in model.parameters()}
    step(model, optimizer)
    wanted: dict[str, float] = {}

    def compare(kind: str, params: list[nn.Parameter]) -> tuple[float, float, float]:
        old = flat([olds[p] for p in params])
        moved = flat(params) - old
        cosine = float(moved @ old / (moved.norm() * old.norm()))
        wanted[f"cosine{kind}"] = cosine
        return float(moved.norm()), float(moved.square().mean().sqrt()), cosine

    total = compare("", list(model.parameters()))[0]
    wanted["update_norm"] = total
    squares = {"orthogonalized": 0.0, "adamw": 0.0}
    for i, group in enumerate(optimizer.param_groups):
        norm, wanted[f"update_rms/{i}"], _ = compare(f"/{i}", group["params"])
        squares["orthogonalized" if group["use_muon"] else "adamw"] += norm**2
    for name, square in squares.items():
        wanted[f"share/{name}"] = square / total**2
    assert measured.pop("orthogonalize_ms") > 0
    assert measured == pytest.approx(wanted, rel=1e-4)
    assert measured["share/orthogonalized"] + measured["share/adamw"] == pytest.approx(1.0)


@pytest.mark.parametrize("kind", [Muon, SpecGD])
def test_measuring_changes_no_bit(kind: Any) -> None:
    """A run that is watched is the run that is not."""
    ends = []
    for watched in (False, True):
        model = net()
        optimizer = kind(model if kind is Muon else model.parameters(), lr=0.02)
        if watched:
            optimizer.statistics(every=2)
        for _ in range(3):
            step(model, optimizer)
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_steps_are_counted_sent_and_stopped() -> None:
    """Every second step from the resumed run's number on, to one function; none after the end."""
    model = net()
    optimizer = Muon(model, lr=0.02)
    sent: dict[int, dict[str, float]] = {}
    with optimizer.statistics(
        every=2, log=lambda numbers, i: sent.update({i: numbers}), next_step=7
    ) as measured:
        for _ in range(4):
            step(model, optimizer)
        assert optimizer.statistics() is measured
    step(model, optimizer)
    assert list(sent) == [8, 10]
    assert sent[10] == {f"optimizer/{key}": value for key, value in measured.items()}
    assert optimizer._clock is None


def test_closure_frozen_weights_and_no_gradient() -> None:
    """A closure brings gradients within the step; what cannot move counts nowhere."""
    model = net()
    model[0].weight.requires_grad_(False)
    optimizer = Muon(model, lr=0.02)
    measured = optimizer.statistics()
    optimizer.step()
    assert measured["update_norm"] == 0.0
    assert measured["cosine"] == 0.0

    def closure() -> Tensor:
        loss = model(torch.arange(9)).square().mean()
        loss.backward()
        return loss

    before = flat([p for p in model.parameters() if p.requires_grad])
    optimizer.step(closure)
    moved = flat([p for p in model.parameters() if p.requires_grad]) - before
    assert measured["update_norm"] == pytest.approx(float(moved.norm()), rel=1e-4)


def test_vectors_of_specgd_are_normalized() -> None:
    model = nn.Linear(4, 3)
    optimizer = SpecGD(model.parameters(), lr=0.1)
    measured = optimizer.statistics()
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    # Three singular values of one, and one vector of norm one.
    assert measured["update_norm"] == pytest.approx(0.1 * math.sqrt(4), rel=1e-4)
    assert measured["share/normalized"] == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every": 0}, ValueError, "every must be an integer of at least 1, got 0"),
        ({"next_step": -1}, ValueError, "next_step must be an integer of at least 0, got -1"),
        ({"log": 3}, TypeError, "log must be a SummaryWriter, wandb .*, got 3"),
    ],
)
def test_what_cannot_be_measured_or_logged(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    optimizer = Muon(net(), lr=0.02)
    with pytest.raises(error, match=message):
        optimizer.statistics(**arguments)
    assert not optimizer._optimizer_step_pre_hooks


def test_a_tracker_refuses_the_same() -> None:
    with pytest.raises(TypeError, match="log must be a SummaryWriter"):
        SpectrumTracker(nn.Linear(3, 2), log="runs")
