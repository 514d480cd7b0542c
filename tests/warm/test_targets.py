"""Which parameters are shrunk, in which units, and what is refused or skipped with a reason."""

import numpy as np
import pytest
import torch
from torch import nn

from reference.dash import clamp, cosine
from warmstart import GradientDirection, dash_shrink, find_targets, unit_cosine
from warmstart.factors import product_cosine


def shrink_by_random_direction(model: nn.Module, **keywords) -> tuple[dict, dict, dict]:
    """(weights before, directions, weights after) under a direction that no data produced."""
    direction = GradientDirection(model, alpha=1.0, include=keywords.get("include"))
    g = torch.Generator().manual_seed(5)
    gradients = {n: torch.randn(p.shape, generator=g) for n, p in direction.parameters.items()}
    direction.update(gradients)
    before = {n: p.detach().double().numpy().copy() for n, p in model.named_parameters()}
    d = {n: -x.double().numpy() for n, x in gradients.items()}
    dash_shrink(model, direction, floor=0.3, **keywords)
    return before, d, {n: p.detach().double().numpy() for n, p in model.named_parameters()}


def check_units(w: np.ndarray, g: np.ndarray, new: np.ndarray, units: list[tuple]) -> None:
    """Every index expression is one unit with one factor."""
    covered = np.zeros_like(w, dtype=int)
    for u in units:
        s = clamp(cosine(w[u].ravel(), g[u].ravel()), 0.3)
        np.testing.assert_allclose(new[u], s * w[u], rtol=0, atol=1e-6)
        covered[u] += 1
    assert (covered == 1).all()


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


def test_lora_shrinks_b_alone() -> None:
    """Shrinking A and B would square the factor of the product; the base must not move."""
    peft = pytest.importorskip("peft")
    base = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0", "2"]))
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_B" in n:
                p.normal_()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    report = dash_shrink(model, [(torch.randn(8, 6), torch.randint(3, (8,)))])
    assert all("lora_B" in r.name for r in report.rows)
    assert len(report.rows) == 2
    reasons = {s.name: s.reason for s in report.skipped}
    assert any("lora_A" in n and "LoRA A" in why for n, why in reasons.items())
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n]) == ("lora_B" not in n)


def adapted(r: int = 2) -> nn.Module:
    """A peft model whose B factors are not zero any more."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Conv2d(1, 3, 2), nn.Embedding(4, 3))
    return peft.get_peft_model(base, peft.LoraConfig(r=r, target_modules=["0", "2", "3"]))


def adapter_loss(model: nn.Module, batch: tuple) -> torch.Tensor:
    x, image, tokens = batch
    layers = model.base_model.model
    outputs = (layers[0](x), layers[2](image), layers[3](tokens))
    return sum((o.tanh() * torch.linspace(-1, 1, o.numel()).view_as(o)).sum() for o in outputs)


def adapter_batches() -> list:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 6, generator=g), torch.randn(4, 1, 4, 4, generator=g), torch.arange(4))
        for _ in range(3)
    ]


def test_fresh_lora_survives() -> None:
    """B (of embeddings: A) is zero before the first step: no NaN, and the product stays zero."""
    for lora in ("factor", "product"):
        model = adapted()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        report = dash_shrink(model, adapter_batches(), forward=adapter_loss, lora=lora)
        for n, p in model.named_parameters():
            s = 0.3 if "lora_embedding_B" in n else 1.0
            torch.testing.assert_close(p.detach(), s * before[n], rtol=1e-6, atol=0)
        zero = {r.name.split(".")[2]: r.zero_weight == r.units for r in report.rows}
        assert zero == {"0": True, "2": True, "3": False}


def test_lora_product_is_judged_by_the_merged_rows() -> None:
    """Against the merged weight's own gradient, projected on the span of A, in float64."""
    model = adapted().double()
    batches = [(x.double(), i.double(), t) for x, i, t in adapter_batches()]
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora" in n:
                p.normal_()
    layer = model.base_model.model[0]
    layer.base_layer.weight.requires_grad_(True)
    adapter_loss(model, batches[0]).backward()
    # The adapter is added to the base weight, so the merged weight has the base weight's gradient.
    g = -layer.base_layer.weight.grad.numpy()
    layer.base_layer.weight.requires_grad_(False)
    b, a = (f["default"].weight.detach().numpy().copy() for f in (layer.lora_B, layer.lora_A))
    inside = np.linalg.lstsq(a.T, g.T, rcond=None)[0].T @ a
    expected = [clamp(cosine(row, d), 0.2) for row, d in zip(b @ a, inside, strict=True)]
    report = dash_shrink(model, batches[:1], forward=adapter_loss, lora="product", floor=0.2)
    new = layer.lora_B["default"].weight.detach().numpy()
    np.testing.assert_allclose(new, b * np.array(expected)[:, None], rtol=0, atol=1e-12)
    assert np.array_equal(layer.lora_A["default"].weight.detach().numpy(), a)
    units = {r.name.split(".")[2]: (r.unit, r.units, r.unit_size) for r in report.rows}
    assert units == {i: ("row of B A", n, 2) for i, n in (("0", 5), ("2", 3), ("3", 3))}


def test_lora_product_does_not_depend_on_how_it_is_split() -> None:
    """(B, A) and (B R, R^-1 A) are the same adapter; the cosine of B's rows tells them apart."""
    g = torch.Generator().manual_seed(0)
    b, a, r, full = (
        torch.randn(*s, generator=g).double() for s in ((7, 3), (3, 9), (3, 3), (7, 9))
    )
    one = product_cosine(b, a, full @ a.T)
    other_a = torch.linalg.solve(r, a)
    other = product_cosine(b @ r, other_a, full @ other_a.T)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    apart = unit_cosine(b, full @ a.T, (1,)) - unit_cosine(b @ r, full @ other_a.T, (1,))
    assert float(apart.abs().max()) > 0.1
    # Rows of A that repeat: K is singular, the span is what counts.
    double_a, double_b = torch.cat([a, a]), torch.cat([b / 2, b / 2], 1)
    twice = product_cosine(double_b, double_a, full @ double_a.T)
    torch.testing.assert_close(one, twice, rtol=0, atol=1e-9)


def test_lora_product_needs_both_factors() -> None:
    """A B factor without its A cannot be merged; the message names both."""
    model = nn.Module()
    model.lora_B = nn.Linear(2, 5, bias=False)
    with pytest.raises(ValueError, match=r"needs 'lora_B.weight' .* and 'lora_A.weight'"):
        find_targets(model, lora="product")
    with pytest.raises(ValueError, match="lora must be one of"):
        find_targets(model, lora="merged")


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
