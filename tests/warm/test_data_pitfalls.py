"""Loaders, batches and routes of every kind, and passes that fail."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from warm.batchnorm_net import data, net, weights
from warmstart import (
    compare,
    dash_shrink,
)


@pytest.mark.parametrize("grad_mode", ["eval", "train"])
@pytest.mark.parametrize("where", ["loss", "interrupt", "loader", "progress"])
def test_a_failure_in_the_pass_leaves_nothing_behind(where: str, grad_mode: str) -> None:
    """Ctrl-C or an exception anywhere: weights, statistics, modes, .grad, randomness as before."""
    model = net().train()
    model[1].eval()  # a user who froze one BatchNorm
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    error = KeyboardInterrupt if where == "interrupt" else RuntimeError
    steps: list[int] = []

    def fail(*_: object) -> None:
        steps.append(1)
        if len(steps) == 3:
            raise error("broken")

    def loss_fn(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        fail()
        return cross_entropy(out, y)

    def loader():
        for batch in data():
            random.random(), np.random.rand()  # noqa: NPY002 (as old data transforms draw)
            fail()
            yield batch

    before = copy.deepcopy(model.state_dict())
    grads = [(p.grad, p.grad.clone()) for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())  # noqa: NPY002
    options = {"progress": fail} if where == "progress" else {}
    with pytest.raises(error, match="broken"):
        dash_shrink(
            model,
            loader() if where == "loader" else data(),
            loss_fn if where in ("loss", "interrupt") else cross_entropy,
            grad_mode=grad_mode,
            recalibrate_norm=0,
            **options,
        )
    assert len(steps) == 3
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for p, (grad, value) in zip(model.parameters(), grads, strict=True):
        assert p.grad is grad
        assert torch.equal(grad, value)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002


class Experts(nn.Module):
    """Top-1 routing by the sign of the first input; expert 2 is never chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = (x[:, 0] > 0).long()
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            out = out.index_add(0, (rows := (chosen == i).nonzero()[:, 0]), expert(x[rows]))
        return self.head(out)


@pytest.mark.parametrize(("rule", "factor"), [("floor", 0.3), ("keep", 1.0)])
def test_experts_without_tokens(rule: str, factor: float) -> None:
    """The new data may not reach an expert: shrunk whole by the published rule, or kept."""
    torch.manual_seed(0)
    model = Experts()
    before = weights(model)
    batch = (torch.randn(32, 4), torch.randint(2, (32,)))
    report = dash_shrink(model, [batch], zero_gradient=rule)
    for name in ("experts.2.weight", "experts.2.bias"):
        torch.testing.assert_close(model.get_parameter(name).detach(), factor * before[name])
        assert report.row(name).zero_gradient == report.row(name).units
    assert report.row("experts.0.weight").zero_gradient == 0
    assert any("experts.2.weight (4 of 4)" in n for n in report.notes)


class Stream(IterableDataset):
    """Examples without a length."""

    def __iter__(self):
        for x, y in data():
            yield from zip(x, y, strict=True)


def test_iterable_data_sets_and_dropped_remainders() -> None:
    """Streams have no len(); drop_last makes the last batch a full one; both count correctly."""
    x, y = (torch.cat(t) for t in zip(*data(), strict=True))
    counts = {}
    for name, loader in {
        "stream": DataLoader(Stream(), batch_size=20),
        "list": [(x[i : i + 20], y[i : i + 20]) for i in (0, 20, 40)],
        "drop_last": DataLoader(TensorDataset(x, y), batch_size=20, drop_last=True),
        "short list": [(x[i : i + 20], y[i : i + 20]) for i in (0, 20)],
    }.items():
        model = net()
        counts[name] = (dash_shrink(model, loader).num_batches, weights(model))
    for one, other, number in (("stream", "list", 3), ("drop_last", "short list", 2)):
        assert counts[one][0] == counts[other][0] == number
        assert all(torch.equal(v, counts[other][1][n]) for n, v in counts[one][1].items())
    model = net()
    with pytest.raises(ValueError, match="data is empty"):
        dash_shrink(model, DataLoader(TensorDataset(x[:3], y[:3]), batch_size=20, drop_last=True))


def test_a_batch_of_one_example() -> None:
    """Fine in eval mode; in train mode BatchNorm on vectors refuses, and no weight moves."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    before = copy.deepcopy(model.state_dict())
    one = (torch.randn(1, 4), torch.tensor([0]))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        dash_shrink(model, [one], grad_mode="train")
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        dash_shrink(model, [one], recalibrate_norm=1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert model[1].momentum == 0.1
    report = dash_shrink(model, [one])
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert report.row("0.weight").norm_after < report.row("0.weight").norm_before
    # A convolution's statistics are over positions as well: one image is enough.
    assert dash_shrink(net(), data(size=1), grad_mode="train").num_batches == 3


def test_shuffled_loaders_are_named() -> None:
    """The published rule goes through the data oldest first; alpha = 1 and sequence are silent."""
    x, y = (torch.cat(t) for t in zip(*data(), strict=True))
    shuffled = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    ordered = DataLoader(TensorDataset(x, y), batch_size=16)

    def said(loader, **options) -> bool:
        report = dash_shrink(net(), loader, dry_run=True, **options)
        return any(n.startswith("data is shuffled") for n in report.notes)

    assert said(shuffled)
    assert not said(shuffled, alpha=1.0)
    assert not said(ordered)
    report = dash_shrink(net(), ordered, tail=2, dry_run=True)
    assert any("batches before the last 2 would have carried 0.49 of 1" in n for n in report.notes)


def test_compare_says_none_where_nothing_helps() -> None:
    """A checkpoint that already solves the new data: training on is the cheapest, and is named."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(10, 32, 4, generator=g)
    batches = [(b, (b[:, 0] > 0).long()) for b in x]
    solved = nn.Linear(4, 2)
    with torch.no_grad():
        solved.weight.zero_()
        solved.weight[1, 0], solved.weight[0, 0] = 5.0, -5.0
        solved.bias.zero_()
    result = compare(
        lambda: nn.Linear(4, 2), solved, batches[:5], batches[5:], seeds=(0,), max_epochs=5,
        methods=["none", "cold", "uniform", "dash"],
    )  # fmt: skip
    assert result.best == "none"
    assert "use: none" in str(result)
