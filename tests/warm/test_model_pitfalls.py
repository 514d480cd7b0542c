"""Models that are wrapped, viewed, shrunk twice, quantized or too large to copy."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from warm.batchnorm_net import data, net, weights
from warmstart import (
    GradientDirection,
    apply_factors,
    dash_shrink,
    find_targets,
    fire_reinit,
    shrink_and_perturb,
    uniform_shrink,
)


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
