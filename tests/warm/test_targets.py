"""Which parameters are shrunk, and what is refused or skipped with a reason."""

import pytest
import torch
from torch import nn

from warm.units import check_units, shrink_by_random_direction
from warmstart import dash_shrink, find_targets


class Raw(nn.Module):
    """A class token and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 3, 4))
        self.head = nn.Linear(4, 2)
        self.norm = nn.LayerNorm(4)


def test_include_and_exclude() -> None:
    """Raw parameters are shrunk only when named; include alone replaces the default choice."""
    names = lambda **k: [t.name for t in find_targets(Raw(), **k)[0]]  # noqa: E731
    assert names() == ["head.weight", "head.bias"]
    assert names(include=("default", "token")) == ["token", "head.weight", "head.bias"]
    assert names(include="*norm*") == ["norm.weight", "norm.bias"]
    assert names(exclude="*bias") == ["head.weight"]
    assert names(bias="skip") == ["head.weight"]
    assert names(include=lambda n, p: p.ndim == 3) == ["token"]
    before, g, after = shrink_by_random_direction(Raw(), include="token")
    check_units(before["token"], g["token"], after["token"], [(0, i) for i in range(3)])


@pytest.mark.parametrize("keyword", ["include", "exclude"])
def test_a_pattern_without_match_is_an_error(keyword: str) -> None:
    """A typing error in a pattern must not silently shrink everything."""
    with pytest.raises(ValueError, match=f"{keyword} pattern 'haed.*' matches no parameter"):
        find_targets(Raw(), **{keyword: "haed.*"})


class Tied(nn.Module):
    """Embedding and output head on one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))


def test_tied_weights_are_shrunk_once() -> None:
    """Shrinking once per name would square the factors (0.09 instead of 0.3)."""
    model = Tied()
    x = torch.arange(7)
    before = model.embed.weight.detach().clone()
    report = dash_shrink(model, [(x, x)], floor=0.5)
    row = report.row("head.weight")
    assert row.name == "embed.weight"
    assert row.aliases == ("head.weight",)
    ratio = model.embed.weight.detach() / before
    assert float(ratio.min()) >= 0.5 - 1e-6
    assert model.head.weight is model.embed.weight


def test_two_parameters_on_one_memory_add_their_gradients() -> None:
    """Weights tied by storage instead of by object are one unit set as well."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.detach())
    joined = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    joined[1].weight = joined[0].weight
    with torch.no_grad():
        joined[0].weight.copy_(model[0].weight)
    batch = (torch.randn(8, 4), torch.randint(4, (8,)))
    for m in (model, joined):
        assert len(dash_shrink(m, [batch]).rows) == 1
    torch.testing.assert_close(model[0].weight, joined[0].weight)


def test_frozen_parameters_are_skipped_with_the_reason() -> None:
    """The official code raises a TypeError on frozen layers; fine-tuning always has them."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    report = dash_shrink(model, [(torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))])
    assert {s.name: s.reason for s in report.skipped}["0.weight"].startswith("frozen")
    assert torch.equal(model[0].weight, before)
    assert not model[0].weight.requires_grad


def test_refuses_lazy_meta_complex_and_quantized() -> None:
    """Each would otherwise fail deep inside, or silently do nothing."""
    with pytest.raises(ValueError, match="'weight' is lazy"):
        find_targets(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"'weight' \(3, 2\) is on the meta device"):
        find_targets(nn.Linear(2, 3, device="meta"))
    flat = nn.Linear(2, 3)
    flat.weight._is_flat_param = True  # the mark that FullyShardedDataParallel sets
    with pytest.raises(TypeError, match="'weight' is a flat parameter of FSDP1"):
        find_targets(flat)
    with pytest.raises(TypeError, match="complex64; real"):
        find_targets(nn.Linear(2, 3, dtype=torch.complex64))
    eight = nn.Linear(2, 3).to(torch.float8_e4m3fn)
    with pytest.raises(TypeError, match=r"'weight' is torch.float8_e4m3fn \(quantized\)"):
        find_targets(eight)

    class Wrapped(torch.Tensor):
        """Stands for the weight classes of quantization libraries."""

    layer = nn.Linear(2, 3)
    layer.weight = nn.Parameter(torch.randn(3, 2).as_subclass(Wrapped))
    with pytest.raises(TypeError, match="is a Wrapped"):
        find_targets(layer)


def test_nothing_selected_is_an_error() -> None:
    """Returning an empty report would look like success."""
    with pytest.raises(ValueError, match="no parameter of LayerNorm is selected"):
        find_targets(nn.LayerNorm(3))
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got dict"):
        find_targets({})


@pytest.mark.parametrize("wrap", ["compile", "data_parallel"])
def test_wrappers_are_looked_through(wrap: str) -> None:
    """Users pass what they train: a compiled model or DataParallel."""
    inner = nn.Linear(3, 2)
    model = torch.compile(inner, backend="eager") if wrap == "compile" else nn.DataParallel(inner)
    report = dash_shrink(model, [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))])
    assert [r.name for r in report.rows] == ["weight", "bias"]
