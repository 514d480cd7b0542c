"""Recycled units are born again alone: incoming drawn, outgoing zero, moments cleared."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from reference import recycling
from warmstart import recycle_units


def batches(*shape: int, classes: int = 3) -> list:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, *shape, generator=g), torch.randint(classes, (16,), generator=g))
        for _ in range(3)
    ]


def kill(layer: nn.Module, units: list[int]) -> None:
    """Units whose activation is zero for every input."""
    with torch.no_grad():
        layer.bias.fill_(1.0)  # the others live
        layer.weight[units] = 0.0
        layer.bias[units] = -1.0


class Gated(nn.Module):
    """The feed-forward layer of a transformer, with its residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(4, 8), nn.Linear(4, 8)
        self.down, self.head = nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.down(functional.relu(self.gate(x)) * self.up(x)))


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 2),
        nn.ReLU(), nn.Flatten(), nn.Linear(5 * 4, 3),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["mlp", "conv", "gated"])
def test_dead_units_are_replaced_and_the_function_stays(kind: str) -> None:
    """Dead units send nothing: with zero outgoing weights their replacements send nothing, too.

    A wrong axis behind the flattening, the mistake of public code, changes the function.
    """
    torch.manual_seed(5)
    if kind == "mlp":
        model: nn.Module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        source, reader, dead, data = "0", "2", [1, 5], batches(4)
    elif kind == "conv":
        model = conv_net()
        source, reader, dead, data = "4", "7", [0, 3], batches(1, 8, 8)
    else:
        model = Gated()
        source, reader, dead, data = "gate", "down", [2, 6], batches(4)
    kill(model.get_submodule(source), dead)
    model.eval()
    before, x = copy.deepcopy(model), data[0][0]
    report = recycle_units(model, data, tau=0.0)
    names = {"conv": "4.weight", "mlp": "0.weight", "gated": "gate.weight and up.weight"}
    of = {"conv": 5}.get(kind, 8)
    assert f"recycled 2 of {of} units of {names[kind]}" in report.notes
    torch.testing.assert_close(model(x), before(x), rtol=0, atol=1e-6)
    new, old = model.get_submodule(source), before.get_submodule(source)
    kept = [i for i in range(len(new.weight)) if i not in dead]
    assert torch.equal(new.weight[kept], old.weight[kept])
    assert new.weight[dead].flatten(1).any(1).all()
    out = model.get_submodule(reader).weight
    columns = 4 if kind == "conv" else 1
    zero = torch.zeros(len(new.weight), dtype=torch.bool)
    zero[dead] = True
    assert torch.equal(~out.any(0), zero.repeat_interleave(columns))
    if kind == "gated":
        assert not torch.equal(model.up.weight[dead], before.up.weight[dead])


def test_the_reference_picks_the_same_units() -> None:
    """Mean |activation| over the layer's mean, in eval mode, over all batches."""
    torch.manual_seed(5)
    model = conv_net()
    data = batches(1, 8, 8)
    acts = []
    model.eval()
    with torch.no_grad():
        for x, _ in data:
            acts.append(model[:3](x))
    model.train()
    score = torch.cat(acts).abs().mean((0, 2, 3))
    tau = float((score / score.mean()).sort().values[2]) + 1e-4
    before = copy.deepcopy(model)
    recycle_units(model, data, tau=tau, layers="0.*")
    changed = (model[0].weight != before[0].weight).flatten(1).any(1)
    assert torch.equal(changed, score / score.mean() <= tau)
    assert changed.sum() == 3
    assert torch.equal(model[1].running_var[changed], torch.ones(3))
    assert torch.equal(model[1].running_mean[~changed], before[1].running_mean[~changed])
    assert torch.equal(model[4].weight[:, changed], torch.zeros(5, 3, 2, 2))
    assert torch.equal(model[4].weight[:, ~changed], before[4].weight[:, ~changed])
    assert model.training


def two_layers(in_out: bool = False) -> nn.Sequential:
    """A net of eight hidden units; its layers as torch's or as GPT-2's."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    if not in_out:
        return model
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    twin = nn.Sequential(conv1d(8, 4), nn.ReLU(), conv1d(3, 8))
    with torch.no_grad():
        for i in (0, 2):
            twin[i].weight.copy_(model[i].weight.T)
            twin[i].bias.copy_(model[i].bias)
    return twin


def parts(model: nn.Sequential) -> dict[str, torch.Tensor]:
    """Its weights, (out, in)."""
    new = {"in_weight": model[0].weight, "in_bias": model[0].bias, "out_weight": model[2].weight}
    flip = not isinstance(model[0], nn.Linear)
    return {n: (w.T if flip and w.ndim > 1 else w).detach().clone() for n, w in new.items()}


def reference_scores(model: nn.Module, criterion: str) -> list[float]:
    """Of the published formulas, over all batches at once: they have one size."""
    x, y = (torch.cat(z) for z in zip(*batches(4), strict=True))
    a = torch.relu(model[0](x)).detach().requires_grad_()
    if criterion == "utility":
        return recycling.utility(a.detach(), parts(model)["out_weight"])
    if criterion == "dormant":
        return recycling.dormant(a.detach())
    functional.cross_entropy(model[2](a), y).backward()
    return recycling.gradient(a.grad)


@pytest.mark.parametrize("in_out", [False, True])
@pytest.mark.parametrize("criterion", ["dormant", "gradient", "utility"])
def test_each_criterion_against_its_formula(criterion: str, in_out: bool) -> None:
    """The units that the papers' formulas choose, and the net that is left of them."""
    model = two_layers(in_out)
    scores = reference_scores(model, criterion)
    worst = recycling.lowest(scores, [0] * 8, 0.4, 0)
    before, fresh = parts(model), two_layers(in_out)
    with torch.no_grad():
        for p in fresh.parameters():
            p.add_(1.0)
    report = recycle_units(model, batches(4), criterion=criterion, share=0.4, fresh=fresh)
    assert report.notes == ["recycled 3 of 8 units of 0.weight"]
    expected = recycling.reborn(before, parts(fresh), worst)
    torch.testing.assert_close(parts(model), expected, rtol=0, atol=0)


def test_young_units_are_left_alone() -> None:
    """A unit that was born with outgoing zeros scores lowest: it would be reborn for ever."""
    model, ages = two_layers(), {}
    options = {"criterion": "utility", "share": 0.25, "maturity": 2, "ages": ages}
    reference = [10.0] * 8
    for call in range(6):
        scores = recycling.utility(
            torch.relu(model[0](torch.cat([x for x, _ in batches(4)]))).detach(),
            model[2].weight.detach(),
        )
        worst = recycling.lowest(scores, reference, 0.25, 2)
        before = model[0].weight.detach().clone()
        recycle_units(model, batches(4), seed=call, **options)
        changed = (model[0].weight != before).any(1).nonzero().flatten().tolist()
        assert set(changed) == worst
        reference = [0 if i in worst else age + 1 for i, age in enumerate(reference)]
        assert [min(a, 10) for a in ages["0.weight"].tolist()] == [min(r, 10) for r in reference]
    with pytest.raises(ValueError, match="must be 8 numbers, got 3"):
        recycle_units(model, batches(4), ages={"0.weight": torch.zeros(3)}, maturity=1)
    with pytest.raises(ValueError, match="needs ages="):
        recycle_units(model, batches(4), maturity=1)


def test_a_dry_run_counts_nothing() -> None:
    """Ages are the caller's: they move with the units or not at all."""
    model, ages = two_layers(), {}
    recycle_units(model, batches(4), tau=0.5, ages=ages, dry_run=True)
    assert ages == {}


def test_norms_and_their_moments_start_anew() -> None:
    """The gain of a unit that was dead, and the moments behind it, are not the new one's."""
    model, data = conv_net(), batches(1, 8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    for x, y in data:
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    recycle_units(model, data, share=0.34, layers="0.*", optimizer=optimizer)
    reborn = model[1].weight == 1.0
    assert reborn.sum() == 2
    assert not model[1].bias[reborn].any()
    for p in (model[1].weight, model[1].bias):
        assert not optimizer.state[p]["exp_avg"][reborn].any()
        assert optimizer.state[p]["exp_avg"][~reborn].all()


def test_tied_weights_are_left() -> None:
    """Rows of one are columns of the other: neither side can be changed alone."""
    model = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(),
        nn.Linear(6, 3),
    )  # fmt: skip
    model[2].weight = model[0].weight
    before = copy.deepcopy(model.state_dict())
    report = recycle_units(model, batches(4), share=0.5)
    changed = {n for n, x in model.state_dict().items() if not torch.equal(x, before[n])}
    assert changed == {"4.weight", "4.bias", "6.weight"}
    assert not {"0.weight", "2.weight"} & {r.name for r in report.rows}


def test_moments_of_rows_and_columns_are_cleared() -> None:
    """Units that keep the moments of those before them are born frozen, or fly off."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    for x, y in batches(4):
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    kill(model[0], [1, 5])
    old = {n: copy.deepcopy(optimizer.state[p]) for n, p in model.named_parameters()}
    recycle_units(model, batches(4), tau=0.0, optimizer=optimizer)
    for name, p in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            expected = old[name][key].clone()
            if name.startswith("0"):
                expected[[1, 5]] = 0.0
            elif name == "2.weight":
                expected[:, [1, 5]] = 0.0
            assert torch.equal(optimizer.state[p][key], expected)
        assert optimizer.state[p]["step"] == old[name]["step"]


class Residual(nn.Module):
    """Units that a sum reads as well."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = functional.relu(self.one(x))
        return self.two(h) + h


class Twice(nn.Module):
    """A layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.one(torch.relu(self.one(x)))))


@pytest.mark.parametrize("model", [Residual(), Twice(), nn.Linear(4, 3)])
def test_units_that_others_read_are_left(model: nn.Module) -> None:
    """Zeroing one reader of two changes what the other computes with."""
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="no hidden units"):
        recycle_units(model, batches(4))
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"criterion": "age"}, "criterion must be one of"),
        ({"tau": -1.0}, "tau must be finite"),
        ({"share": 1.0}, r"share must be in \(0, 1\)"),
        ({"criterion": "utility"}, "give the share="),
        ({"max_batches": 0}, "max_batches must be"),
        ({"layers": "9*"}, "no hidden units"),
    ],
)
def test_refused(options: dict, match: str) -> None:
    """Before anything is changed."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=match):
        recycle_units(model, batches(4), **options)
    with pytest.raises(ValueError, match="data is empty"):
        recycle_units(model, [])
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_transformers(name: str) -> None:
    """The units of a transformer's MLP, and no others: heads and the residual stream are read."""
    from warm.architectures import small

    torch.manual_seed(5)
    model = small(name)
    tokens = torch.randint(64, (2, 8))
    data = [{"input_ids": tokens, "labels": tokens}]
    report = recycle_units(model, data, share=0.25, dry_run=True)
    inside = {"bert": "intermediate", "llama": "mlp", "gpt2": "mlp"}[name]
    assert report.rows
    assert all(inside in r.name or "output.dense" in r.name for r in report.rows)
    if name == "gpt2":  # its layers are stored (in, out)
        before = copy.deepcopy(model.state_dict())
        recycle_units(model, data, share=0.25)
        for layer in model.transformer.h:
            reborn = (layer.mlp.c_proj.weight == 0).all(1)
            assert reborn.sum() == 8
            old = before[f"transformer.h.{layer.attn.layer_idx}.mlp.c_fc.weight"]
            assert torch.equal((layer.mlp.c_fc.weight != old).any(0), reborn)
