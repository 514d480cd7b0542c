"""Optimizer state, master copies and EMA weights go along with the weights."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel

from warm.trained import assert_same, data, trained
from warmstart import dash_shrink

OPTIMIZERS = [
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.AdamW, {"foreach": True}),
    (torch.optim.AdamW, {"fused": True, "amsgrad": True}),
    (torch.optim.Adam, {"capturable": False}),
    (torch.optim.RMSprop, {"momentum": 0.5, "centered": True}),
    (torch.optim.Adagrad, {}),
]


SECOND = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"}


@pytest.mark.parametrize(("optimizer_class", "keywords"), OPTIMIZERS)
def test_scale(optimizer_class, keywords) -> None:
    """Moments follow their units; untouched parameters (BatchNorm) keep theirs bit for bit."""
    model, optimizer = trained(optimizer_class, **keywords)
    old = {n: copy.deepcopy(optimizer.state[p]) for n, p in model.named_parameters()}
    report = dash_shrink(model, data(), optimizer=optimizer, optimizer_state="scale")
    for name, p in model.named_parameters():
        for key, value in optimizer.state[p].items():
            before = old[name][key]
            if name not in report.factors or value.shape != p.shape:
                assert_same(value, before)
                continue
            s = report.factors[name] ** (2 if key in SECOND else 1)
            torch.testing.assert_close(value, before * s, rtol=1e-6, atol=0)


def test_scale_leaves_the_step_counter_of_a_scalar_alone() -> None:
    """A scalar parameter has the shape of its step counter; 5 steps must not become 1.5."""
    model = nn.Linear(3, 2)
    model.gain = nn.Parameter(torch.tensor(2.0))
    optimizer = torch.optim.NAdam(model.parameters())
    batch = (torch.randn(8, 3), torch.randint(2, (8,)))
    forward = lambda m, b: cross_entropy(m(b[0]) * m.gain, b[1])  # noqa: E731
    forward(model, batch).backward()
    optimizer.step()
    old = copy.deepcopy(optimizer.state[model.gain])
    report = dash_shrink(
        model, [batch], forward=forward, include=("default", "gain"),
        optimizer=optimizer, optimizer_state="scale", zero_gradient="floor", floor=0.3,
    )  # fmt: skip
    new, s = optimizer.state[model.gain], report.factors["gain"]
    assert new["step"] == old["step"] == 1
    assert new["mu_product"] == old["mu_product"]
    torch.testing.assert_close(new["exp_avg"], old["exp_avg"] * s)


@pytest.mark.parametrize(("optimizer_class", "keywords"), OPTIMIZERS)
def test_reset(optimizer_class, keywords) -> None:
    """Touched parameters start like new ones at the next step, the others go on."""
    model, optimizer = trained(optimizer_class, **keywords)
    dash_shrink(model, data(), optimizer=optimizer, optimizer_state="reset")
    assert not optimizer.state.get(model[0].weight)
    assert optimizer.state[model[1].weight]
    fresh = optimizer_class([model[0].weight], lr=0.01, **keywords)
    x, y = data()[0]
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    start = model[0].weight.detach().clone()
    fresh.step()
    expected = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.copy_(start)
    if optimizer_class is not torch.optim.Adagrad:  # Adagrad builds its state in the constructor
        optimizer.step()
        assert_same(model[0].weight.detach(), expected)


def test_keep_is_the_default() -> None:
    """The official code keeps momentum; parity needs the same."""
    model, optimizer = trained(momentum=0.9)
    before = copy.deepcopy(optimizer.state_dict())
    dash_shrink(model, data(), optimizer=optimizer)
    assert_same(optimizer.state_dict()["state"], before["state"])


def test_param_groups_and_tensors_of_other_models() -> None:
    """One optimizer over several groups and several models: only the shrunk ones are touched."""
    model, _ = trained()
    other = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "lr": 0.1},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
            {"params": other.parameters(), "lr": 1e-4},
        ]
    )
    (model(data()[0][0]).square().mean() + other(torch.ones(3)).square().mean()).backward()
    optimizer.step()
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    old = {id(p): copy.deepcopy(s) for p, s in optimizer.state.items()}
    excluded = model[0].weight
    report = dash_shrink(
        model, data(), optimizer=optimizer, optimizer_state="scale", exclude="0.weight"
    )
    assert set(report.factors) == {"4.weight", "4.bias"}
    for p in (*other.parameters(), excluded, model[1].weight, model[1].bias):
        assert_same(optimizer.state[p], old[id(p)])
    for name, s in report.factors.items():
        p = model.get_parameter(name)
        torch.testing.assert_close(optimizer.state[p]["exp_avg"], old[id(p)]["exp_avg"] * s)
        assert_same(optimizer.state[p]["step"], old[id(p)]["step"])
    after = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    assert after == groups


@pytest.mark.parametrize("rule", ["keep", "reset", "scale"])
def test_master_copies_always_follow(rule: str) -> None:
    """A float32 master that keeps the old value undoes the shrink at the next step."""
    model, optimizer = trained(momentum=0.9)
    for p in model.parameters():
        optimizer.state[p]["master_param"] = p.detach().float().clone()
    dash_shrink(model, data(), optimizer=optimizer, optimizer_state=rule)
    for p in model.parameters():
        torch.testing.assert_close(optimizer.state[p]["master_param"], p.detach(), rtol=0, atol=0)
    if rule == "reset":
        assert not optimizer.state[model[0].weight]["momentum_buffer"].any()


def test_shadow_weights_shrink_along() -> None:
    """An EMA that stays behind pulls the weights back; a state dict is accepted as well."""
    model, _ = trained(momentum=0.9)
    shadow = AveragedModel(model)
    with torch.no_grad():
        for p in shadow.parameters():
            p.mul_(1.5)
    masters = {n: p.detach().double() for n, p in model.named_parameters()}
    old = {n: p.detach().clone() for n, p in shadow.module.named_parameters()}
    old_masters = {n: p.clone() for n, p in masters.items()}
    report = dash_shrink(model, data(), along=[shadow, masters])
    for n, p in shadow.module.named_parameters():
        s = report.factors.get(n, torch.ones(()))
        torch.testing.assert_close(p.detach(), old[n] * s, rtol=1e-6, atol=0)
        torch.testing.assert_close(masters[n], old_masters[n] * s, rtol=1e-6, atol=0)
