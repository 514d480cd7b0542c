"""Adapters: B alone is shrunk, by its own rows or by those of the merged product."""

import numpy as np
import pytest
import torch
from torch import nn

from reference.dash import clamp, cosine
from warmstart import dash_shrink, find_targets, unit_cosine
from warmstart.shrink.factors import product_cosine


def test_lora_shrinks_b_alone() -> None:
    """Shrinking A and B would square the factor of the product; the base must not move."""
    peft = pytest.importorskip("peft")
    base = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0", "2"]))
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_B" in n:
                p.normal_()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    report = dash_shrink(model, [(torch.randn(8, 6), torch.randint(3, (8,)))])
    assert all("lora_B" in r.name for r in report.rows)
    assert len(report.rows) == 2
    reasons = {s.name: s.reason for s in report.skipped}
    assert any("lora_A" in n and "LoRA A" in why for n, why in reasons.items())
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n]) == ("lora_B" not in n)


def adapted(r: int = 2) -> nn.Module:
    """A peft model whose B factors are not zero any more."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Conv2d(1, 3, 2), nn.Embedding(4, 3))
    return peft.get_peft_model(base, peft.LoraConfig(r=r, target_modules=["0", "2", "3"]))


def adapter_loss(model: nn.Module, batch: tuple) -> torch.Tensor:
    x, image, tokens = batch
    layers = model.base_model.model
    outputs = (layers[0](x), layers[2](image), layers[3](tokens))
    return sum((o.tanh() * torch.linspace(-1, 1, o.numel()).view_as(o)).sum() for o in outputs)


def adapter_batches() -> list:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 6, generator=g), torch.randn(4, 1, 4, 4, generator=g), torch.arange(4))
        for _ in range(3)
    ]


def test_fresh_lora_survives() -> None:
    """B (of embeddings: A) is zero before the first step: no NaN, and the product stays zero."""
    for lora in ("factor", "product"):
        model = adapted()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        report = dash_shrink(model, adapter_batches(), forward=adapter_loss, lora=lora)
        for n, p in model.named_parameters():
            s = 0.3 if "lora_embedding_B" in n else 1.0
            torch.testing.assert_close(p.detach(), s * before[n], rtol=1e-6, atol=0)
        zero = {r.name.split(".")[2]: r.zero_weight == r.units for r in report.rows}
        assert zero == {"0": True, "2": True, "3": False}


def test_lora_product_is_judged_by_the_merged_rows() -> None:
    """Against the merged weight's own gradient, projected on the span of A, in float64."""
    model = adapted().double()
    batches = [(x.double(), i.double(), t) for x, i, t in adapter_batches()]
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora" in n:
                p.normal_()
    layer = model.base_model.model[0]
    layer.base_layer.weight.requires_grad_(True)
    adapter_loss(model, batches[0]).backward()
    # The adapter is added to the base weight, so the merged weight has the base weight's gradient.
    g = -layer.base_layer.weight.grad.numpy()
    layer.base_layer.weight.requires_grad_(False)
    b, a = (f["default"].weight.detach().numpy().copy() for f in (layer.lora_B, layer.lora_A))
    inside = np.linalg.lstsq(a.T, g.T, rcond=None)[0].T @ a
    expected = [clamp(cosine(row, d), 0.2) for row, d in zip(b @ a, inside, strict=True)]
    report = dash_shrink(model, batches[:1], forward=adapter_loss, lora="product", floor=0.2)
    new = layer.lora_B["default"].weight.detach().numpy()
    np.testing.assert_allclose(new, b * np.array(expected)[:, None], rtol=0, atol=1e-12)
    assert np.array_equal(layer.lora_A["default"].weight.detach().numpy(), a)
    units = {r.name.split(".")[2]: (r.unit, r.units, r.unit_size) for r in report.rows}
    assert units == {i: ("row of B A", n, 2) for i, n in (("0", 5), ("2", 3), ("3", 3))}


def test_lora_product_does_not_depend_on_how_it_is_split() -> None:
    """(B, A) and (B R, R^-1 A) are the same adapter; the cosine of B's rows tells them apart."""
    g = torch.Generator().manual_seed(0)
    b, a, r, full = (
        torch.randn(*s, generator=g).double() for s in ((7, 3), (3, 9), (3, 3), (7, 9))
    )
    one = product_cosine(b, a, full @ a.T)
    other_a = torch.linalg.solve(r, a)
    other = product_cosine(b @ r, other_a, full @ other_a.T)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    apart = unit_cosine(b, full @ a.T, (1,)) - unit_cosine(b @ r, full @ other_a.T, (1,))
    assert float(apart.abs().max()) > 0.1
    # Rows of A that repeat: K is singular, the span is what counts.
    double_a, double_b = torch.cat([a, a]), torch.cat([b / 2, b / 2], 1)
    twice = product_cosine(double_b, double_a, full @ double_a.T)
    torch.testing.assert_close(one, twice, rtol=0, atol=1e-9)


def test_lora_product_needs_both_factors() -> None:
    """A B factor without its A cannot be merged; the message names both."""
    model = nn.Module()
    model.lora_B = nn.Linear(2, 5, bias=False)
    with pytest.raises(ValueError, match=r"needs 'lora_B.weight' .* and 'lora_A.weight'"):
        find_targets(model, lora="product")
    with pytest.raises(ValueError, match="lora must be one of"):
        find_targets(model, lora="merged")
