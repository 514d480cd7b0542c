"""LoRA mode: pairing, rates, zero factors, and PEFT with the Hugging Face trainer."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from optimizers.adapters import third_party, with_adapters
from torch_specgd import (
    LoraPair,
    Muon,
    SpecGD,
    SpectrumTracker,
    find_lora_pairs,
    lora_param_groups,
    lora_report,
)
from torch_specgd.step import pieces


class Layer(nn.Module):
    """An adapter as loralib writes it: parameters, and one number for the scale."""

    def __init__(self, m: int = 6, n: int = 5, r: int = 2, dtype: Any = None) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.randn(r, n, dtype=dtype))
        self.lora_B = nn.Parameter(torch.zeros(m, r, dtype=dtype))
        self.scaling = 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scaling * x @ self.lora_A.T @ self.lora_B.T


@third_party
def test_peft_pairs_are_found_with_their_scale() -> None:
    """A missed adapter would silently not be watched, reported or grouped."""
    model = with_adapters()
    pairs = find_lora_pairs(model)
    assert len(pairs) == 4
    first = pairs[0]
    assert first.name == "base_model.model.model.layers.0.self_attn.q_proj.default"
    assert (first.shape, first.rank, first.scale) == ((32, 32), 4, 2.0)
    assert not first.lora_b.any()
    assert pairs[1].shape == (16, 32)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert first.lora_b is layer.lora_B["default"].weight
    assert torch.allclose(
        first.scale * first.lora_b @ first.lora_a, layer.get_delta_weight("default")
    )


@third_party
def test_several_adapters_are_told_apart() -> None:
    """Two adapters on one weight are two pairs, each with its own scale."""
    from peft import LoraConfig

    model = with_adapters()
    model.add_adapter("other", LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj"]))
    assert len(find_lora_pairs(model)) == 6
    other = find_lora_pairs(model, adapter="other")
    assert [(p.rank, p.scale) for p in other] == [(2, 4.0)] * 2


def test_torchtune_names_are_paired() -> None:
    """Lower-case factors, and a scale given as alpha and rank."""
    layer = nn.Module()
    layer.lora_a, layer.lora_b = nn.Linear(4, 2, bias=False), nn.Linear(2, 6, bias=False)
    layer.alpha, layer.rank = 16, 2
    (pair,) = find_lora_pairs(nn.ModuleDict({"v_proj": layer}))
    assert (pair.name, pair.shape, pair.scale) == ("v_proj", (6, 4), 8.0)


@third_party
def test_embeddings_and_convolutions_are_paired() -> None:
    """PEFT names embedding factors differently, and convolution factors have four dimensions."""
    from peft import LoraConfig, get_peft_model

    model = nn.Sequential(nn.Embedding(11, 6), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 8, 1))
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=["0", "1"]))
    embedding, conv = find_lora_pairs(peft_model)
    assert embedding.shape == (6, 11)
    assert conv.shape == (8, 6 * 9)
    tracker = SpectrumTracker(peft_model, every=1)
    tracker.update()
    assert tracker.history(conv.name)[1].shape == (1, 2)


@third_party
def test_biases_of_adapters_are_no_factors() -> None:
    """lora_bias=True adds vectors named like factors."""
    model = with_adapters(lora_bias=True)
    assert len(find_lora_pairs(model)) == 4
    with pytest.raises(ValueError, match=r"4 trainable parameters are no LoRA factors.*lora_B"):
        lora_param_groups(model, lr_b=0.1, lr_a=0.1)
    groups = lora_param_groups(model, lr_b=0.1, lr_a=0.1, lr_other=0.3)
    assert [(g["factor"], len(g["params"]), g["lr"]) for g in groups] == [
        ("lora_b", 4, 0.1), ("lora_a", 4, 0.1), ("other", 4, 0.3),
    ]  # fmt: skip


def test_zero_factor_makes_no_spurious_step() -> None:
    """lora_b = 0 makes lora_a's gradient exactly zero: no method may step lora_a on it."""
    for make in (
        *[
            lambda p, m=m: SpecGD(p, lr=0.1, method=m)  # type: ignore[misc]
            for m in ("svd", "newton_schulz", "precise", "smoothed")
        ],
        lambda p: Muon(p, lr=0.1, weight_decay=0.0),
    ):
        for dtype in (torch.float32, torch.bfloat16):
            layer = Layer(dtype=dtype)
            before = layer.lora_A.detach().clone()
            optimizer = make(list(layer.parameters()))
            layer(torch.randn(7, 5, dtype=dtype)).square().sub(1).square().sum().backward()
            layer.lora_B.grad = torch.randn_like(layer.lora_B)
            optimizer.step()
            assert not layer.lora_A.grad.any()
            assert torch.equal(layer.lora_A, before)
            assert layer.lora_B.any()


def test_first_step_sets_the_zero_factor_to_lr_times_orthonormal() -> None:
    """The theory's first step, in float32 and for bfloat16 weights."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2**-8)):
        layer = Layer(dtype=dtype)
        optimizer = SpecGD(lora_param_groups([_pair(layer)], lr_b=0.5, lr_a=0.1))
        layer.lora_A.grad = torch.zeros_like(layer.lora_A)
        layer.lora_B.grad = torch.randn_like(layer.lora_B)
        optimizer.step()
        b = layer.lora_B.detach().float()
        gram = b.T @ b
        assert float((gram - 0.25 * torch.eye(2)).abs().max()) < tolerance


def _pair(layer: Layer) -> LoraPair:
    return LoraPair("layer", layer.lora_B, layer.lora_A, layer.scaling)


def test_factors_are_orthogonalized_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 would blow rounding noise of rank-deficient factors up to full size."""
    seen = []
    original = pieces.orthogonalize_together

    def spy(xs: list[torch.Tensor], outs: list[torch.Tensor], **options: Any) -> None:
        seen.extend((tuple(x.shape), x.dtype, options["dtype"]) for x in xs)
        original(xs, outs, **options)

    monkeypatch.setattr(pieces, "orthogonalize_together", spy)
    layers = nn.ModuleList([Layer(dtype=torch.bfloat16) for _ in range(3)])
    optimizer = SpecGD(
        lora_param_groups(layers, lr_b=0.1, lr_a=0.1), momentum=0.9, method="newton_schulz"
    )
    for p in layers.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    # All adapters together: one call per factor, the three layers stacked.
    wide = (torch.float32, torch.float32)
    assert seen == [((3, 6, 2), *wide), ((3, 2, 5), *wide)]
    assert all(s["momentum_buffer"].dtype == torch.float32 for s in optimizer.state.values())


def test_rank_deficient_bfloat16_gradient_keeps_its_rank() -> None:
    """The measured failure of bf16 orthogonalization: null directions as large as real ones."""
    w = nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16))
    u, v = torch.randn(64, 1), torch.randn(1, 64)
    w.grad = (torch.sign(u) @ torch.sign(v)).bfloat16()
    SpecGD([w], lr=1.0, method="newton_schulz").step()
    sigma = torch.linalg.svdvals(w.detach().float())
    assert float(sigma[1] / sigma[0]) < 0.01


def test_rates_and_shape_factors_are_explicit() -> None:
    """What the report says is what the step does, for SpecGD and for Muon."""
    for make in (SpecGD, lambda g: Muon(g, weight_decay=0.0, momentum=0.0, nesterov=False)):
        layer = Layer(m=32, n=5, r=2)
        groups = lora_param_groups(
            [_pair(layer)], lr_b=0.02, lr_a=0.005, adjust_lr_b="original", adjust_lr_a="none"
        )
        optimizer = make(groups)
        rate = lora_report([_pair(layer)], optimizer)[0]
        assert rate.lr_b == pytest.approx(0.02 * 4)
        assert rate.lr_a == pytest.approx(0.005)
        assert rate.effective_rate == pytest.approx(math.sqrt(0.5 * 0.08 * 0.005))
        assert rate.predicted_steps(4.0) == pytest.approx(2 / rate.effective_rate)
        before = [p.detach().clone() for p in (layer.lora_B, layer.lora_A)]
        for p in layer.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        moved = [
            float(torch.linalg.matrix_norm(p.detach() - q, 2))
            for p, q in zip((layer.lora_B, layer.lora_A), before, strict=True)
        ]
        # Five Newton-Schulz steps of Muon leave singular values within 15 % of one.
        relative = 1e-4 if isinstance(optimizer, SpecGD) else 0.15
        assert moved == pytest.approx([rate.lr_b, rate.lr_a], rel=relative)


def test_report_names_adapters_that_cannot_train() -> None:
    """Both factors zero is a fixed point of every optimizer."""
    layer = Layer()
    nn.init.zeros_(layer.lora_A)
    report = lora_report([_pair(layer)], SpecGD(layer.parameters(), lr=0.1))
    assert report[0].stuck
    assert "both factors are zero" in str(report)
    assert lora_report([_pair(layer)], SpecGD([layer.lora_A], lr=0.1))[0].effective_rate == 0.0
    assert lora_report([_pair(layer)], SpecGD([layer.lora_A], lr=0.1))[0].predicted_steps(1) == (
        math.inf
    )


def test_groups_follow_a_scheduler_and_a_checkpoint() -> None:
    """Per-factor rates survive both."""
    layer = Layer()
    optimizer = SpecGD(lora_param_groups([_pair(layer)], lr_b=0.4, lr_a=0.1, weight_decay=0.0))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5)
    assert [g["lr"] for g in optimizer.param_groups] == [0.2, 0.05]
    other = SpecGD(lora_param_groups([_pair(layer)], lr_b=9.0, lr_a=9.0))
    other.load_state_dict(optimizer.state_dict())
    assert [(g["factor"], g["lr"]) for g in other.param_groups] == [
        ("lora_b", 0.2),
        ("lora_a", 0.05),
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LoraPair("x", torch.ones(3, 2), torch.ones(3, 2)), "lora_b of 'x' must be"),
        (lambda: LoraPair("x", torch.ones(3), torch.ones(3, 2)), "must be a matrix"),
        (lambda: lora_param_groups(nn.Linear(2, 2), lr_b=1, lr_a=1), "found no LoRA factors"),
        (
            lambda: lora_param_groups(Layer().requires_grad_(False), lr_b=1, lr_a=1),
            "no LoRA factor is trainable",
        ),
        (
            lambda: lora_report(layer := Layer(), torch.optim.SGD(layer.parameters())),
            "the optimizer is not spectral",
        ),
        (
            lambda: find_lora_pairs(nn.ParameterDict({"lora_A": torch.ones(2, 3)})),
            "has only lora_a",
        ),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    """Before training starts."""
    with pytest.raises(ValueError, match=message):
        call()


@third_party
def test_a_head_beside_adapters_is_adamws() -> None:
    """PEFT keeps one under modules_to_save; orthogonalized, it cost 0.05 nats of MiniLM."""
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        vocab_size=50, num_labels=2,
    )  # fmt: skip
    lora = LoraConfig(r=4, target_modules=["query"], task_type="SEQ_CLS")
    model = get_peft_model(BertForSequenceClassification(config), lora)
    groups = lora_param_groups(model, lr_b=0.1, lr_a=0.1, lr_other=1e-3)
    routes = {name: g["use_muon"] for g in groups for name, _ in g["params"]}
    assert routes.pop("base_model.model.classifier.modules_to_save.default.weight") is False
    assert routes.pop("base_model.model.classifier.modules_to_save.default.bias") is False
    assert len(routes) == 2
    assert all(routes.values())
    assert [g["lr"] for g in groups] == [0.1, 0.1, 1e-3]
    Muon(groups)
