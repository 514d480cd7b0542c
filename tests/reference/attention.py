"""Attention logits of transformers' models, from the weights and the layer's input in float64."""

import torch
from torch import Tensor, nn


def rotated(x: Tensor, theta: float, neighbours: bool) -> Tensor:
    """Rotary embedding of (..., length, width): pairs are neighbours, or half the width apart."""
    length, width = x.shape[-2:]
    angles = torch.arange(length).double()[:, None] / theta ** (
        torch.arange(0, width, 2).double() / width
    )
    turn = torch.polar(torch.ones_like(angles), angles)
    pairs = x.unflatten(-1, (-1, 2)) if neighbours else x.unflatten(-1, (2, -1)).mT
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    return turned.flatten(-2)  # queries and keys are permuted alike


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    bias = 0.0 if layer.bias is None else layer.bias.double()
    return x @ layer.weight.double().T + bias


def _norm(layer: nn.Module, x: Tensor) -> Tensor:
    size = (x.square().mean(-1, keepdim=True) + layer.variance_epsilon).sqrt()
    return layer.weight.double() * x / size


@torch.no_grad()
def llama_logits(attention: nn.Module, x: Tensor, heads: int, kv: int, theta: float) -> Tensor:
    """(batch, heads, length, length), all pairs, of Llama, Mistral and Qwen2."""
    q, k = (
        rotated(_linear(layer, x.double()).unflatten(-1, (n, -1)).transpose(1, 2), theta, False)
        for layer, n in ((attention.q_proj, heads), (attention.k_proj, kv))
    )
    return q @ k.repeat_interleave(heads // kv, 1).mT / q.shape[-1] ** 0.5


@torch.no_grad()
def latent_logits(attention: nn.Module, x: Tensor, heads: int, theta: float) -> Tensor:
    """The same of DeepSeek-V3's multi-head latent attention."""
    x = x.double()
    plain, rotary = attention.qk_nope_head_dim, attention.qk_rope_head_dim
    if attention.q_lora_rank is None:
        q = _linear(attention.q_proj, x)
    else:
        inner = _norm(attention.q_a_layernorm, _linear(attention.q_a_proj, x))
        q = _linear(attention.q_b_proj, inner)
    q = q.unflatten(-1, (heads, plain + rotary)).transpose(1, 2)
    compressed = _linear(attention.kv_a_proj_with_mqa, x)
    latent, turned = compressed.split([attention.kv_lora_rank, rotary], -1)
    k = _linear(attention.kv_b_proj, _norm(attention.kv_a_layernorm, latent))
    k = k.unflatten(-1, (heads, -1)).transpose(1, 2)[..., :plain]
    shared = rotated(turned[:, None], theta, True)
    by_place = rotated(q[..., plain:], theta, True) @ shared.mT
    return (q[..., :plain] @ k.mT + by_place) / (plain + rotary) ** 0.5
