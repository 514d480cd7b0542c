"""Attention cut head by head: as wide as the model says, and stepped as heads on their own."""

from typing import Any

import pytest
import torch
from torch import nn

from torch_specgd import Muon, param_groups


def splits(model: nn.Module) -> dict[str, object]:
    routes = param_groups(model, per_head=True).routes
    return {r.name: r.settings["split"] for r in routes if r.param.ndim > 1}


def attention(**shapes: tuple[int, int]) -> nn.Module:
    module = nn.Module()
    for name, (inputs, outputs) in shapes.items():
        module.add_module(name, nn.Linear(inputs, outputs, bias=False))
    return module


def in_a_model(module: nn.Module, **settings: Any) -> nn.Module:
    model = nn.ModuleDict({"attn": module, "mlp": nn.Linear(8, 8), "lm_head": nn.Linear(8, 9)})
    model.config = type("Config", (), settings)()
    return model


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_separate_projections(kv_heads: int) -> None:
    """Grouped and shared keys and values have fewer heads; the output is cut along its inputs."""
    shapes = {"q_proj": (8, 8), "k_proj": (8, 2 * kv_heads), "v_proj": (8, 2 * kv_heads)}
    module = attention(**shapes, o_proj=(8, 8))
    found = splits(in_a_model(module, num_attention_heads=4, num_key_value_heads=kv_heads))
    shared = None if kv_heads == 1 else (0, (2,) * kv_heads)
    assert found["attn.q_proj.weight"] == (0, (2,) * 4)
    assert found["attn.k_proj.weight"] == found["attn.v_proj.weight"] == shared
    assert found["attn.o_proj.weight"] == (1, (2,) * 4)
    assert found["mlp.weight"] is None


@pytest.mark.parametrize(
    ("module", "settings", "expected"),
    [
        (attention(qkv_proj=(8, 12), o_proj=(8, 8)), {"num_attention_heads": 4}, (0, (2,) * 6)),
        (attention(query_key_value=(8, 24), dense=(8, 8)), {"n_head": 2}, (0, (4,) * 6)),
        (attention(c_attn=(8, 24), c_proj=(8, 8)), {"n_head": 2}, (0, (4,) * 6)),
        (attention(Wqkv=(8, 24), Wo=(8, 8)), {"head_dim": 2}, (0, (2,) * 12)),
        (attention(qkv=(8, 24), proj=(8, 8)), {}, (0, (8, 8, 8))),  # nobody knows how many heads
    ],
)
def test_fused_projections(module: nn.Module, settings: dict[str, int], expected: object) -> None:
    """Concatenated or interleaved: a head's rows lie together in both."""
    found = splits(in_a_model(module, **settings))
    assert next(iter(found.values())) == expected


def test_multihead_attention_of_torch() -> None:
    """Its own number of heads counts, whatever the config of the model says."""
    found = splits(in_a_model(nn.MultiheadAttention(8, 2), num_attention_heads=8))
    assert found["attn.in_proj_weight"] == (0, (4,) * 6)


def test_latent_attention() -> None:
    """Of each head the rows for keys, then those for values."""
    module = attention(q_proj=(8, 8), kv_b_proj=(4, 10), o_proj=(4, 8))
    found = splits(in_a_model(module, qk_nope_head_dim=3, v_head_dim=2))
    assert found["attn.kv_b_proj.weight"] == (0, (3, 2, 3, 2))


def test_heads_are_stepped_on_their_own() -> None:
    """Scales included, in rows (queries) and in columns (the output)."""
    model = in_a_model(attention(q_proj=(8, 8), o_proj=(8, 8)), num_attention_heads=2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer = Muon(model, lr=1.0, weight_decay=0.0, per_head=True)
    optimizer.step()
    for name, dim in (("attn.q_proj.weight", 0), ("attn.o_proj.weight", 1)):
        p = model.get_parameter(name)
        for new, old, grad in zip(p.chunk(2, dim), before[name].chunk(2, dim),
                                  p.grad.chunk(2, dim), strict=True):  # fmt: skip
            alone = nn.Parameter(old.clone())
            alone.grad = grad.clone()
            Muon([alone], lr=1.0, weight_decay=0.0).step()
            torch.testing.assert_close(new, alone)


def test_heads_need_the_model() -> None:
    """Parameters alone do not say how wide a head is."""
    with pytest.raises(TypeError, match="per_head=True must come with the model"):
        Muon([nn.Parameter(torch.randn(4, 4))], per_head=True)


def test_llama_with_shared_keys() -> None:
    """A real config: grouped-query attention of two key heads."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=70,
    )  # fmt: skip
    found = splits(transformers.LlamaForCausalLM(config))
    prefix = "model.layers.0.self_attn"
    assert found[f"{prefix}.q_proj.weight"] == (0, (8,) * 4)
    assert found[f"{prefix}.k_proj.weight"] == (0, (8,) * 2)
    assert found[f"{prefix}.o_proj.weight"] == (1, (8,) * 4)
