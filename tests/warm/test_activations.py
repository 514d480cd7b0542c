"""Diagnostics sees the activations that a model has, and says so where it sees none."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from warmstart import Diagnostics


def seen(model: nn.Module, *inputs, **options) -> dict[str, float]:
    """Dormant share of every activation that was read."""
    keywords = options.pop("keywords", {})
    with Diagnostics(model, **options) as probe:
        model(*inputs, **keywords)
        probe.record(0)
    return {r.layer: r.dormant for r in probe.readings if r.kind == "activation"}


class Functional(nn.Module):
    """Activations as calls, some of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.one(x))
        x = torch.relu(self.two(x)).tanh()
        return self.block(functional.relu(x, inplace=True))


def test_functional_calls_are_read() -> None:
    """A net that writes F.relu had no reading at all, without a word."""
    torch.manual_seed(0)
    model = Functional()
    found = seen(model, torch.randn(16, 4))
    assert set(found) == {"relu", "relu:2", "tanh", "relu:3", "block.1"}
    with torch.no_grad():
        model.one.weight[:2] = 0.0
        model.one.bias[:2] = -1.0
    assert seen(model, torch.randn(16, 4))["relu"] >= 0.25
    assert set(seen(model, torch.randn(16, 4), layers="block.1")) == {"block.1"}


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "mpnet", "vit", "t5"])
def test_transformers_are_read(name: str) -> None:
    """GELUActivation and its kin are classes of transformers, not of torch."""
    from warm.architectures import small

    torch.manual_seed(0)
    model = small(name)
    tokens = torch.randint(64, (2, 8))
    keywords = {"input_ids": tokens}
    if name == "vit":
        keywords = {"pixel_values": torch.randn(2, 3, 32, 32)}
    if name == "t5":
        keywords["decoder_input_ids"] = tokens
    found = seen(model, keywords=keywords)
    assert len(found) >= 2
    assert all(0.0 <= share <= 1.0 for share in found.values())


def test_nothing_seen_is_a_warning() -> None:
    """A model without activations, or with ones nobody knows, must not look healthy."""
    model = nn.Linear(3, 2)
    with Diagnostics(model) as probe:
        model(torch.randn(4, 3))
        with pytest.warns(UserWarning, match="no activation was seen in 1 forward pass"):
            probe.record(0)
    assert {r.kind for r in probe.readings} == {"weight"}
    with Diagnostics(model) as probe, pytest.raises(RuntimeError, match="no forward pass"):
        probe.record(0)


def test_nothing_stays_on_the_model() -> None:
    """Hooks and the dispatch end with the block, also where a forward pass fails."""
    model = Functional()
    with Diagnostics(model) as probe:
        with pytest.raises(RuntimeError):
            model(torch.randn(2, 3))
        assert not torch.overrides._get_current_function_mode_stack()
        model(torch.randn(2, 4))
        probe.record(0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not torch.overrides._get_current_function_mode_stack()
