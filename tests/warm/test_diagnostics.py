"""Plasticity diagnostics: numbers against plain definitions, and no trace on the model."""

import csv
import math

import numpy as np
import pytest
import torch
from torch import nn

from warmstart import Diagnostics, dash_shrink
from warmstart.judge.plasticity import dormant_share, effective_rank, features, stable_rank


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 2)
    )


def test_numbers_follow_their_definitions() -> None:
    """Against float64 numpy, on a matrix of known spectrum."""
    g = np.random.default_rng(0)
    x = g.standard_normal((20, 6))
    s = np.linalg.svd(x, compute_uv=False)
    p = s / s.sum()
    assert effective_rank(torch.tensor(x)) == pytest.approx(
        np.exp(-(p * np.log(p)).sum()), rel=1e-5
    )
    assert stable_rank(torch.tensor(x)) == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-5)
    assert effective_rank(torch.zeros(3, 3)) == 0.0
    assert stable_rank(torch.zeros(3, 3)) == 0.0
    rank_one = torch.outer(torch.arange(1.0, 5), torch.ones(3))
    assert effective_rank(rank_one) == pytest.approx(1.0, abs=1e-4)
    assert stable_rank(torch.eye(5)[:, :, None]) == pytest.approx(5.0)


def test_dormant_units() -> None:
    """A dead channel is dormant wherever its zeros are; tau is relative to the layer's mean."""
    maps = torch.rand(8, 5, 3, 3) + 0.5
    maps[:, 2] = 0
    assert dormant_share(maps, 0.0) == pytest.approx(0.2)
    flat = torch.tensor([[1.0, 0.05, 1.0], [1.0, 0.05, 1.0]])
    assert dormant_share(flat, 0.01) == 0.0
    assert dormant_share(flat, 0.1) == pytest.approx(1 / 3)
    tokens = torch.rand(2, 7, 4)
    tokens[..., 1] = 0
    assert dormant_share(tokens, 0.0) == pytest.approx(0.25)
    assert dormant_share(torch.zeros(2, 3), 0.1) == 1.0  # a layer that is dead as a whole
    assert features(maps).shape == (8, 5)
    assert features(tokens).shape == (14, 4)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_stable_rank_of_large_weights(scale: float) -> None:
    """Without all singular values: flat, decaying and deficient spectra, nothing drawn globally."""
    flat = torch.randn(300, 500)
    u, s, v = torch.linalg.svd(flat, full_matrices=False)
    decaying = (u * s / torch.arange(1.0, 301.0)) @ v
    state = torch.get_rng_state()
    for w in (flat, flat.T, decaying, flat[:, :1] * flat[:1]):
        exact = torch.linalg.svdvals(w.double())
        expected = float(exact.square().sum() / exact[0] ** 2)
        assert stable_rank(scale * w) == pytest.approx(expected, rel=2e-3)
    assert stable_rank(torch.zeros(300, 300)) == 0.0
    assert math.isnan(stable_rank(torch.full((300, 300), float("nan"))))
    assert torch.equal(torch.get_rng_state(), state)


def test_records_and_leaves_no_trace(tmp_path) -> None:
    """Cheap enough for each epoch and gone afterwards: no hook, no gradient, no changed output."""
    model = net()
    x = torch.randn(32, 1, 6, 6)
    expected = model(x).detach()
    with Diagnostics(model, samples=16) as probe:
        for epoch in range(3):
            model.zero_grad()
            out = model(x)
            out.square().mean().backward()
            grads = [p.grad.clone() for p in model.parameters()]
            probe.record(epoch)
            assert all(
                torch.equal(a, p.grad) for a, p in zip(grads, model.parameters(), strict=True)
            )
    assert torch.equal(out, expected)
    assert not any(m._forward_hooks for m in model.modules())
    assert len(probe.readings) == 3 * 5
    first = {r.layer: r for r in probe.readings[:5]}
    assert set(first) == {"1", "4", "0.weight", "3.weight", "5.weight"}
    w = model[3].weight
    assert first["3.weight"].norm == pytest.approx(float(w.detach().norm()), rel=1e-6)
    ratio = float(w.grad.norm() / w.detach().norm())
    assert first["3.weight"].gradient_ratio == pytest.approx(ratio, rel=1e-5)
    assert 1.0 <= first["1"].effective_rank <= 4.0
    probe.to_csv(tmp_path / "d.csv")
    with (tmp_path / "d.csv").open() as f:
        assert len(list(csv.DictReader(f))) == 15
    probe.plot(tmp_path / "d.png")
    assert (tmp_path / "d.png").stat().st_size > 1000


def test_keeps_little_of_a_long_sequence() -> None:
    """A transformer's activations are larger than its weights: only rows of them stay."""
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU())
    x = torch.randn(3, 50, 4)
    with Diagnostics(model, samples=20) as probe:
        out = model(x).detach()
        scores, rows = probe._kept["1"]
        assert scores.shape == (8,)
        assert rows.shape == (19, 8)  # every eighth of 150 tokens
        assert rows.untyped_storage().nbytes() == 19 * 8 * 4
        reading = probe.record(0)[0]
    assert reading.dormant == dormant_share(out, 0.1)
    assert torch.equal(rows, out.flatten(0, 1)[::8])


def test_watching_the_last_batch_only() -> None:
    """attach() and detach() around one batch give the readings of watching all of them."""
    model = net()
    batches = torch.randn(3, 8, 1, 6, 6)
    with Diagnostics(model) as always:
        for x in batches:
            model(x)
        expected = always.record(0)
    once = Diagnostics(model)
    for x in batches[:2]:
        model(x)
    once.attach()
    model(batches[2])
    assert once.record(0) == expected
    once.detach()
    assert not any(m._forward_hooks for m in model.modules())


def test_compiled_models_are_watched_uncompiled() -> None:
    """Code that was compiled without hooks does not call them: said so, with the way out."""
    plain, inner = net(), net()
    model = torch.compile(inner, backend="eager")
    x = torch.randn(8, 1, 6, 6)
    model(x)
    with Diagnostics(plain) as probe:
        plain(x)
        expected = probe.record(0)
    with Diagnostics(model) as probe:
        model(x)
        with pytest.raises(RuntimeError, match="compiled model that ran before attach"):
            probe.record(0)
        with torch.compiler.set_stance("force_eager"):
            model(x)
        assert probe.record(0) == expected


def test_diagnostics_refuse() -> None:
    """Wrong thresholds, patterns without a match, and record() before any forward pass."""
    with pytest.raises(ValueError, match="tau must be finite"):
        Diagnostics(net(), tau=-1.0)
    with pytest.raises(ValueError, match="samples must be at least 2"):
        Diagnostics(net(), samples=1)
    with pytest.raises(ValueError, match="matches no module"):
        Diagnostics(net(), layers="relu*")
    with Diagnostics(net(), layers="1") as probe, pytest.raises(RuntimeError, match="no forward"):
        probe.record(0)


def test_report_plot(tmp_path) -> None:
    """The figure of a report, with and without a shuffled null."""
    model = net()
    report = dash_shrink(model, [(torch.randn(8, 1, 6, 6), torch.randint(2, (8,)))])
    report.plot(tmp_path / "r.png")
    assert (tmp_path / "r.png").stat().st_size > 1000
