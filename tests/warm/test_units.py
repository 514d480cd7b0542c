"""Every module is shrunk in its own units."""

import pytest
import torch
from torch import nn

from warm.units import check_units, shrink_by_random_direction
from warmstart import dash_shrink

S = slice(None)


LAYERS = [
    # layer, parameter, units="kernel" -> list of index expressions
    (nn.Linear(5, 4), "weight", [(i,) for i in range(4)]),
    (nn.Linear(5, 4), "bias", [(S,)]),
    (nn.Conv1d(3, 4, 3), "weight", [(o, i) for o in range(4) for i in range(3)]),
    (nn.Conv2d(4, 4, 3, groups=2), "weight", [(o, i) for o in range(4) for i in range(2)]),
    (nn.Conv3d(2, 3, 2), "weight", [(o, i) for o in range(3) for i in range(2)]),
    (nn.ConvTranspose2d(2, 3, 3), "weight", [(i, o) for o in range(3) for i in range(2)]),
    (nn.ConvTranspose1d(2, 3, 3), "bias", [(S,)]),
    (nn.Embedding(6, 4), "weight", [(i,) for i in range(6)]),
    (nn.EmbeddingBag(6, 4), "weight", [(i,) for i in range(6)]),
    (nn.MultiheadAttention(4, 2), "in_proj_weight", [(i,) for i in range(12)]),
    (nn.MultiheadAttention(4, 2), "in_proj_bias", [(S,)]),
    (nn.MultiheadAttention(4, 2), "out_proj.weight", [(i,) for i in range(4)]),
    (nn.MultiheadAttention(4, 2, kdim=3, vdim=3), "k_proj_weight", [(i,) for i in range(4)]),
    (nn.GRU(3, 2), "weight_hh_l0", [(i,) for i in range(6)]),
]


@pytest.mark.parametrize(
    ("layer", "name", "units"),
    LAYERS,
    ids=[f"{type(m).__name__}.{name}" for m, name, _ in LAYERS],
)
def test_every_module_in_its_own_units(layer: nn.Module, name: str, units: list[tuple]) -> None:
    """Fused, transposed and embedding weights are silently skipped by other implementations."""
    before, g, after = shrink_by_random_direction(layer)
    check_units(before[name], g[name], after[name], units)


@pytest.mark.parametrize(
    ("layer", "rule", "units"),
    [
        (nn.Conv2d(3, 4, 3), "filter", [(o,) for o in range(4)]),
        (nn.Conv2d(3, 4, 3), "row", [(o,) for o in range(4)]),
        (nn.ConvTranspose2d(2, 3, 3), "filter", [(S, o) for o in range(3)]),
        (nn.ConvTranspose2d(2, 3, 3), "row", [(i,) for i in range(2)]),
        # two groups of two inputs each; output 0 belongs to group 0, output 3 to group 1
        (
            nn.ConvTranspose1d(4, 6, 2, groups=2),
            "filter",
            [(slice(2 * k, 2 * k + 2), o) for k in range(2) for o in range(3)],
        ),
        (nn.Conv2d(3, 4, 3), lambda n, m, p: (1, 2, 3), [(o,) for o in range(4)]),
        (
            nn.Conv2d(3, 4, 3),
            lambda n, m, p: (-1, -2),
            [(o, i) for o in range(4) for i in range(3)],
        ),
        (nn.Conv2d(3, 4, 3), lambda n, m, p: "filter", [(o,) for o in range(4)]),
    ],
)
def test_unit_rules(layer: nn.Module, rule, units: list[tuple]) -> None:
    """A user who asks for per-filter factors gets exactly one factor per filter."""
    before, g, after = shrink_by_random_direction(layer, units=rule, bias="skip")
    check_units(before["weight"], g["weight"], after["weight"], units)


def test_callable_units_can_leave_out() -> None:
    """None from the callable means skip, and the report says so."""
    report = dash_shrink(
        nn.Linear(3, 2),
        [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))],
        units=lambda name, module, p: None if name == "bias" else "row",
    )
    assert [r.name for r in report.rows] == ["weight"]
    assert report.skipped[0].reason == "left out by units"


def test_huggingface_conv1d_units_are_outputs() -> None:
    """transformers stores GPT-2's linear layers as (in, out): a row there is an input."""
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    before, g, after = shrink_by_random_direction(conv1d(4, 3))
    check_units(before["weight"], g["weight"], after["weight"], [(S, o) for o in range(4)])
    check_units(before["bias"], g["bias"], after["bias"], [(S,)])


@pytest.mark.parametrize("style", ["parametrization", "hook"])
def test_weight_norm_shrinks_the_effective_weight_by_the_official_rule(style: str) -> None:
    """Shrinking v of weight_norm does nothing; g must move, by the effective weight's cosine."""
    plain = nn.Conv2d(2, 3, 3)
    normed = nn.Conv2d(2, 3, 3)
    normed.load_state_dict(plain.state_dict())
    if style == "parametrization":
        nn.utils.parametrizations.weight_norm(normed)
    else:
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(normed)
    head = nn.Sequential(nn.Flatten(), nn.Linear(27, 5))
    batches = [(torch.randn(8, 2, 5, 5), torch.randint(5, (8,))) for _ in range(3)]
    for conv in (plain, normed):
        model = nn.Sequential(conv, nn.ReLU(), head)
        dash_shrink(model, batches, units="filter", include="0.*", floor=0.05, bias="skip")
    normed(batches[0][0])  # the hook style recomputes the weight in forward
    torch.testing.assert_close(normed.weight, plain.weight, rtol=1e-5, atol=1e-6)


def test_other_parametrizations_shrink_the_original() -> None:
    """The original is what the optimizer trains; the computed weight follows it."""

    class Double(nn.Module):
        def forward(self, w: torch.Tensor) -> torch.Tensor:
            return 2 * w

    plain, doubled = nn.Linear(4, 3), nn.Linear(4, 3)
    doubled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        doubled.weight.div_(2)
    nn.utils.parametrize.register_parametrization(doubled, "weight", Double())
    batch = (torch.randn(8, 4), torch.randint(3, (8,)))
    for m in (plain, doubled):
        report = dash_shrink(m, [batch])
    assert report.rows[-1].name == "parametrizations.weight.original"
    assert report.rows[-1].kind == "Linear.weight"
    torch.testing.assert_close(doubled.weight, plain.weight)
