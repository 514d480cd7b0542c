"""Numbers: scale of the loss, short floating-point types, zeros, bounds (property tests)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from reference.dash import clamp, cosine, official_shrink
from warmstart import (
    GradientDirection,
    dash_shrink,
    shrink_factors,
    shrink_state_dict,
    unit_cosine,
)

CHECK = settings(derandomize=True, deadline=None, max_examples=50)


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 3)
    ).to(dtype)


def data(dtype: torch.dtype = torch.float32) -> list:
    g = torch.Generator().manual_seed(6)
    return [
        (torch.randn(8, 1, 8, 8, generator=g).to(dtype), torch.randint(3, (8,), generator=g))
        for _ in range(3)
    ]


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 3.0, 1e12])
def test_loss_scale_does_not_matter(scale: float) -> None:
    """After 99.9 % train accuracy gradients are tiny; an epsilon would flatten cosines."""
    plain, scaled = net(), net()
    dash_shrink(plain, data(), cross_entropy)
    dash_shrink(scaled, data(), lambda out, y: scale * cross_entropy(out, y))
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_loss_scale_does_not_matter_to_own_backward_passes(scale: float) -> None:
    """A fed direction has no loss to be scaled by: its gradients are as small as they are."""
    plain, scaled = net(), net()
    for model, factor in ((plain, 1.0), (scaled, scale)):
        direction = GradientDirection(model, reliability=True)
        for x, y in data():
            (factor * cross_entropy(model(x), y)).backward()
            direction.update()
            model.zero_grad()
        dash_shrink(model, direction)
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_loss_scale_does_not_matter_to_magnitudes_and_products(scale: float) -> None:
    """Cosines that are computed from parts, of weight normalization and of merged adapters."""
    factors = []
    for factor in (1.0, scale):
        torch.manual_seed(0)
        model = nn.Module()
        model.normed = nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))
        model.lora_A, model.lora_B = nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)
        batch = (torch.randn(16, 5), torch.randint(3, (16,)))
        report = dash_shrink(
            model,
            [batch],
            forward=lambda m, b, f=factor: (
                f * cross_entropy(m.lora_B(m.lora_A(m.normed(b[0]).tanh())), b[1])
            ),
            floor=0.01,
            lora="product",
        )
        factors.append(report.factors)
    assert set(factors[0]) == {
        "normed.parametrizations.weight.original0", "normed.bias", "lora_B.weight"
    }  # fmt: skip
    for name, s in factors[0].items():
        torch.testing.assert_close(factors[1][name], s, rtol=1e-5, atol=1e-7)
    assert float(factors[0]["lora_B.weight"].max()) > 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_short_types_follow_the_reference(dtype: torch.dtype, scale: float) -> None:
    """16-bit weights: accumulated in float32, no underflow in float16, rounded once."""
    model = net(dtype)
    expected = official_shrink(model, [(x, y) for x, y in data(dtype)], cross_entropy, 0.3, 0.3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    report = dash_shrink(model, data(dtype), lambda out, y: scale * cross_entropy(out.float(), y))
    for name, p in model.named_parameters():
        assert p.dtype == dtype
        assert report.factors[name].dtype == torch.float32
        # The backward pass itself runs in 16 bits: gradients carry errors of some eps each.
        eps = torch.finfo(dtype).eps
        big = float(before[name].abs().max())
        error = np.abs(p.detach().double().numpy() - expected[name]).max()
        assert error <= 16 * eps * big


def test_float64_stays_float64() -> None:
    """Scientific users run in double precision and expect it to the end."""
    model = net(torch.float64)
    expected = official_shrink(model, data(torch.float64), cross_entropy, 0.3, 0.3)
    dash_shrink(model, data(torch.float64))
    for name, p in model.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), expected[name], rtol=0, atol=1e-13)


@CHECK
@given(
    st.integers(0, 2**31),
    st.integers(1, 6),
    st.integers(1, 9),
    st.sampled_from([1e-30, 1e-15, 1.0, 1e15]),
    st.sampled_from([1e-30, 1e-15, 1.0, 1e15]),
    st.floats(0.01, 1.0),
)
def test_factors_are_the_clamped_cosine(
    seed: int, units: int, size: int, scale_w: float, scale_g: float, floor: float
) -> None:
    """For any scale: equal to float64 sums, inside [floor, 1], never growing, never flipping."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(units, size, generator=g) * scale_w
    d = torch.randn(units, size, generator=g) * scale_g
    s = shrink_factors(w, d, (1,), floor=floor).flatten()
    expected = [clamp(cosine(a, b), floor) for a, b in zip(w.tolist(), d.tolist(), strict=True)]
    np.testing.assert_allclose(s.numpy(), expected, rtol=0, atol=1e-6)
    assert float(s.max()) <= 1.0
    assert float(s.min()) >= np.float32(floor)


def test_cosine_of_parallel_vectors_never_exceeds_one() -> None:
    """Rounding gives 1 + 1e-7; a factor above 1 would grow a weight."""
    w = torch.rand(1000, 9, generator=torch.Generator().manual_seed(0))
    assert float(shrink_factors(w, 3 * w, (1,)).max()) <= 1.0
    np.testing.assert_allclose(unit_cosine(w, 3 * w, (1,)), 1.0, rtol=0, atol=1e-6)


def test_zero_units() -> None:
    """Zero gradients go to the floor or stay (by choice); zero weights stay zero without NaN."""
    w = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 1.0]])
    d = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    assert shrink_factors(w, d, (1,), floor=0.3).flatten().tolist() == pytest.approx([0.3, 0.3, 1])
    kept = shrink_factors(w, d, (1,), floor=0.3, zero_gradient="keep")
    assert kept.flatten().tolist() == pytest.approx([1, 0.3, 1])
    with pytest.raises(ValueError, match="zero_gradient must be one of"):
        shrink_factors(w, d, (1,), zero_gradient="zero")


def test_unused_embeddings_can_be_kept() -> None:
    """Tokens that the new data never mentions have no gradient; losing them is a silent harm."""
    for rule, factor in (("floor", 0.3), ("keep", 1.0)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(6, 3), nn.Flatten(), nn.Linear(3, 2))
        before = model[0].weight.detach().clone()
        x = torch.tensor([[0], [1], [2]])
        report = dash_shrink(model, [(x, torch.tensor([0, 1, 0]))], zero_gradient=rule)
        torch.testing.assert_close(model[0].weight[3:], factor * before[3:])
        assert report.row("0.weight").zero_gradient == 3
        assert any("units without any gradient: 0.weight (3 of 6)" in n for n in report.notes)


def test_unused_layers_do_not_fail() -> None:
    """A head that takes no part in this task has no gradient at all."""
    model = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)})
    report = dash_shrink(model, [torch.randn(4, 3)], forward=lambda m, x: m["a"](x).square().mean())
    assert report.row("b.weight").share_at_floor == 1.0


def test_alpha_one_uses_the_last_batch_only() -> None:
    """alpha = 1 forgets everything before; a single batch makes alpha irrelevant."""
    a, b, c = net(), net(), net()
    dash_shrink(a, data(), alpha=1.0)
    dash_shrink(b, data()[-1:], alpha=1.0)
    dash_shrink(c, data()[-1:], alpha=0.2)
    for p, q, r in zip(a.parameters(), b.parameters(), c.parameters(), strict=True):
        assert torch.equal(p, q)
        torch.testing.assert_close(q, r, rtol=1e-6, atol=1e-7)


def test_reliability_is_the_correlation_of_the_halves() -> None:
    """Against two directions of their own, each of every second batch with the whole's weights."""
    model, batches = net(), [*data(), *data()[::-1]]
    report = dash_shrink(model, batches, reliability=True, dry_run=True)
    plain = dash_shrink(model, batches, dry_run=True)
    assert all(torch.equal(report.factors[n], s) for n, s in plain.factors.items())
    assert all(r.reliability is None for r in plain.rows)
    halves: list[dict[str, torch.Tensor]] = [{}, {}]
    for i, (x, y) in enumerate(batches):
        gradients = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
        for (n, _), g in zip(model.named_parameters(), gradients, strict=True):
            part = -g.double() * 0.3 * 0.7 ** (len(batches) - 1 - i)
            halves[i % 2][n] = halves[i % 2].get(n, 0) + part
    for name, dims in (("0.weight", (2, 3)), ("3.weight", (1,)), ("5.weight", (1,))):
        w = model.get_parameter(name).detach().double()
        a, b = (unit_cosine(w, h[name], dims).flatten().numpy() for h in halves)
        expected = np.corrcoef(a, b)[0, 1]
        assert report.row(name).reliability == pytest.approx(expected, abs=1e-4)
        assert report.row(name).median_factor == float(report.factors[name].median())
    assert report.row("3.bias").reliability is None  # one unit
    assert "halves" in str(report)
    assert "halves" not in str(plain)


def test_reliability_tells_signal_from_noise() -> None:
    """Gradients that repeat agree with themselves, random ones do not, and the report says so."""
    model = nn.Linear(30, 50, bias=False)
    same = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    outcomes = []
    for noise in (0.0, 1.0):
        direction = GradientDirection(model, reliability=True)
        g = torch.Generator().manual_seed(1)
        for _ in range(4):
            direction.update(
                {"weight": same * (1 - noise) + noise * torch.randn(50, 30, generator=g)}
            )
        resumed = GradientDirection(model, reliability=True)
        resumed.load_state_dict(direction.state_dict())
        outcomes.append(dash_shrink(model, resumed, dry_run=True, reliability=True))
        offline = shrink_state_dict(model.state_dict(), direction.state_dict())[1]
        assert offline.row("weight").reliability == outcomes[-1].row("weight").reliability
    good, bad = outcomes
    assert good.row("weight").reliability == pytest.approx(1.0, abs=1e-5)
    assert abs(bad.row("weight").reliability) < 0.5  # 3.5 standard errors of 50 independent pairs
    assert any("even and odd batches disagree" in n for n in bad.notes)
    assert not any("even and odd" in n for n in good.notes)
    with pytest.raises(ValueError, match="with reliability=True; it kept no halves"):
        dash_shrink(model, GradientDirection(model), reliability=True)
    with pytest.raises(ValueError, match="was not built with reliability=True"):
        resumed.load_state_dict(GradientDirection(model).state_dict())


def test_single_numbers_are_told_to_be_signs() -> None:
    """A 1x1 convolution's kernels have one entry: factor 1 or floor, and the report warns."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Flatten(), nn.Linear(16, 2))
    batch = (torch.randn(8, 3, 2, 2), torch.randint(2, (8,)))
    report = dash_shrink(model, [batch], dry_run=True)
    values = {round(s, 6) for s in report.factors["0.weight"].flatten().tolist()}
    assert values == {1.0, 0.3}
    assert any(n.startswith("units of 0.weight are single numbers") for n in report.notes)
    filters = dash_shrink(model, [batch], dry_run=True, units="filter")
    assert not any("single numbers" in n for n in filters.notes)


def test_order_matters() -> None:
    """Oldest first: reversing the loader changes the moving average."""
    a, b = net(), net()
    dash_shrink(a, data())
    dash_shrink(b, data()[::-1])
    assert any(not torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_update_refuses_bad_gradients_before_it_changes() -> None:
    """A NaN must not enter an average that lives for a whole epoch."""
    model = nn.Linear(3, 2)
    direction = GradientDirection(model)
    with pytest.raises(RuntimeError, match="batch 0: no watched parameter has a gradient"):
        direction.update()
    direction.update({"weight": torch.ones(2, 3), "bias": torch.ones(2)})
    before = direction["weight"].clone()
    bad = {"weight": torch.ones(2, 3), "bias": torch.tensor([1.0, float("inf")])}
    with pytest.raises(ValueError, match=r"batch 1: gradient is NaN or infinite .*\(bias \(2,\)\)"):
        direction.update(bad)
    assert torch.equal(direction["weight"], before)
    assert direction.num_batches == 1
    with pytest.raises(ValueError, match=r"gradient of 'bias' is \(3,\)"):
        direction.update({"bias": torch.ones(3)})
    with pytest.raises(ValueError, match="differ in"):
        direction.load_state_dict({"alpha": 0.3, "num_batches": 1, "directions": {}})
    with pytest.raises(ValueError, match="direction is empty"):
        dash_shrink(model, GradientDirection(model))
