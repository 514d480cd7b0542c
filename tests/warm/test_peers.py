"""Uniform shrink, shrink-and-perturb and head resets do what their papers define."""

import math

import pytest
import torch
from torch import nn

from warmstart import (
    PRESETS,
    fire_reinit,
    head_reset,
    shrink_and_perturb,
    uniform_shrink,
)


def net() -> nn.Sequential:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 16, 5)
    )
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 1.5)
    return model


def state(model: nn.Module) -> dict:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def test_uniform_shrink_multiplies_layers_and_nothing_else() -> None:
    """The control that direction has to beat must itself be exact."""
    model = net()
    before = state(model)
    report = uniform_shrink(model, 0.25)
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n] * (1.0 if n.startswith("1.") else 0.25))
    assert {s.name for s in report.skipped} == {"1.weight", "1.bias"}
    assert report.row("3.weight").norm_after == pytest.approx(
        0.25 * float(before["3.weight"].norm())
    )
    with pytest.raises(ValueError, match=r"factor must be in \(0, 1\], got 1.5"):
        uniform_shrink(model, 1.5)


def test_preset_ash_adds_a_scaled_fresh_initialization_to_every_parameter() -> None:
    """Ash & Adams: 0.4 w + 0.1 fresh, BatchNorm included; the noise must have the init's size."""
    model = net()
    before = state(model)
    random = torch.get_rng_state()
    shrink_and_perturb(model, "ash", seed=7)
    assert torch.equal(torch.get_rng_state(), random)
    fresh = {n: (p.detach() - 0.4 * before[n]) / 0.1 for n, p in model.named_parameters()}
    torch.testing.assert_close(fresh["1.weight"], torch.ones(6), rtol=0, atol=1e-5)
    bound = 1 / math.sqrt(96)  # torch's default for Linear: U(-1/sqrt(fan_in), 1/sqrt(fan_in))
    assert float(fresh["3.weight"].abs().max()) <= bound * (1 + 1e-5)
    # 0.15 is several standard errors of a sample's deviation at this many weights.
    assert float(fresh["3.weight"].std()) == pytest.approx(bound / math.sqrt(3), rel=0.15)
    twin = net()
    shrink_and_perturb(twin, "ash", seed=7)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_preset_dash_adds_fixed_noise_to_layers_only() -> None:
    """The baseline in DASH's code: 0.3 w + N(0, 0.01^2), biases included, BatchNorm not."""
    model = net()
    before = state(model)
    shrink_and_perturb(model, "dash")
    assert torch.equal(model[1].weight, before["1.weight"])
    noise = model[3].weight.detach() - 0.3 * before["3.weight"]
    # As above: 480 weights, a standard error of 3 %.
    assert float(noise.std()) == pytest.approx(0.01, rel=0.15)
    assert not torch.equal(model[3].bias.detach(), 0.3 * before["3.bias"])


def test_preset_interpolate_goes_towards_the_initial_weights() -> None:
    """FIRE's baseline: 0.2 w + 0.8 w_0; without the initial weights it cannot be done."""
    model, initial = net(), net()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    shrink_and_perturb(model, "interpolate", fresh=initial)
    for p, p0 in zip(model.parameters(), initial.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), 0.2 * (p0.detach() + 1) + 0.8 * p0.detach())
    with pytest.raises(ValueError, match="needs fresh= the initial weights"):
        shrink_and_perturb(model, "interpolate")


def test_preset_dohare_adds_tiny_noise_to_everything() -> None:
    """Meant for every step: no shrink of its own (that is the optimizer's decay), sigma 1e-5."""
    model = net()
    before = state(model)
    shrink_and_perturb(model, "dohare")
    for n, p in model.named_parameters():
        assert 0 < float((p.detach() - before[n]).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"preset": "ashes"}, "preset must be one of .*'ash', 'dash', 'interpolate', 'dohare'"),
        ({"shrink": 1.2}, r"shrink must be in \[0, 1\], got 1.2"),
        ({"perturb": -0.1}, "perturb must be finite and >= 0, got -0.1"),
        ({"fresh": {}}, "fresh has no value for parameter '0.weight'"),
        ({"fresh": lambda: nn.Linear(2, 2)}, "fresh has no value for parameter '0.weight'"),
    ],
)
def test_shrink_and_perturb_refuses(arguments: dict, match: str) -> None:
    """Nothing is written before all new values are known to exist."""
    model = net()
    before = state(model)
    with pytest.raises(ValueError, match=match):
        shrink_and_perturb(model, **{"preset": "ash", **arguments})
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert len(PRESETS) == 4


def test_raw_parameters_need_a_fresh_model() -> None:
    """No one knows how a class token was drawn but the model's constructor."""

    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.full((3,), 2.0))
            self.head = nn.Linear(3, 2)

    model = Token()
    with pytest.raises(ValueError, match="without reset_parameters"):
        shrink_and_perturb(model, "ash")
    shrink_and_perturb(model, "ash", fresh=Token)
    torch.testing.assert_close(model.token.detach(), torch.full((3,), 0.4 * 2 + 0.1 * 2))


def test_head_reset_redraws_the_last_layer_only() -> None:
    """Resetting the wrong layer would destroy the features."""
    model = net()
    before = state(model)
    report = head_reset(model, seed=1)
    assert [r.name for r in report.rows] == ["3.weight", "3.bias"]
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[3].weight, before["3.weight"])
    assert float(model[3].weight.detach().abs().max()) <= 1 / math.sqrt(96)
    head_reset(model, ["0"])
    assert not torch.equal(model[0].weight, before["0.weight"])
    with pytest.raises(ValueError, match=r"layers must be in \[1, 2\], got 3"):
        head_reset(model, 3)
    with pytest.raises(ValueError, match="no module with parameters is named"):
        head_reset(model, ["head"])


def test_head_reset_stops_at_tied_embeddings() -> None:
    """The last layer of a tied language model is its embedding; a layer inside was drawn anew."""
    torch.manual_seed(5)
    model = nn.ModuleDict({"embed": nn.Embedding(7, 4), "mlp": nn.Linear(4, 4)})
    model.add_module("head", nn.Linear(4, 7, bias=False))
    model["head"].weight = model["embed"].weight
    before = state(model)
    with pytest.raises(ValueError, match="the head 'head' is tied to the embedding 'embed'"):
        head_reset(model)
    with pytest.raises(ValueError, match="is tied to the embedding"):
        head_reset(model, 2)
    assert all(torch.equal(x, before[n]) for n, x in state(model).items())
    report = head_reset(model, ["head"])
    assert [(r.name, r.aliases) for r in report.rows] == [("embed.weight", ("head.weight",))]
    assert "embed and head are one weight" in report.notes[0]
    assert model["head"].weight is model["embed"].weight
    assert not torch.equal(model["embed"].weight, before["embed.weight"])


@pytest.mark.parametrize("method", [fire_reinit, shrink_and_perturb, head_reset])
def test_peers_hand_over_the_optimizer(method) -> None:
    """The same promise for every method: reset state, masters follow, scale is refused."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(8, 2, 6, 6)).square().mean().backward()
    optimizer.step()
    weight = model[3].weight
    optimizer.state[weight]["master_param"] = weight.detach().clone()
    with pytest.raises(ValueError, match="has no factors to scale by"):
        method(model, optimizer=optimizer, optimizer_state="scale")
    method(model, optimizer=optimizer, optimizer_state="reset")
    assert torch.equal(optimizer.state[weight]["master_param"], weight.detach())
    assert not optimizer.state[weight]["momentum_buffer"].any()
