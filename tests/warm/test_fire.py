"""Frobenius-isometry reinitialization makes isometries, part by part."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from torch_specgd import param_groups
from warmstart import (
    fire_reinit,
    fire_state_dict,
)


def singular_values(w: torch.Tensor) -> np.ndarray:
    return np.linalg.svd(w.detach().double().numpy(), compute_uv=False)


def test_fire_makes_isometries_where_the_published_iteration_does_not() -> None:
    """Square Gaussian: ten cubic steps leave singular values below 0.5, this none."""
    torch.manual_seed(0)
    layer = nn.Linear(256, 256, bias=False)
    nn.init.normal_(layer.weight)
    start = layer.weight.detach().double()
    x = start / start.norm()
    for _ in range(10):
        x = 1.5 * x - 0.5 * x @ x.T @ x
    assert (singular_values(x) < 0.5).mean() > 0.05
    fire_reinit(layer)
    np.testing.assert_allclose(singular_values(layer.weight), 1.0, rtol=0, atol=1e-3)
    u, _, vt = np.linalg.svd(start.numpy())
    np.testing.assert_allclose(layer.weight.detach().numpy(), u @ vt, rtol=0, atol=1e-2)


@pytest.mark.parametrize("smallest", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (24, 80)])
def test_fire_on_badly_conditioned_weights(shape: tuple[int, int], smallest: float) -> None:
    """Trained weights have singular values far apart; all must come out equal."""
    rng = np.random.default_rng(0)
    k = min(shape)
    u, v = (np.linalg.qr(rng.standard_normal((n, k)))[0] for n in shape)
    w = (u * np.logspace(0, np.log10(smallest), k)) @ v.T
    layer = nn.Linear(shape[1], shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(w))
    fire_reinit(layer)
    s = singular_values(layer.weight) / math.sqrt(shape[0] / shape[1])
    np.testing.assert_allclose(s, 1.0, rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [16, 128])
def test_fire_on_many_random_matrices(size: int) -> None:
    """One in ten square random matrices has a condition number above 20 times its size."""
    torch.manual_seed(1)
    model = nn.ModuleList(nn.Linear(size, size, bias=False) for _ in range(40))
    fire_reinit(model)
    for layer in model:
        np.testing.assert_allclose(singular_values(layer.weight), 1.0, rtol=0, atol=1e-3)


def test_fire_leaves_dead_units_dead() -> None:
    """A zero row has no direction: it stays, and the other rows become orthonormal."""
    layer = nn.Linear(8, 8, bias=False)
    with torch.no_grad():
        layer.weight[3] = 0.0
    fire_reinit(layer)
    assert not layer.weight[3].any()
    s = singular_values(layer.weight)
    np.testing.assert_allclose(s[:7], 1.0, rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_fire_scales_by_the_aspect_ratio(shape: tuple[int, int]) -> None:
    """sqrt(out / in): outputs keep the size of the inputs."""
    layer = nn.Linear(shape[1], shape[0])
    bias = layer.bias.detach().clone()
    fire_reinit(layer)
    s = singular_values(layer.weight)
    np.testing.assert_allclose(s, math.sqrt(shape[0] / shape[1]), rtol=1e-3)
    assert torch.equal(layer.bias, bias)


@pytest.mark.parametrize(
    ("name", "outputs"),
    [("qkv", 24), ("c_attn", 24), ("qkv_proj", 24), ("to_qkv", 24), ("gate_up_proj", 16)],
)
def test_fire_cuts_what_muon_cuts(name: str, outputs: int) -> None:
    """One list of fused projections: a stack left whole has parts of any condition number."""
    model = nn.Module()
    model.attn = nn.ModuleDict({name: nn.Linear(8, outputs, bias=False)})
    model.lm_head = nn.Linear(8, 4)
    dim, sizes = next(g["split"] for g in param_groups(model) if g.get("split"))
    weight = f"attn.{name}.weight"
    offline, _ = fire_state_dict(model.state_dict(), include=weight)
    fire_reinit(model)
    for w in (model.get_parameter(weight), offline[weight]):
        for part in w.detach().split(sizes, dim):
            ratio = math.sqrt(part.shape[0] / part.shape[1])
            np.testing.assert_allclose(singular_values(part), ratio, rtol=1e-3)


def test_fire_cuts_gates_and_grouped_heads() -> None:
    """Gates of recurrent cells are matrices of their own; so are the q, k, v of fewer key heads."""
    cell = nn.LSTM(4, 4)
    fire_reinit(cell)
    for part in cell.weight_hh_l0.detach().chunk(4):
        np.testing.assert_allclose(singular_values(part), 1.0, rtol=1e-3)
    model = nn.ModuleDict({"qkv_proj": nn.Linear(8, 16, bias=False)})
    model.config = SimpleNamespace(num_attention_heads=4, num_key_value_heads=2, hidden_size=8)
    fire_reinit(model)
    for part in model["qkv_proj"].weight.detach().split([8, 4, 4]):
        ratio = math.sqrt(len(part) / 8)
        np.testing.assert_allclose(singular_values(part), ratio, rtol=1e-3)


def test_fire_on_convolutions_fused_projections_and_transposes() -> None:
    """Tap by tap, projection by projection, and in the orientation of the layer."""
    conv = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    pointer = conv.weight.data_ptr()
    fire_reinit(conv)
    assert conv.weight.data_ptr() == pointer
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    for i in range(3):
        for j in range(3):
            s = singular_values(conv.weight[:, :, i, j])
            np.testing.assert_allclose(s, math.sqrt(2) / 9, rtol=1e-3)
    up = nn.ConvTranspose1d(4, 8, 2)
    fire_reinit(up)
    np.testing.assert_allclose(singular_values(up.weight[:, :, 0]), math.sqrt(2) / 2, rtol=1e-3)
    attention = nn.MultiheadAttention(6, 2)
    fire_reinit(attention)
    for part in attention.in_proj_weight.chunk(3):
        np.testing.assert_allclose(singular_values(part), 1.0, rtol=1e-3)
    named = nn.ModuleDict({"qkv": nn.Linear(6, 18)})
    fire_reinit(named)
    for part in named["qkv"].weight.chunk(3):
        np.testing.assert_allclose(singular_values(part), 1.0, rtol=1e-3)
    fused = nn.Linear(6, 12)
    fire_reinit(fused, fused=lambda name, w: 2)
    for part in fused.weight.chunk(2):
        np.testing.assert_allclose(singular_values(part), 1.0, rtol=1e-3)
    with pytest.raises(ValueError, match="12 outputs of 'weight' cannot be split into 5"):
        fire_reinit(fused, fused=lambda name, w: 5)


def test_fire_edge_cases() -> None:
    """Zero matrices stay zero (the published code gives NaN), bf16 stays accurate."""
    zero = nn.Linear(4, 4, bias=False)
    nn.init.zeros_(zero.weight)
    fire_reinit(zero)
    assert not zero.weight.any()
    short = nn.Linear(32, 32, bias=False, dtype=torch.bfloat16)
    fire_reinit(short)
    # bf16 rounds each entry by 2^-9 relative: singular values move by about that much.
    np.testing.assert_allclose(singular_values(short.weight.float()), 1.0, rtol=0, atol=8e-3)
    half = nn.Linear(8, 8, bias=False)
    before = half.weight.detach().clone()
    fire_reinit(half, strength=0.5)
    whole = nn.Linear(8, 8, bias=False)
    with torch.no_grad():
        whole.weight.copy_(before)
    fire_reinit(whole)
    torch.testing.assert_close(half.weight, (before + whole.weight) / 2, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"strength must be in \(0, 1\]"):
        fire_reinit(half, strength=0.0)
    with pytest.raises(ValueError, match="no linear, convolutional or recurrent weight"):
        fire_reinit(nn.Embedding(3, 2))
