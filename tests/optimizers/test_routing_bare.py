"""A parameter in no layer: expert stacks and q, k, v are matrices, the rest is unknown."""

import pytest
import torch
from torch import nn

from torch_specgd import Muon, param_groups


class Attention(nn.Module):
    """XLNet's: q, k, v and the output of shape (d_model, heads, d_head), and what is no matrix."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        shape = (width, heads, width // heads)
        self.q, self.k, self.v, self.o = (nn.Parameter(torch.randn(shape)) for _ in range(4))
        self.seg_embed = nn.Parameter(torch.randn(2, heads, width // heads))
        self.pos_bias_u = nn.Parameter(torch.randn(heads, width // heads))
        self.attention_biases = nn.Parameter(torch.randn(heads, 49))


@pytest.mark.parametrize(
    "name",
    ["latents", "query", "queries", "level_embed", "attention_biases", "pos_bias_v", "table",
     "trainable_tokens_delta", "mask_tokens", "memory"],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(6, 8), (3, 6, 8), (2, 1, 6, 8)])
def test_bare_parameters_are_unknown(name: str, shape: tuple[int, ...]) -> None:
    """A tensor of two dimensions is no matrix for that: its rows may be positions or levels."""
    model = nn.ModuleDict({"layer": nn.Linear(8, 8), "head": nn.Linear(8, 3)})
    model.register_parameter(name, nn.Parameter(torch.randn(shape)))
    (route,) = [r for r in param_groups(model).routes if r.name == name]
    assert (route.settings["use_muon"], route.reason) == (False, "unknown parameter")


def test_heads_in_a_dimension_of_their_own_are_one_matrix() -> None:
    """As a stack of (heads, d_head) they would be orthogonalized in thousands of tiny pieces."""
    attention = Attention()
    routes = {r.name: r for r in param_groups(nn.ModuleDict({"a": attention})).routes}
    for name in "qkvo":
        route = routes[f"a.{name}"]
        assert (route.reason, route.settings["matrix_view"]) == ("matrix", "flatten")
    for name in ("seg_embed", "pos_bias_u", "attention_biases"):
        assert routes[f"a.{name}"].reason == "unknown parameter"
    for p in attention.parameters():
        p.grad = torch.randn_like(p)
    before = attention.q.detach().clone()
    Muon(param_groups(nn.ModuleDict({"a": attention})), lr=1.0, weight_decay=0.0).step()
    moved = torch.linalg.svdvals((attention.q.detach() - before).flatten(1))
    # The default schedule maps singular values to 0.966 to 1.034. In thousands of tiny pieces they
    # would lie between 0 and 2.
    torch.testing.assert_close(moved, torch.ones_like(moved), rtol=0, atol=0.1)


def test_heads_that_come_first_are_a_stack() -> None:
    """(heads, d_model, d_head): each head has its own matrix."""

    class CausalAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W_Q = nn.Parameter(torch.randn(4, 16, 4))

    (route,) = param_groups(CausalAttention()).routes
    assert (route.reason, route.settings["use_muon"]) == ("stack of matrices", True)


def test_experts_in_the_rows_of_one_matrix_are_cut() -> None:
    """DBRX keeps (experts * inner, width) in two dimensions."""

    class ExpertGLU(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.moe_num_experts = 4
            self.w1 = nn.Parameter(torch.randn(4 * 6, 8))

    (route,) = param_groups(ExpertGLU()).routes
    assert route.reason == "matrix, split 6 + 6 + 6 + 6 along 0"


def test_scales_of_channels_are_vectors_by_shape_too() -> None:
    """(C, 1, 1) seen as C matrices of one entry would be sign descent."""
    for shape in [(5, 1, 1), (1, 1, 5), (5, 1, 1, 1), (1, 5, 1)]:
        scale = nn.Parameter(torch.zeros(shape))
        scale.grad = torch.randn(shape)
        optimizer = Muon([scale], lr=0.1)
        optimizer.step()
        assert "exp_avg" in optimizer.state[scale], shape


def test_low_rank_factors_without_layers() -> None:
    """loralib keeps them as parameters; they are matrices all the same."""
    layer = nn.Module()
    layer.lora_A, layer.lora_B = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.zeros(6, 2))
    found = {r.name: r.settings["use_muon"] for r in param_groups(layer).routes}
    assert found == {"lora_A": True, "lora_B": True}
