"""State as narrow or wide as it may be: the weight keeps its digits, and nothing is misread."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torch_specgd import Muon, SpecGD

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MAKERS: dict[str, Callable[[Any], Optimizer]] = {
    "muon": lambda p: Muon(p, lr=0.01),
    "muon-normuon": lambda p: Muon(p, lr=0.01, neuron_beta=0.9),
    "muon-eigenbasis": lambda p: Muon(
        p, lr=0.01, precondition="eigenbasis", second_moment="element"
    ),
    "muon-one-by-one": lambda p: Muon(p, lr=0.01, foreach=False),
    "specgd": lambda p: SpecGD(p, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
}
every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 4), (70, 80), (5,))
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def set_gradients(params: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def step(params: list[nn.Parameter], optimizer: Optimizer, seed: int) -> None:
    set_gradients(params, seed)
    optimizer.step()


def with_state(saved: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The same values in tensors of another dtype, counts left out."""
    result = copy.deepcopy(saved)
    for state in result["state"].values():
        for key, value in state.items():
            if key != "step":
                state[key] = value.to(dtype)
    return result


@every_maker
@pytest.mark.parametrize("kept", DTYPES)
@pytest.mark.parametrize("own", DTYPES)
def test_a_narrower_state_never_narrows_the_weight(
    make: Callable[[Any], Optimizer], own: torch.dtype, kept: torch.dtype
) -> None:
    """A run in 16 bits that goes on in 32 would train on the grid of its old state."""
    params = parameters()
    optimizer = make(params)
    step(params, optimizer, 1)
    narrow = with_state(optimizer.state_dict(), kept)
    found = []
    for state in (narrow, with_state(narrow, torch.float32)):
        params = parameters(own)
        optimizer = make(params)
        optimizer.load_state_dict(state)
        before = [p.detach().clone() for p in params]
        step(params, optimizer, 2)
        found.append([p.detach() for p in params])
        dtypes = {x.dtype for s in optimizer.state.values() for k, x in s.items() if k != "step"}
        assert dtypes <= {kept, torch.float32}
    eps = torch.finfo(own).eps
    engine = 0.02 if own != torch.float32 else 0.0  # a direction in 16 bits is iterated as such
    for a, b in zip(*found, strict=True):
        assert a.dtype == own
        torch.testing.assert_close(a, b, rtol=2 * eps, atol=2 * eps + engine * 0.01)
    assert not all(torch.equal(a, start) for a, start in zip(found[0], before, strict=True))


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_state_dtype_covers_all_state(wanted: str) -> None:
    """Of bfloat16 vectors too: their mean square sticks at half of what it should be."""
    params = parameters(torch.bfloat16)
    optimizer = Muon(params, lr=1e-6, state_dtype=wanted)
    optimizer.step()
    step(params, optimizer, 0)
    for state in optimizer.state.values():
        for key in state.keys() & {"momentum_buffer", "exp_avg", "exp_avg_sq"}:
            assert state[key].dtype == getattr(torch, wanted)


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_a_mean_square_grows_to_what_it_is_of(wanted: str) -> None:
    """1,500 steps of ones: 1 - 0.999^1500, which rounding to nearest stops at 0.5."""
    p = nn.Parameter(torch.zeros(400, dtype=torch.bfloat16))
    optimizer = Muon([p], lr=1e-6, state_dtype=wanted)
    p.grad = torch.ones_like(p)
    for _ in range(1500):
        optimizer.step()
    mean = optimizer.state[p]["exp_avg_sq"].float().mean().item()
    assert mean == pytest.approx(1 - 0.999**1500, rel=0.02)


def test_resume_with_rounded_state_is_bit_identical() -> None:
    """The random bits are a function of the step that the checkpoint counts."""
    runs = []
    for cut in (None, 3):
        params = parameters()
        optimizer = Muon(params, lr=0.01, state_dtype="bfloat16")
        for seed in range(6):
            if seed == cut:
                saved = copy.deepcopy(optimizer.state_dict())
                optimizer = Muon(params, lr=0.5, state_dtype="bfloat16")
                optimizer.load_state_dict(saved)
            step(params, optimizer, seed)
        runs.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def same(a: Any, b: Any) -> bool:
    """Whether two state dicts hold the same values, bit by bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def damaged(key: str, value: Callable[[Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    def damage(saved: dict[str, Any]) -> None:
        for state in saved["state"].values():
            if key in state:
                state[key] = value(state[key])

    return damage


def setting(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda saved: saved["param_groups"][0].update({key: value})


REFUSED: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (damaged("momentum_buffer", lambda x: x[:2]), "momentum_buffer must have shape"),
    (damaged("momentum_buffer", lambda x: x.int()), "momentum_buffer must be a floating-point"),
    (damaged("momentum_buffer", lambda x: x.tolist()), "momentum_buffer must be a tensor"),
    (damaged("momentum_buffer", lambda x: x.to_sparse()), "momentum_buffer must be dense"),
    (damaged("exp_avg", lambda x: x[:3]), r"exp_avg must have shape \(5,\), got \(3,\)"),
    (damaged("exp_avg", lambda x: torch.cat([x, x])), r"exp_avg must have shape \(5,\)"),
    (damaged("exp_avg_sq", lambda x: x + 0j), "exp_avg_sq must be a floating-point tensor"),
    (damaged("step", lambda x: -1.0), "step must be finite and at least 0"),
    (damaged("step", lambda x: torch.ones(3)), "step must be one number"),
    (lambda s: s["state"][2].pop("exp_avg_sq"), "misses 'exp_avg_sq'"),
    (lambda s: s["state"][0].update(variance=torch.ones(6, 4)), "has 'variance', which Muon"),
    (lambda s: s["state"].update({0: None}), "must be a dict"),
    (lambda s: s["state"].update({99: {}}), "state of unknown parameters: .99"),
    (lambda s: s.pop("state"), "misses 'state'"),
    (lambda s: s["param_groups"].append(s["param_groups"][0]), "different number of parameter g"),
    (lambda s: s["param_groups"][0]["params"].pop(), r"groups have \[2\] parameters"),
    (lambda s: s["param_groups"][0].pop("momentum"), "group 0 of the state dict has no 'momentum'"),
    (setting("lr", -1.0), "lr must be a finite number"),
    (setting("lr", float("nan")), "lr must be a finite number"),
    (setting("lr", "fast"), "lr must be a finite number"),
    (setting("momentum", 1.5), "momentum must be a number in"),
    (setting("adamw_betas", (0.9, 1.1)), r"adamw_betas\[1\] must be a number in"),
    (setting("adamw_betas", 0.9), "adamw_betas must be two numbers"),
    (setting("use_muon", "oops"), "use_muon must be one of"),
    (setting("use_muon", True), "use_muon=True needs parameters of two or more dimensions"),
    (setting("split", (0, (3, 9))), "split .* does not fit"),
    (setting("params", [0, 1, 1]), "must be different numbers or names"),
    (setting("params", [0, 1, None]), "must be different numbers or names"),
    (setting("rounding_step", -3), "rounding_step must be an integer"),
]


@pytest.mark.parametrize(("damage", "message"), REFUSED)
def test_a_checkpoint_that_does_not_fit_changes_nothing(damage: Any, message: str) -> None:
    """Half of a checkpoint in an optimizer is a run that goes on with other numbers."""
    params = parameters()
    optimizer = Muon(params, lr=0.01)
    step(params, optimizer, 0)
    saved = copy.deepcopy(optimizer.state_dict())
    damage(saved)
    step(params, optimizer, 1)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        optimizer.load_state_dict(saved)
    assert "\n" not in str(caught.value)
    assert same(optimizer.state_dict(), before)


@every_maker
@pytest.mark.parametrize("replaced", ["data", "state", "kind", "gradient"])
def test_what_was_replaced_is_refused_before_anything_moves(
    make: Callable[[Any], Optimizer], replaced: str
) -> None:
    """torch's fused kernels read as far as the parameter goes, whatever the state's length."""
    params = parameters()
    optimizer = make(params)
    step(params, optimizer, 0)
    vector = params[-1]
    key = "exp_avg_sq" if isinstance(optimizer, Muon) else "momentum_buffer"
    if replaced in ("data", "gradient"):
        vector.data = torch.zeros(5000)
    set_gradients(params, 1)
    if replaced == "state":
        optimizer.state[vector][key] = torch.zeros(3)
    if replaced == "kind":
        optimizer.state[vector][key] = torch.zeros(5, dtype=torch.int64)
    if replaced == "gradient":
        vector.data = torch.zeros(5)
        del optimizer.state[vector]
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match=r"parameter of shape \(5"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))


def test_state_goes_by_name_where_both_sides_have_names() -> None:
    """Groups in another order would swap the momenta of like shapes without a word."""
    weights = {name: nn.Parameter(torch.randn(4, 4)) for name in "abc"}
    first = Muon([*weights.items()], lr=0.01)
    for i, p in enumerate(weights.values()):
        p.grad = torch.full((4, 4), float(i))
    first.step()
    second = Muon([*reversed(weights.items())], lr=0.01)
    second.load_state_dict(first.state_dict())
    for p in weights.values():
        assert torch.equal(first.state[p]["momentum_buffer"], second.state[p]["momentum_buffer"])
    assert second.param_groups[0]["param_names"] == ["c", "b", "a"]
    other = Muon([("a", weights["a"]), ("b", weights["b"]), ("d", weights["c"])], lr=0.01)
    with pytest.raises(ValueError, match=r"only there \['c'\], only here \['d'\]"):
        other.load_state_dict(first.state_dict())
