"""SpecGD's four methods against a dense reference, its two penalties, its precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from reference.factorization import polar
from torch_specgd import SpecGD

checked = settings(derandomize=True, deadline=None, max_examples=50)


def step(grad: torch.Tensor, **options: object) -> torch.Tensor:
    """What one unit step subtracts from a zero weight."""
    w = Parameter(torch.zeros_like(grad))
    w.grad = grad.clone()
    SpecGD([w], lr=1.0, **options).step()  # type: ignore[arg-type]
    return -w.detach()


def gradient(m: int, n: int, rank: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((m, rank), (rank, n))
    )
    return scale * left @ right


@checked
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99), st.integers(-20, 20))
def test_svd_is_the_compact_polar_factor_at_any_rank_and_scale(
    m: int, n: int, seed: int, exponent: int
) -> None:
    """Zero directions stay zero: a full decomposition would fill them with noise of size one."""
    rank = 1 + seed % min(m, n)
    g = gradient(m, n, rank, seed, 10.0**exponent)
    got = step(g)
    assert torch.allclose(got, polar(g, 0.0), atol=1e-8)
    assert int(torch.linalg.matrix_rank(got)) == rank


@checked
@given(st.integers(1, 10), st.integers(1, 10), st.integers(0, 99), st.floats(1e-3, 10.0))
def test_smoothed_is_the_operator_of_the_theory(m: int, n: int, seed: int, beta: float) -> None:
    """s / sqrt(s^2 + beta^2) for every singular value, in units of the gradient."""
    g = gradient(m, n, min(m, n), seed)
    assert torch.allclose(step(g, method="smoothed", smoothing=beta), polar(g, beta), atol=1e-9)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
def test_precise_keeps_its_promise(condition: float) -> None:
    """Singular values within 1e-3 of one up to condition number 1e4."""
    u, v = (torch.linalg.qr(gradient(d, 12, 12, 0)).Q for d in (30, 20))
    g = (u * torch.logspace(0, -float(torch.tensor(condition).log10()), 12).double()) @ v.T
    sigma = torch.linalg.svdvals(step(g, method="precise"))[:12]
    assert float((sigma - 1).abs().max()) < 1e-3


@pytest.mark.parametrize("method", ["svd", "newton_schulz", "precise", "smoothed"])
def test_a_zero_gradient_moves_nothing(method: str) -> None:
    """T(0) = 0 for every method: frozen experts and fresh adapters stay where they are."""
    assert not step(torch.zeros(5, 8), method=method).any()


def test_fixed_point_of_l2_and_of_weight_decay_differ() -> None:
    """On 1/2 (w - 3)^2: l2 = 1/2 rests at 3 / 1.5 = 2, weight decay 1/2 caps at 1 / 0.5 = 2 only
    where the target lies above the cap."""
    for goal, l2_rest, decay_rest in ((3.0, 2.0, 2.0), (1.0, 2 / 3, 1.0)):
        ends = []
        for options in ({"l2": 0.5}, {"weight_decay": 0.5}):
            w = Parameter(torch.zeros(1, 1, dtype=torch.float64))
            optimizer = SpecGD([w], lr=0.04, **options)
            for k in range(600):
                optimizer.param_groups[0]["lr"] = 0.04 * min(1.0, 2 - k / 300)
                w.grad = (w - goal).detach()
                optimizer.step()
            ends.append(float(w.detach()))
        assert ends == pytest.approx([l2_rest, decay_rest], abs=1e-3)


def test_half_precision_weights_keep_float32_state_through_a_checkpoint() -> None:
    """A momentum buffer rounded to bfloat16 stops following the gradient."""
    w = Parameter(torch.randn(6, 4).bfloat16())
    optimizer = SpecGD([w], lr=0.1, momentum=0.9)
    w.grad = torch.randn_like(w)
    optimizer.step()
    buffer = optimizer.state[w]["momentum_buffer"]
    assert buffer.dtype == torch.float32
    other = SpecGD([w], lr=0.1, momentum=0.9)
    other.load_state_dict(optimizer.state_dict())
    assert other.state[w]["momentum_buffer"].dtype == torch.float32
    assert torch.equal(other.state[w]["momentum_buffer"], buffer)


def test_shape_factor_is_explicit() -> None:
    """Default none: lr is the spectral norm of the step. Others only on request."""
    g = gradient(16, 4, 4, 0)
    for choice, factor in (("none", 1.0), ("original", 2.0), (lambda m, n: m + n, 20.0)):
        norm = torch.linalg.matrix_norm(step(g, adjust_lr_fn=choice), 2)
        assert float(norm) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adjust_lr_fn": "rms"}, "adjust_lr_fn must be"),
        ({"method": "newton_schulz", "ns_coefficients": "nobody"}, "nobody"),
        ({"method": "polar"}, "method must be one of"),
        ({"method": "smoothed", "smoothing": 0.0}, "smoothing must be above 0"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    """At construction, with the value."""
    with pytest.raises(ValueError, match=message):
        SpecGD([Parameter(torch.zeros(2, 2))], **options)  # type: ignore[arg-type]
