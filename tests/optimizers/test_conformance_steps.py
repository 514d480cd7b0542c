"""The conformance suite goes on: what a step may touch, what it refuses, what it accepts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from optimizers.conformance import every_row, network, train

Make = Callable[[Any], Optimizer]
SHAPES = ((6, 4), (6, 4), (4, 6), (3, 2, 2, 2), (2, 5, 3), (7,))


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(5)
    return [nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]


def set_gradients(params: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


@every_row
def test_every_kind_of_iterable_is_the_same(make: Make) -> None:
    """Lists, generators, named parameters and groups of either: no step depends on the form."""

    def names(params: list[nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
        return [(f"w{i}", p) for i, p in enumerate(params)]

    forms: list[Callable[[list[nn.Parameter]], Any]] = [
        list,
        iter,
        names,
        lambda ps: [{"params": ps[:2]}, {"params": iter(ps[2:])}],
        lambda ps: [{"params": names(ps)[:2]}, {"params": names(ps)[2:]}],
    ]
    results = []
    for form in forms:
        params = parameters()
        optimizer = make(form(params))
        set_gradients(params, 0)
        optimizer.step()
        results.append(params)
    # Stochastic rounding draws the bits of each group anew.
    grouped = results[3] if optimizer.defaults.get("state_dtype") == "bfloat16" else results[0]
    for one, others in ((results[0], results[1:3]), (grouped, results[3:])):
        for other in others:
            for p, q in zip(one, other, strict=True):
                torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@every_row
def test_parameters_keep_their_order_and_their_memory(make: Make) -> None:
    """Order is the checkpoint's key; views, tied weights and sharing processes hold the memory."""
    params = parameters()
    optimizer = make(params)
    places = [p.data_ptr() for p in params]
    for seed in range(2):
        set_gradients(params, seed)
        optimizer.step()
    assert [p.data_ptr() for p in params] == places
    assert all(p is q for p, q in zip(params, optimizer.param_groups[0]["params"], strict=True))
    assert optimizer.state_dict()["param_groups"][0]["params"] == list(range(len(params)))


@every_row
def test_state_has_the_same_keys_with_and_without_a_gradient(make: Make) -> None:
    """Ranks on which an expert got no token must save what the others save."""
    params = parameters()
    optimizer = make(params)
    set_gradients(params, 0)
    params[1].grad = None
    optimizer.step()
    assert optimizer.state[params[0]].keys() == optimizer.state[params[1]].keys()
    for p in params:
        for key, value in optimizer.state[p].items():
            assert isinstance(value, torch.Tensor), key
            if key in ("momentum_buffer", "exp_avg", "exp_avg_sq"):
                assert value.shape == p.shape


@every_row
def test_settings_are_plain_data_in_every_group(make: Make) -> None:
    """Group by group overridable, and readable by a weights-only load."""
    optimizer = make(parameters())
    plain = (int, float, bool, str, tuple, type(None), torch.Tensor)
    for key, value in optimizer.defaults.items():
        assert isinstance(value, plain), key
        assert key in optimizer.param_groups[0]
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))], "lr": 0.5})
    assert [g["lr"] == 0.5 for g in optimizer.param_groups] == [False, True]


@every_row
def test_bad_values_and_kinds_are_refused_by_name(make: Make) -> None:
    """In the constructor and in a late group, which then leaves no trace."""
    optimizer = make(parameters())
    fresh = nn.Parameter(torch.ones(2, 2))
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"params": [fresh], "lr": -1.0}, ValueError, r"lr .*-1\.0"),
        ({"params": [fresh], "weight_decay": float("nan")}, ValueError, "weight_decay .*nan"),
        ({"params": [fresh], "lr": torch.ones(2)}, ValueError, "lr must be 1-element"),
        ({"params": [fresh], "lr": "fast"}, TypeError, "lr must be a finite number.*'fast'"),
        ({"params": [fresh.detach().to(torch.complex64)]}, TypeError, r"\(2, 2\) is .*complex64"),
    ]
    for group, kind, message in bad:
        with pytest.raises(kind, match=message):
            optimizer.add_param_group(dict(group))
        with pytest.raises(kind, match=message):
            make([dict(group)])
    assert len(optimizer.param_groups) == 1


@every_row
def test_sparse_gradients_are_refused_before_anything_moves(make: Make) -> None:
    params = parameters()
    optimizer = make(params)
    set_gradients(params, 0)
    params[-1].grad = torch.ones(7).to_sparse()
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match=r"sparse.*\(7,\)"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))


@every_row
def test_one_bad_matrix_leaves_the_others_alone(make: Make) -> None:
    """NaN is not hidden, and does not spread through the batch of its shape."""
    healthy, sick = parameters(), parameters()
    for params in (healthy, sick):
        optimizer = make(params)
        set_gradients(params, 0)
        if params is sick:
            params[0].grad[2, 1] = float("nan")
        optimizer.step()
    assert sick[0].isnan().any()
    for p, q in zip(healthy[1:], sick[1:], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@every_row
def test_strides_do_not_change_the_step(make: Make) -> None:
    """Transposed weights, channels-last kernels and gradients of other strides than theirs."""
    plain, strided = parameters(), parameters()
    strided[0] = nn.Parameter(plain[0].detach().T.contiguous().T)
    strided[3] = nn.Parameter(plain[3].detach().to(memory_format=torch.channels_last))
    first, second = make(plain), make(strided)
    for seed in range(2):
        set_gradients(plain, seed)
        for i, (p, q) in enumerate(zip(plain, strided, strict=True)):
            q.grad = p.grad.mT.contiguous().mT if i == 1 else p.grad.clone()
        first.step()
        second.step()
    for p, q in zip(plain, strided, strict=True):
        assert p.stride() == q.stride() or q is strided[0] or q is strided[3]
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@every_row
def test_empty_parameters_and_empty_groups_are_stepped_over(make: Make) -> None:
    """A shard of no rows, and a group whose parameters were all filtered out."""
    empty = nn.Parameter(torch.zeros(0, 4))
    params = parameters()
    optimizer = make([{"params": []}, {"params": [empty, *params]}])
    set_gradients([empty, *params], 0)
    before = params[0].detach().clone()
    optimizer.step()
    assert empty.shape == (0, 4)
    assert not torch.equal(before, params[0])
    assert optimizer.step() is None


@every_row
def test_float64_weights_keep_their_precision(make: Make) -> None:
    """State and arithmetic of float64 parameters stay float64, but where 16 bits are asked for."""
    params = [nn.Parameter(p.detach().double()) for p in parameters()]
    optimizer = make(params)
    set_gradients(params, 0)
    optimizer.step()
    kept = optimizer.defaults.get("state_dtype") is None
    for p in params:
        assert p.dtype == torch.float64
        for key, value in optimizer.state[p].items():
            assert key == "step" or not kept or value.dtype == torch.float64


@every_row
def test_hooks_of_the_base_class_run_around_the_step(make: Make) -> None:
    params = parameters()
    optimizer = make(params)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    set_gradients(params, 0)
    optimizer.step()
    assert seen == ["before", "after"]


@every_row
def test_reload_before_the_first_step_changes_nothing(make: Make) -> None:
    """accelerator.prepare does it at construction, with whatever state exists by then."""
    a, b = network(), network()
    first, second = make(a.parameters()), make(b.parameters())
    second.load_state_dict(second.state_dict())
    train(a, first, range(2))
    train(b, second, range(2))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)


@every_row
def test_accumulated_gradients_are_one_step(make: Make) -> None:
    """Two backward passes before a step are the step of the sum."""
    a, b = parameters(), parameters()
    first, second = make(a), make(b)
    for p, q in zip(a, b, strict=True):
        for factor in (1.0, 2.0):
            (factor * p.square().sum()).backward()
        (3.0 * q.square().sum()).backward()
    first.step()
    second.step()
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def rosenbrock(p: nn.Parameter) -> torch.Tensor:
    x, y = p[..., 0::2], p[..., 1::2]
    return ((1 - x).square() + 100 * (y - x.square()).square()).sum()


@every_row
def test_walks_down_the_rosenbrock_valley(make: Make) -> None:
    """A curved, ill-conditioned valley with one minimum; a falling rate as in any training."""
    p = nn.Parameter(torch.full((4, 6), -1.2) + 0.1 * torch.randn(4, 6))
    optimizer = make([p])
    for group in optimizer.param_groups:
        # Of about 0.5 is the factor of "match_rms_adamw" for 4 x 6, and "contra" of one direction.
        short = "match_rms_adamw" in group.values() or "contra" in group.values()
        group["lr"] = 0.1 if short else 0.05
        group["weight_decay"] = 0.0
        group.update({"l2": 0.0} if "l2" in group else {})
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, total_iters=300)
    start = float(rosenbrock(p).detach())
    for _ in range(300):
        optimizer.zero_grad()
        rosenbrock(p).backward()
        optimizer.step()
        schedule.step()
    end = float(rosenbrock(p).detach())
    assert end > start if optimizer.defaults["maximize"] else end < 0.02 * start
