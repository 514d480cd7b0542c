"""Layouts of nets for pictures and diffusion models, as timm, torchvision and diffusers write."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from specgd_common.fused import fused_cut_of
from torch_specgd import param_groups
from torch_specgd.groups.matrix_view import MatrixView

Rows = Sequence[Tensor]


class Attention(nn.Module):
    """An attention's layers, with the numbers that tell its layout."""

    def __init__(self, layers: dict[str, nn.Module], **numbers: object) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        for name, value in numbers.items():
            setattr(self, name, value)


def linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs, bias=False)


def conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 1, bias=False)


def levit(make: Callable[[int, int], nn.Module]) -> Attention:
    layers = {"qkv": make(16, 4 * (2 * 2 + 6)), "proj": make(24, 16)}
    return Attention(layers, num_heads=4, key_dim=2, val_dim=6)


def downsampling() -> Attention:
    layers = {"kv": linear(16, 4 * (2 + 6)), "q": linear(16, 8), "proj": linear(24, 32)}
    return Attention(layers, num_heads=4, key_dim=2, val_dim=6)


def halo() -> Attention:
    return Attention({"q": conv(8, 8), "kv": conv(8, 4 * (2 + 3))}, dim_head_qk=2, dim_head_v=3)


def bottleneck() -> Attention:
    return Attention({"qkv": conv(8, 4 * (2 * 2 + 3))}, num_heads=4, dim_head_qk=2, dim_head_v=3)


def lambda_layer() -> Attention:
    return Attention({"qkv": conv(8, 4 * 2 + 2 + 6)}, num_heads=4, dim_qk=2, dim_v=6)


def head_first() -> Attention:
    return Attention({"qkv": conv(8, 24), "proj": conv(8, 8)}, num_heads=4, head_first=True)


def multiscale() -> Attention:  # torchvision's MViT, where the width changes
    project = nn.Sequential(linear(32, 32))
    return Attention({"qkv": linear(16, 96), "project": project}, num_heads=4, head_dim=8)


def without_projection() -> Attention:
    return Attention({"qkv": linear(16, 96)}, num_heads=4, head_dim=8)


def parallel() -> Attention:
    layers = {"in_proj": linear(8, 32 + 24), "attn_out_proj": linear(8, 8)}
    return Attention({**layers, "mlp_out_proj": linear(32, 8)}, in_split=[32, 8, 8, 8])


def pair() -> Attention:
    return Attention({"qk": linear(8, 16), "v": linear(8, 8), "proj": linear(8, 8)}, num_heads=2)


def joint() -> Attention:
    layers = {"img_attn_qkv": linear(8, 24), "img_attn_proj": linear(8, 8)}
    return Attention({**layers, "to_added_qkv": linear(8, 24)}, num_heads=2)


def differential() -> Attention:  # of Stable Audio: two queries and two keys
    return Attention({"to_qkv": linear(8, 40), "to_out": linear(8, 8)}, num_heads=2)


def wide() -> Attention:  # heads are averaged before the projection
    return Attention({"qkv": linear(16, 48), "proj": linear(8, 8)}, num_heads=2, head_dim=8)


# A module, the name of a layer in it, and how a forward pass takes its outputs apart.
LAYOUTS: dict[str, tuple[Attention, str, Callable[[Tensor], Rows]]] = {
    "LeViT": (levit(linear), "qkv", lambda r: r.view(4, -1).split([2, 2, 6], 1)),
    "LeViT of convolutions": (levit(conv), "qkv", lambda r: r.view(4, -1).split([2, 2, 6], 1)),
    "LeViT's kv": (downsampling(), "kv", lambda r: r.view(4, -1).split([2, 6], 1)),
    "HaloNet": (halo(), "kv", lambda r: r.view(4, -1).split([2, 3], 1)),
    "bottleneck": (bottleneck(), "qkv", lambda r: r.split([8, 8, 12])),
    "lambda layer": (lambda_layer(), "qkv", lambda r: r.split([8, 2, 6])),
    "head first": (head_first(), "qkv", lambda r: r.view(4, 6).chunk(3, 1)),
    "MViT": (multiscale(), "qkv", lambda r: r.chunk(3)),
    "known heads alone": (without_projection(), "qkv", lambda r: r.chunk(3)),
    "attention and MLP": (parallel(), "in_proj", lambda r: r.split([32, 8, 8, 8])),
    "TNT": (pair(), "qk", lambda r: r.chunk(2)),
    "a picture's": (joint(), "img_attn_qkv", lambda r: r.chunk(3)),
    "differential": (differential(), "to_qkv", lambda r: r.chunk(5)),
    "wide projection": (wide(), "qkv", lambda r: r.chunk(3)),
    "what is added": (joint(), "to_added_qkv", lambda r: r.chunk(3)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_cuts_are_what_a_forward_pass_takes_apart(name: str) -> None:
    """Two heads' queries and a third's values would be orthogonalized as one matrix."""
    module, layer, apart = LAYOUTS[name]
    model = nn.ModuleDict({"attn": module, "head": nn.Linear(8, 3)})
    cut = fused_cut_of(model, f"attn.{layer}.weight")
    assert cut is not None
    rows = torch.arange(model.get_parameter(f"attn.{layer}.weight").shape[0])
    found = MatrixView(split=cut).pieces(rows[:, None])
    expected = [part.reshape(-1) for part in apart(rows)]
    assert [part[:, 0].tolist() for part in found] == [part.tolist() for part in expected]


def test_what_is_wider_than_queries_is_no_key() -> None:
    """Attention and MLP side by side, of which nothing tells the sizes, stay whole."""
    module = parallel()
    del module.in_split
    assert fused_cut_of(nn.ModuleDict({"attn": module}), "attn.in_proj.weight") is None


@pytest.mark.parametrize("width", [8, 4])
def test_one_projection_for_queries_and_keys_is_one_matrix(width: int) -> None:
    """Reformer's, and the narrow one of a gated attention unit: nothing in them is concatenated."""
    module = Attention({"to_qk": linear(8, width), "to_v": linear(8, 8), "to_out": linear(8, 8)})
    assert fused_cut_of(nn.ModuleDict({"attn": module}), "attn.to_qk.weight") is None


@pytest.mark.parametrize("name", ["GEGLU", "SwiGLU", "GLU"])
def test_gated_layers_by_class(name: str) -> None:
    """Diffusers keep the gated projection in a module of its own."""
    gated = type(name, (nn.Module,), {})()
    gated.proj = linear(8, 64)
    model = nn.ModuleDict({"net": nn.ModuleList([gated, nn.Dropout(), linear(32, 8)])})
    assert fused_cut_of(model, "net.0.proj.weight") == (0, (32, 32))
    assert fused_cut_of(model, "net.2.weight") is None


def test_grouped_and_transposed_convolutions_are_not_gated() -> None:
    """A weight of two groups has half of its layer's inputs: the layer before looked gated."""
    for second in (nn.Conv2d(64, 32, 3, groups=2), nn.ConvTranspose2d(64, 32, 3)):
        block = nn.Module()
        block.conv1, block.conv2 = nn.Conv2d(32, 64, 3), second
        model = nn.ModuleDict({"layer": block, "fc": nn.Linear(32, 5)})
        assert [r.settings["split"] for r in param_groups(model).routes] == [None] * 6


def adamws(model: nn.Module) -> dict[str, str]:
    """Weights of two or more dimensions that are AdamW's, with the reason."""
    routes = param_groups(model).routes
    return {r.name: r.reason for r in routes if r.param.ndim > 1 and not r.settings["use_muon"]}


@pytest.mark.parametrize("name", ["final_layer", "last_layer"])
def test_a_diffusion_transformers_last_layer(name: str) -> None:
    """Its modulation is declared after the output, which was orthogonalized."""
    model = nn.Module()
    blocks = (nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(3))
    model.blocks = nn.ModuleList(blocks)
    last = nn.Module()
    last.linear, last.modulation = nn.Linear(8, 12), nn.Sequential(nn.SiLU(), nn.Linear(8, 16))
    model.add_module(name, last)
    assert adamws(model) == {
        f"{name}.linear.weight": "output head",
        f"{name}.modulation.1.weight": "output head",
    }


@pytest.mark.parametrize("name", ["conv_out", "proj_out", "outc", "final_conv", "conv_last"])
def test_outputs_that_are_pictures(name: str) -> None:
    """Outside of the blocks; a block's own layer of that name is inside the model."""
    block = nn.ModuleDict({name: nn.Conv2d(8, 8, 3), "conv_in": nn.Conv2d(8, 8, 3)})
    model = nn.ModuleDict({name: nn.Conv2d(8, 3, 3), "blocks": nn.ModuleList([block])})
    model["time"] = nn.Linear(4, 8)
    assert adamws(model) == {f"{name}.weight": "output head"}


def test_the_last_convolution_is_a_guess_that_says_so() -> None:
    """Where nothing tells a net's output, which an upsampling layer may be."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 3, 3))
    assert adamws(model) == {"2.weight": "output head (a guess: declared last)"}


def test_heads_of_several_tasks() -> None:
    """They may be most of a small model; attention's heads in a list are none."""
    several = nn.ModuleDict({"a": nn.Linear(8, 3), "b": nn.Linear(8, 5), "c": nn.Linear(8, 2)})
    model = nn.ModuleDict({"trunk": nn.Linear(4, 8), "heads": several})
    assert set(adamws(model)) == {f"heads.{name}.weight" for name in "abc"}

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.key, self.query, self.value = (nn.Linear(8, 4) for _ in range(3))

    model = nn.ModuleDict({"heads": nn.ModuleList([Head(), Head()]), "lm_head": nn.Linear(8, 5)})
    assert set(adamws(model)) == {"lm_head.weight"}


@pytest.mark.parametrize("name", ["conv_head", "pre_logits"])
def test_layers_before_the_pooling_are_no_head(name: str) -> None:
    """EfficientNet's conv_head is a tenth of its weights."""
    model = nn.ModuleDict({"stem": nn.Conv2d(3, 8, 3), name: nn.Conv2d(8, 32, 1)})
    model["classifier"] = nn.Linear(32, 5)
    assert set(adamws(model)) == {"classifier.weight"}
