"""Where fused weights are cut, told by names, siblings and numbers of heads."""

from typing import Any

import pytest
import torch
from torch import nn

from torch_specgd import param_groups


def cut(holder: nn.Module, name: str = "", **settings: Any) -> object:
    """The split of the holder's first weight, or of a named one, inside a model with a config."""
    model = nn.ModuleDict({"attn": holder, "last": nn.Linear(4, 4)})
    if settings:
        model.config = type("Config", (), settings)()
    routes = {r.name: r for r in param_groups(model).routes}
    name = name or next(n for n in routes if n.endswith("weight"))
    return routes[name].settings["split"]


def holder(kind: str = "Attention", **shapes: tuple[int, int]) -> nn.Module:
    """A module of a class of this name with linear layers of (inputs, outputs)."""
    module = type(kind, (nn.Module,), {})()
    for name, (inputs, outputs) in shapes.items():
        module.add_module(name, nn.Linear(inputs, outputs, bias=False))
    return module


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (holder(qkv=(8, 24), proj=(8, 8)), (0, (8, 8, 8))),
        (holder(qkv=(4, 24), proj=(8, 8)), (0, (8, 8, 8))),  # Hiera widens inside attention
        (holder(Wqkv=(8, 12), out_proj=(8, 8)), (0, (8, 2, 2))),  # grouped heads
        (holder(c_attn=(8, 10), c_proj=(8, 8)), (0, (8, 1, 1))),  # multi-query
        (holder(W_pack=(8, 24), o_proj=(8, 8)), (0, (8, 8, 8))),
        (holder(c_attn=(8, 16), q_attn=(8, 8), c_proj=(8, 8)), (0, (8, 8))),  # GPT-2 across
        (holder(to_q=(8, 8), to_kv=(8, 16)), None),
        (holder("FeedForward", fc1=(8, 12), fc2=(6, 8)), (0, (6, 6))),
        (holder("ModernBertMLP", Wi=(8, 20), Wo=(10, 8)), (0, (10, 10))),
        (holder("MLP", linear_fc1=(8, 32), linear_fc2=(16, 8)), (0, (16, 16))),
        (holder("MLP", fc1=(8, 12), fc2=(12, 8)), None),
        (holder("MLP", fc1=(8, 12), fc2=(6, 5)), None),  # nothing says that it is a gate
        (holder("Towers", a=(3, 12), b=(6, 5)), None),
        (holder("Conv", in_proj=(8, 24), out_proj=(8, 8)), (0, (8, 8, 8))),
    ],
)
def test_cuts_by_siblings(module: nn.Module, expected: object) -> None:
    """What the next layer takes says how wide q, or a gate, is: no config is needed."""
    assert cut(module) == expected


def test_keys_and_values() -> None:
    """Halves, unless the config knows that keys and values are shared."""
    shapes = {"kv_proj": (8, 8), "q_proj": (8, 8), "o_proj": (8, 8)}
    assert cut(holder(**shapes)) == (0, (4, 4))
    assert cut(holder(**shapes), num_key_value_heads=1, head_dim=4) == (0, (4, 4))
    assert cut(holder(**shapes), num_key_value_heads=1, head_dim=8) is None


@pytest.mark.parametrize(
    ("kind", "name"),
    [("BloomAttention", "query_key_value"), ("GPTNeoXAttention", "query_key_value"),
     ("DisentangledSelfAttention", "in_proj"), ("MiniMaxLightningAttention", "qkv_proj")],
)  # fmt: skip
def test_interleaved_by_head(kind: str, name: str) -> None:
    """Thirds of these rows are not q, k and v: a cut there would mix heads."""
    module = holder(kind, **{name: (8, 24), "dense": (8, 8)})
    assert cut(module, num_attention_heads=2) == (0, (4, 4, 4), 2)
    assert cut(module) is None  # left whole rather than cut wrongly


def test_groups_and_parts_of_machines() -> None:
    """InternLM2 keeps a key and a value after its queries; CodeGen always has four parts."""
    module = holder("InternLM2Attention", wqkv=(8, 16), wo=(8, 8))
    assert cut(module, num_attention_heads=4, num_key_value_heads=2) == (0, (4, 2, 2), 2)
    assert cut(holder("CodeGenAttention", qkv_proj=(8, 24), out_proj=(8, 8))) == (0, (2, 2, 2), 4)


def test_big_code_and_falcon_say_whether_heads_share_keys() -> None:
    """The same names stand for two layouts."""
    module = holder(c_attn=(8, 24), c_proj=(8, 8))
    module.multi_query = False
    assert cut(module, num_attention_heads=2) == (0, (4, 4, 4), 2)
    module = holder("FalconAttention", query_key_value=(8, 16), dense=(8, 8))
    module.new_decoder_architecture, module.num_kv_heads = True, 2
    assert cut(module, num_attention_heads=4) == (0, (4, 2, 2), 2)
    module = holder("FalconAttention", query_key_value=(8, 12), dense=(8, 8))
    module.multi_query = True
    assert cut(module, num_attention_heads=4) == (0, (8, 2, 2))


def test_gated_delta_nets() -> None:
    """Qwen3-Next's projections hold q, k, v and z, or b and a, of one key head after another."""
    module = holder(in_proj_qkvz=(8, 2 * (3 + 3 + 8 + 8)), in_proj_ba=(8, 2 * 4), out_proj=(16, 8))
    module.num_k_heads, module.num_v_heads, module.head_k_dim, module.head_v_dim = 2, 4, 3, 4
    assert cut(module, "attn.in_proj_qkvz.weight") == (0, (3, 3, 8, 8), 2)
    assert cut(module, "attn.in_proj_ba.weight") == (0, (2, 2), 2)
    module.in_proj_qkv = nn.Linear(8, 2 * (3 + 3 + 8), bias=False)
    assert cut(module, "attn.in_proj_qkv.weight") == (0, (6, 6, 16))
    module.num_k_heads = 3  # contradicts the shapes
    assert cut(module, "attn.in_proj_qkvz.weight") is None


def test_state_space_mixers() -> None:
    """Mamba's input and gate; Mamba 2 has B, C and step sizes beside them."""
    module = holder("MambaMixer", in_proj=(8, 32), out_proj=(16, 8))
    module.A_log = nn.Parameter(torch.randn(16, 4))
    assert cut(module, "attn.in_proj.weight") == (0, (16, 16))
    module = holder("Mamba2Mixer", in_proj=(8, 16 + 16 + 6 + 6 + 4), out_proj=(16, 8))
    module.A_log = nn.Parameter(torch.randn(4))
    module.n_groups, module.ssm_state_size, module.num_heads = 2, 3, 4
    assert cut(module, "attn.in_proj.weight") == (0, (16, 16, 6, 6, 4))


def test_latent_attention() -> None:
    """DeepSeek's compressed keys carry a rotary part, and its expansion keys and values."""
    module = holder(kv_a_proj_with_mqa=(8, 6), kv_b_proj=(4, 20), o_proj=(8, 8))
    ranks = {"kv_lora_rank": 4, "qk_rope_head_dim": 2, "qk_nope_head_dim": 3, "v_head_dim": 2}
    assert cut(module, "attn.kv_a_proj_with_mqa.weight", **ranks) == (0, (4, 2))
    assert cut(module, "attn.kv_b_proj.weight", **ranks) == (0, (3, 2), 4)
    assert cut(module, "attn.kv_b_proj.weight") is None


def test_queries_with_a_gate() -> None:
    """Qwen3-Next's attention gives a gate beside each head's query."""
    module = holder(q_proj=(8, 32), k_proj=(8, 8), v_proj=(8, 8), o_proj=(16, 8))
    assert cut(module, head_dim=4) == (0, (4, 4), 4)


def test_gates_of_convolutions() -> None:
    """A conformer's pointwise convolution before GLU, the depthwise one between them."""
    module = nn.Module()
    module.pointwise_conv1 = nn.Conv1d(8, 16, 1)
    module.depthwise_conv = nn.Conv1d(8, 8, 3, groups=8)
    module.pointwise_conv2 = nn.Conv1d(8, 8, 1)
    assert cut(module) == (0, (8, 8))


def test_layers_inside_small_wrappers() -> None:
    """A linear layer with its batch norm is one layer of the attention around it."""
    module = nn.Module()
    for name, outputs in (("qkv", 24), ("proj", 8)):
        module.add_module(name, nn.ModuleDict({"linear": nn.Linear(8, outputs)}))
    assert cut(module, "attn.qkv.linear.weight") is None  # a dict of layers is no layer
    for name, outputs in (("qkv", 24), ("proj", 8)):
        inner = holder("LinearNorm", linear=(8, outputs))
        inner.norm = nn.BatchNorm1d(outputs)
        module.add_module(name, inner)
    assert cut(module, "attn.qkv.linear.weight") == (0, (8, 8, 8))
