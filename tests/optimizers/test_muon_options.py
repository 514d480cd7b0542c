"""Muon's options: each against a plain float64 statement of its rule."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from optimizers.divided import Divided
from torch_specgd import Muon
from torch_specgd.step.muon import muon
from torch_specgd.step.rules import LR_SCALES, shape_scale
from torch_specgd.step.second_moment import normalize
from torch_specgd.triton_kernels.random_bits import RandomBits, stochastic_round

PLAIN = {"lr": 0.1, "weight_decay": 0.0, "nesterov": False}


def step_of(grad: torch.Tensor, start: torch.Tensor | None = None, **options: object):
    p = nn.Parameter(torch.zeros_like(grad) if start is None else start.clone())
    p.grad = grad
    Muon([p], **{**PLAIN, **options}).step()
    return p.detach()


def test_neuron_normalization_equals_its_rule() -> None:
    """NorMuon: running mean square per neuron, then the update's own Frobenius norm."""
    beta, o = 0.9, torch.randn(3, 5, 7, dtype=torch.float64)
    v = torch.rand(5, 1, dtype=torch.float64)
    expected_v = v.clone()
    for update in o:
        result = normalize(update, v, beta, (1,))
        for row in range(5):
            mean = sum(float(x) ** 2 for x in update[row]) / 7
            expected_v[row] = beta * expected_v[row] + (1 - beta) * mean
        torch.testing.assert_close(v, expected_v)
        normed = update / expected_v.sqrt()
        torch.testing.assert_close(result, normed * (update.norm() / normed.norm()))


def test_neuron_normalization_makes_neurons_alike() -> None:
    """A tall matrix's polar factor has rows of very different length; NorMuon's has not."""
    grad = torch.randn(40, 8) * torch.logspace(0, -2, 40)[:, None]
    spread = [float(step.norm(dim=1).max() / step.norm(dim=1).min()) for step in (
        step_of(grad), step_of(grad, neuron_beta=0.95))]  # fmt: skip
    assert spread[0] > 5
    assert spread[1] == pytest.approx(1.0, abs=1e-3)
    assert step_of(torch.zeros(4, 4), neuron_beta=0.95).eq(0).all()


def test_cautious_decay_touches_only_what_the_update_shrinks() -> None:
    """Entries that the step moves away from zero are not decayed."""
    start, grad = torch.randn(6, 6), torch.randn(6, 6)
    plain = step_of(grad, start)
    update = start - plain
    decay = 1 - 0.1 * 0.5 * (update * start > 0).float()
    torch.testing.assert_close(
        step_of(grad, start, weight_decay=0.5, cautious_weight_decay=True), start * decay - update
    )


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        (None, math.sqrt(2)),
        ("original", math.sqrt(2)),
        ("match_rms_adamw", 0.2 * math.sqrt(8)),
        ("spectral", math.sqrt(2)),
        ("spectral_unclamped", math.sqrt(2)),
        ("none", 1.0),
        (lambda m, n: m / n, 2.0),
    ],
)
def test_learning_rate_scales(name: object, factor: float) -> None:
    """Each named scale is its formula, also on a transposed shape's other side."""
    grad = torch.randn(8, 4)
    base = step_of(grad, adjust_lr_fn="none")
    torch.testing.assert_close(step_of(grad, adjust_lr_fn=name), base * factor)
    wide = step_of(grad.T.contiguous(), adjust_lr_fn="spectral")
    torch.testing.assert_close(wide, base.T / math.sqrt(2), rtol=1e-4, atol=1e-6)


def test_documented_factors_are_those_of_the_code() -> None:
    """The table that tells how to carry over a learning rate."""
    page = Path(__file__).parents[2] / "docs" / "muon_training.md"
    rows = [line.split("|") for line in page.read_text().splitlines() if line.startswith('| `"')]
    shown = {cells[1].split('"')[1]: [float(x) for x in cells[3:6]] for cells in rows}
    assert shown.keys() == set(LR_SCALES) - {"spectral_unclamped"}  # torch's name of "spectral"
    for name, factors in shown.items():
        shapes = ((768, 768), (3072, 768), (768, 3072))
        assert factors == [round(shape_scale(name, m, n), 2) for m, n in shapes]


def test_functional_scale_is_not_saved_and_must_be_given_again() -> None:
    """A checkpoint holds data: the loading optimizer brings its own function, or is told so."""

    def half(m: int, n: int) -> float:
        return 0.5

    p = nn.Parameter(torch.zeros(2, 2))
    saved = Muon([p], adjust_lr_fn=half).state_dict()
    assert saved["param_groups"][0]["adjust_lr_fn"] == "<callable>"
    other = Muon([p], adjust_lr_fn=half)
    other.load_state_dict(saved)
    assert other.param_groups[0]["adjust_lr_fn"] is half
    with pytest.raises(ValueError, match="adjust_lr_fn was a function"):
        Muon([p], lr=0.5).load_state_dict(saved)


def test_stochastic_rounding_is_unbiased_and_keeps_special_values() -> None:
    """The mean of many roundings is the float32 value, where round-to-nearest is off by 2^-9."""
    x = torch.tensor([1.0 + 2**-10, -3.0 - 2**-9, 1e-30, 0.0])
    bits = RandomBits(torch.tensor(0))
    rounded = stochastic_round(x.expand(20_000, 4).contiguous(), bits).double()
    ulp = torch.tensor([2**-7, 2**-6, 2**-107, 0.0], dtype=torch.float64)
    # Five standard errors of a Bernoulli mean.
    assert ((rounded.mean(0) - x.double()).abs() <= 5 * ulp / 2 / math.sqrt(20_000)).all()
    special = torch.tensor([float("inf"), -float("inf"), float("nan")])
    kept = stochastic_round(special, bits)
    assert kept[0] == float("inf")
    assert kept[1] == -float("inf")
    assert kept[2].isnan()


def test_bfloat16_state_keeps_small_gradients() -> None:
    """Rounded to nearest, a buffer at 1.0 never feels gradients that differ by 2^-8."""
    errors = []
    for dtype in ("bfloat16", None):
        p = nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16))
        optimizer = Muon([p], **PLAIN, momentum=0.99, state_dtype=dtype)
        p.grad = torch.ones_like(p)
        optimizer.step()
        optimizer.state[p]["momentum_buffer"].fill_(1.0)
        for _ in range(200):
            p.grad = torch.full_like(p, 0.75)
            optimizer.step()
        exact = 0.75 + 0.25 * 0.99**200
        errors.append(abs(float(optimizer.state[p]["momentum_buffer"].float().mean()) - exact))
        assert optimizer.state[p]["momentum_buffer"].dtype == torch.bfloat16
    assert errors[0] < 5e-3 < errors[1]


def test_float32_state_of_bfloat16_weights() -> None:
    """state_dtype="float32" holds the momentum of low-precision weights exactly."""
    p = nn.Parameter(torch.zeros(4, 4, dtype=torch.bfloat16))
    optimizer = Muon([p], **PLAIN, state_dtype="float32")
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[p]["momentum_buffer"].dtype == torch.float32
    assert p.dtype == torch.bfloat16


def test_compute_dtype_decides_the_precision_of_the_polar_factor() -> None:
    """A rank-1 gradient in bfloat16 becomes noise of full size; float32 keeps the null space."""
    grad = torch.randn(96, 1) @ torch.randn(1, 128)
    noise = {}
    for dtype in ("float32", "bfloat16"):
        step = step_of(grad, compute_dtype=dtype, ns_coefficients=(3.4445, -4.775, 2.0315))
        noise[dtype] = float(torch.linalg.svdvals(step)[1])
    assert noise["float32"] < 1e-4 < noise["bfloat16"]
    with pytest.raises(ValueError, match="compute_dtype must be one of"):
        step_of(grad, compute_dtype="float16")


@pytest.mark.parametrize("limit", [1, 200, 1 << 29])
def test_memory_limit_changes_no_value(limit: int) -> None:
    """max_batch_bytes is about memory alone; foreach=False is its extreme."""
    torch.manual_seed(1)
    params = [nn.Parameter(torch.randn(4, 6)) for _ in range(5)] + [nn.Parameter(torch.randn(3, 3))]
    grads = [torch.randn_like(p) for p in params]
    results = []
    for options in ({}, {"max_batch_bytes": limit}, {"foreach": False}):
        copies = [nn.Parameter(p.detach().clone()) for p in params]
        for p, g in zip(copies, grads, strict=True):
            p.grad = g
        Muon(copies, lr=0.1, **options).step()
        results.append(copies)
    for a, b, c in zip(*results, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(c, a, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [{"max_batch_bytes": 60}, {"foreach": False}])
def test_memory_limit_changes_no_random_bit(options: dict[str, Any]) -> None:
    """Stochastic rounding must be repeatable on a machine with less memory."""
    results = []
    for own in ({}, options):
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(s)) for s in ((4, 6), (6, 4), (1, 4, 6), (3, 3), (4, 6))]
        optimizer = Muon(params, state_dtype="bfloat16", **own)
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
        results.append([optimizer.state[p]["momentum_buffer"] for p in params])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    "options",
    [{}, {"neuron_beta": 0.9}, {"cautious_weight_decay": True}, {"precondition": "eigenbasis"}],
)
def test_neighbours_in_a_group_change_nothing(options: dict[str, Any]) -> None:
    """Grouped by shape, dtype and view, each parameter still gets its own buffers and results."""
    single, half, double = torch.float32, torch.bfloat16, torch.float64
    kinds = [((4, 6), single), ((6, 4), single), ((4, 6), half), ((2, 4, 6), single)]
    kinds += [((6, 4), half), ((4, 6), double), ((4, 6), single), ((5,), single)]
    kinds += [((70, 80), single), ((6, 4), single), ((4, 3, 2), single), ((80, 70), single)]
    starts = [torch.randn(shape).to(dtype) for shape, dtype in kinds]
    grads = [[torch.randn_like(x) for x in starts] for _ in range(2)]
    together = [nn.Parameter(x.clone()) for x in starts]
    alone = [nn.Parameter(x.clone()) for x in starts]
    one, many = Muon(together, **options), [Muon([p], **options) for p in alone]
    for some in grads:
        for p, q, g in zip(together, alone, some, strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        one.step()
        for optimizer in many:
            optimizer.step()
    for p, q in zip(together, alone, strict=True):
        tolerance = 2e-2 if p.dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


def test_normalization_may_begin_later() -> None:
    """A group's setting is read at every step; the state that it needs is made then."""
    p = nn.Parameter(torch.randn(4, 6))
    optimizer = Muon([p])
    p.grad = torch.randn_like(p)
    optimizer.step()
    optimizer.param_groups[0]["neuron_beta"] = 0.9
    optimizer.step()
    assert optimizer.state[p]["neuron_second_moment"].shape == (4, 1)


def test_an_eps_of_zero_is_as_good_as_a_tiny_one() -> None:
    """torch.optim.Muon takes it, and gives NaN for a gradient of zeros."""
    shapes = ((4, 6), (4, 8))
    for coefficients in ("auto", (3.4445, -4.7750, 2.0315)):
        params = [nn.Parameter(torch.randn(s)) for s in shapes]
        optimizer = Muon(params, eps=0.0, ns_coefficients=coefficients)
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        assert all(p.isfinite().all() for p in params)


PLAIN_FUNCTION: dict[str, Any] = {
    "lr": 0.1,
    "weight_decay": 0.1,
    "momentum": 0.9,
    "nesterov": True,
    "ns_coefficients": "auto",
    "eps": 1e-7,
    "ns_steps": 5,
    "adjust_lr_fn": None,
}


def test_a_gradient_that_lies_elsewhere_than_its_parameter_is_refused() -> None:
    grads = [torch.ones(3, 4).as_subclass(Divided)]
    with pytest.raises(RuntimeError, match="but its gradient is a DTensor"):
        muon([torch.ones(3, 4)], grads, [torch.zeros(3, 4)], **PLAIN_FUNCTION)


def test_empty_matrices_are_left_as_they_are() -> None:
    params = [torch.ones(s) for s in ((3, 0), (3, 4), (2, 0, 4))]
    muon(params, [torch.ones_like(p) for p in params], [0 * p for p in params], **PLAIN_FUNCTION)
    assert params[1].ne(1).all()
