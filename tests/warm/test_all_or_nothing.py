"""Whatever fails, and whenever: nothing has moved."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from warm.trained import assert_same, data, snapshot, trained
from warmstart import dash_shrink, uniform_shrink


@pytest.mark.parametrize(
    ("keywords", "error", "match"),
    [
        ({"optimizer_state": "forget"}, ValueError, "optimizer_state must be one of"),
        ({"optimizer_state": "reset"}, ValueError, "needs optimizer="),
        ({"optimizer": "adam"}, TypeError, "must be a torch optimizer, got str"),
        (
            {"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters())},
            ValueError,
            "holds none of the shrunk parameters",
        ),
        (
            {"along": {"0.weight": torch.zeros(1)}},
            ValueError,
            r"along\[0\] has \(1,\) for '0.weight'",
        ),
        ({"along": nn.Linear(1, 1)}, ValueError, r"along\[0\] has no tensor named '0.weight'"),
        ({"along": [3]}, TypeError, "along takes modules and mappings"),
        ({"recalibrate_norm": -1}, ValueError, "recalibrate_norm must be"),
        ({"tail": 0}, ValueError, "tail must be a positive integer"),
        ({"max_batches": 1.5}, ValueError, "max_batches must be a positive integer"),
        ({"grad_mode": "test"}, ValueError, "grad_mode must be one of"),
        ({"units": "channel"}, ValueError, "units must be one of"),
        ({"bias": "zero"}, ValueError, "bias must be one of"),
        ({"floor": "small"}, ValueError, 'floor must be in .* or "auto"'),
    ],
)
def test_bad_arguments_change_nothing(keywords: dict, error: type, match: str) -> None:
    """Every argument is checked before the first weight is written."""
    model, optimizer = trained(momentum=0.9)
    before = snapshot(model, optimizer)
    with pytest.raises(error, match=match):
        dash_shrink(model, data(), **keywords)
    assert_same(snapshot(model, optimizer), before)


class Fails(torch.Tensor):
    """A shadow weight on a device that runs out of memory when it is written."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.copy_:
            raise torch.OutOfMemoryError("out of memory")
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("where", ["along", "recalibration", "interrupt"])
def test_a_late_failure_rolls_everything_back(where: str, monkeypatch) -> None:
    """Out of memory, a loader that dies, or Ctrl-C after the weights were written."""
    model, optimizer = trained(momentum=0.9)
    before = snapshot(model, optimizer)
    keywords: dict = {"optimizer": optimizer, "optimizer_state": "scale"}
    if where == "along":
        copies = {n: p.detach().clone() for n, p in model.named_parameters()}
        copies["4.weight"] = copies["4.weight"].as_subclass(Fails)
        error, keywords["along"] = torch.OutOfMemoryError, copies
    else:
        error = OSError if where == "recalibration" else KeyboardInterrupt
        keywords["recalibrate_norm"] = 2
        calls = []

        def forward(m: nn.Module, batch) -> torch.Tensor:
            calls.append(1)
            if len(calls) > 4:  # three batches of the gradient pass, then the second of two
                raise error("gone")
            return cross_entropy(m(batch[0]), batch[1])

        keywords["forward"] = forward
    with pytest.raises(error):
        dash_shrink(model, data(), **keywords)
    assert_same(snapshot(model, optimizer), before)
    assert all(m.momentum == 0.1 for m in model if isinstance(m, nn.BatchNorm2d))
    assert model.training


def test_recalibrated_statistics_are_the_batch_means() -> None:
    """Without it the first evaluation after a shrink is chance; only BatchNorm may move."""
    model, _ = trained()
    model[1].momentum = 0.1
    dash_shrink(model, data(), recalibrate_norm=2)
    with torch.no_grad():
        outs = [model[0](x) for x, _ in data()[:2]]
    mean = torch.stack([o.mean((0, 2, 3)) for o in outs]).mean(0)
    var = torch.stack([o.var((0, 2, 3)) for o in outs]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1].running_var, var, rtol=1e-5, atol=1e-6)
    assert model[1].num_batches_tracked == 3
    assert model[1].momentum == 0.1
    with pytest.raises(ValueError, match="pass a loader, not an iterator"):
        dash_shrink(model, iter(data()), recalibrate_norm=1)


def test_notes_tell_about_stale_statistics_and_double_shrinks() -> None:
    """The two mistakes that users make right after a shrink."""
    model, _ = trained()
    report = dash_shrink(model, data())
    assert any("running statistics of 1 BatchNorm" in n for n in report.notes)
    with pytest.warns(UserWarning, match="the factors multiply"):
        dash_shrink(model, data())
    with torch.no_grad():
        model[0].weight.add_(0.1)  # training went on
    assert not any("stale" in n for n in dash_shrink(model, data(), recalibrate_norm=1).notes)


@pytest.mark.parametrize("fused", [True, False])
def test_a_fused_optimizer_has_trained_as_well(fused: bool) -> None:
    """torch's fused steps count no version of a weight up; the shrink after one is no second."""
    model, _ = trained()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=fused)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            dash_shrink(model, data())
            for x, y in data():
                optimizer.zero_grad()
                cross_entropy(model(x), y).backward()
                optimizer.step()
    assert not [w for w in said if "the factors multiply" in str(w.message)]


def test_inplace_false_and_dry_run_leave_the_model_alone() -> None:
    """A copy in the report, or nothing but the report."""
    model, optimizer = trained(momentum=0.9)
    before = snapshot(model, optimizer)
    planned = dash_shrink(model, data(), dry_run=True, optimizer=optimizer, optimizer_state="reset")
    copied = dash_shrink(model, data(), inplace=False)
    assert_same(snapshot(model, optimizer), before)
    assert planned.model is None
    assert not planned.applied
    dash_shrink(model, data())
    assert_same(copied.model.state_dict(), model.state_dict())
    for n, s in planned.factors.items():
        assert torch.equal(s, copied.factors[n])
    with pytest.raises(ValueError, match="use inplace=True"):
        uniform_shrink(model, 0.5, inplace=False, optimizer=optimizer)


def test_loaders_of_every_kind() -> None:
    """Unknown length, generators, dict batches with labels, max_batches and tail."""
    batches = data()

    def shrunk(loader, **keywords) -> dict:
        model, _ = trained()
        dash_shrink(model, loader, **keywords)
        return {n: p.detach() for n, p in model.named_parameters()}

    assert_same(shrunk(iter(batches)), shrunk(batches))
    assert_same(shrunk(batches, max_batches=2), shrunk(batches[:2]))
    assert_same(shrunk(batches, tail=2), shrunk(batches[1:]))
    assert_same(shrunk(iter(batches), tail=2), shrunk(batches[1:]))
    assert_same(shrunk(batches, tail=9), shrunk(batches))

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, _ = trained()

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict:
            logits = self.inner(x)
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    named = Named()
    dash_shrink(named, [{"x": x, "labels": y} for x, y in batches])
    assert_same({n: p.detach() for n, p in named.inner.named_parameters()}, shrunk(batches))
    seen: list = []
    shrunk(batches, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
