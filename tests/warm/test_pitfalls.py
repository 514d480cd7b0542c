"""Mistakes that published shrinks make, each with the harm that a user would see."""

import copy
import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from warmstart import (
    GradientDirection,
    apply_factors,
    compare,
    dash_shrink,
    find_targets,
    fire_reinit,
    shrink_and_perturb,
    uniform_shrink,
)


def net() -> nn.Sequential:
    """A BatchNorm net with moved statistics."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(64, 3),
    )
    with torch.no_grad():
        for x, _ in data():
            model(x)
    return model


def data(size: int = 16) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 1, 6, 6, generator=g) + 1, torch.randint(3, (size,), generator=g))
        for _ in range(3)
    ]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


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


@pytest.mark.parametrize("wrap", ["compile", "data_parallel", "module.compile", "nested"])
def test_wrapped_models_get_the_same_weights(wrap: str) -> None:
    """A compiled model or DataParallel: the parameters that the optimizer holds are shrunk."""
    plain, inner = net(), net()
    if wrap == "compile":
        model: nn.Module = torch.compile(inner, backend="eager")
    elif wrap == "data_parallel":
        model = nn.DataParallel(inner)
    elif wrap == "module.compile":
        inner.compile(backend="eager")
        model = inner
    else:
        model = nn.Sequential(torch.compile(inner, backend="eager"))
    model(data()[0][0])
    plain.load_state_dict(inner.state_dict())  # the statistics of that call
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    report = dash_shrink(model, data(), optimizer=optimizer)
    expected = dash_shrink(plain, data())
    prefix = "0._orig_mod." if wrap == "nested" else ""
    assert [r.name for r in report.rows] == [prefix + r.name for r in expected.rows]
    # The normalization behind the convolution is seen through compiled code, too.
    assert report.row(f"{prefix}0.weight").norm_follows == f"{prefix}1"
    for (n, p), q in zip(inner.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6, msg=n)
    x = data()[0][0]
    # The compiled code sees the new weights.
    torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=0, atol=1e-5)


def test_twice_is_the_product_of_the_factors() -> None:
    """Not idempotent: cosines ignore length, so the same direction gives the same factors again."""
    model = net()
    direction = GradientDirection(model)
    for x, y in data():
        cross_entropy(model.eval()(x), y).backward()
        direction.update()
        model.zero_grad()
    before = weights(model)
    first = dash_shrink(model, direction)
    with pytest.warns(UserWarning, match="the factors multiply"):
        dash_shrink(model, direction)
    for name, s in first.factors.items():
        p = model.get_parameter(name).detach()
        torch.testing.assert_close(p, before[name] * s * s, rtol=1e-5, atol=1e-7)


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


def test_the_model_is_not_copied() -> None:
    """A copy of a model that fills the memory is an out-of-memory error."""

    class Huge(nn.Linear):
        def __deepcopy__(self, memo: dict) -> "Huge":
            raise torch.OutOfMemoryError("out of memory")

    model = Huge(4, 3)
    batch = (torch.randn(8, 4), torch.randint(3, (8,)))
    dash_shrink(model, [batch])
    with pytest.raises(torch.OutOfMemoryError):
        dash_shrink(model, [batch], inplace=False)


def test_views_and_strides_really_change() -> None:
    """Writing through reshape changes a copy of a transposed weight; here the memory changes."""
    storage = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(4, 3, bias=False)
    layer.weight = nn.Parameter(storage.t())
    assert not layer.weight.is_contiguous()
    before = storage.clone()
    report = uniform_shrink(layer, 0.5)
    torch.testing.assert_close(storage, 0.5 * before)
    targets, _ = find_targets(layer)
    apply_factors(targets, {"weight": 2.0 * torch.ones(3, 1)})
    torch.testing.assert_close(storage, before)
    assert report.row("weight").mean_factor == 0.5
    with pytest.raises(ValueError, match=r"factors of 'weight' \(3, 4\) are not finite"):
        apply_factors(targets, {"weight": torch.full((3, 1), torch.nan)})
    torch.testing.assert_close(storage, before)


def test_a_uniform_shrink_forgets_nothing_behind_batchnorm() -> None:
    """In train mode outputs are only cooled by the head's factor; in eval mode statistics lag."""
    model = net()
    model[4].p = 0.0
    x = data(size=64)[0][0]
    model(x)
    train, evaluated = model.train()(x).detach(), model.eval()(x).detach()
    uniform_shrink(model, 0.5)
    # BatchNorm's epsilon is the only thing that does not scale.
    torch.testing.assert_close(model.train()(x).detach(), 0.5 * train, rtol=0, atol=1e-3)
    report = dash_shrink(net(), data(), dry_run=True)
    assert any("running statistics" in n for n in report.notes)
    fresh = net()
    fresh[4].p = 0.0
    fresh(x)
    uniform_shrink(fresh, 0.5)
    stale = fresh.eval()(x).detach()
    assert float((stale - 0.5 * evaluated).abs().max()) > 0.05


@pytest.mark.parametrize("value", [None, "0.3", True])
def test_numbers_of_the_wrong_type(value: object) -> None:
    """True is 1 in Python: a flag in the wrong place would switch the method off silently."""
    with pytest.raises(TypeError, match=r"alpha must be a number in \(0, 1\]"):
        dash_shrink(net(), data(), alpha=value)
    error = ValueError if isinstance(value, str) else TypeError
    with pytest.raises(error, match="floor must be"):
        dash_shrink(net(), data(), floor=value)


def test_quantized_modules_are_refused() -> None:
    """Dynamically quantized layers have no parameters: nothing would happen, silently."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that its quantization moves elsewhere
        packed = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)))
    with pytest.raises(TypeError, match=r"module '0' \(Linear\) is quantized"):
        find_targets(packed)


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


def test_transposed_and_shared_storage_is_written_in_place() -> None:
    """A weight that is a view of the user's own buffer changes there, and keeps its strides."""
    buffer = torch.randn(5, 4)
    layer = nn.Linear(5, 4, bias=False)
    layer.weight = nn.Parameter(buffer.t())
    before = buffer.clone()
    uniform_shrink(layer, 0.5)
    assert torch.equal(buffer, before / 2)
    assert layer.weight.stride() == (1, 4)
    dash_shrink(layer, [(torch.randn(8, 5), torch.randint(4, (8,)))], floor=0.5)
    assert not torch.equal(buffer, before / 2)
    assert layer.weight.data_ptr() == buffer.data_ptr()


@pytest.mark.parametrize("method", [uniform_shrink, shrink_and_perturb, fire_reinit])
def test_stale_statistics_are_noted_by_every_method(method: Callable) -> None:
    """The first evaluation after any change of the weights is chance on a BatchNorm net."""
    assert any("accuracy in eval mode is meaningless" in n for n in method(net()).notes)
    assert method(nn.Linear(3, 2)).notes == []
