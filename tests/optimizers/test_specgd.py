"""SpecGD: exact steps, zero directions stay zero, regularizers with their fixed points."""

import pytest
import torch
from torch import nn

from reference.optimizers import ReferenceSpecGD, polar_exact
from torch_specgd import SpecGD


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5), (1, 4), (4, 1)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"l2": 0.2},
        {"weight_decay": 0.2},
        {"l2": 0.1, "weight_decay": 0.3, "momentum": 0.5},
    ],
    ids=str,
)
def test_equals_float64_reference(shape: tuple[int, int], options: dict[str, float]) -> None:
    """The step is the docstring's equation, whatever is switched on."""
    w = torch.randn(shape, dtype=torch.float64)
    theirs = {("decay" if k == "weight_decay" else k): v for k, v in options.items()}
    reference = ReferenceSpecGD(w, polar_exact, lr=0.05, **theirs)
    p = nn.Parameter(w.clone())
    optimizer = SpecGD([p], lr=0.05, **options)
    for _ in range(4):
        p.grad = torch.randn_like(p)
        optimizer.step()
        reference.step(p.grad)
    torch.testing.assert_close(p.detach(), reference.w, rtol=1e-9, atol=1e-9)


def step_of(grad: torch.Tensor, **options: object) -> torch.Tensor:
    p = nn.Parameter(torch.zeros_like(grad))
    p.grad = grad
    SpecGD([p], lr=1.0, **options).step()
    return -p.detach()


def test_zero_singular_directions_stay_zero() -> None:
    """A zero-initialized LoRA factor's partner has a zero gradient: it must not move."""
    assert torch.equal(step_of(torch.zeros(8, 32)), torch.zeros(8, 32))
    rank2 = torch.randn(64, 2) @ torch.randn(2, 64)
    s = torch.linalg.svdvals(step_of(rank2))
    torch.testing.assert_close(s[:2], torch.ones(2), rtol=1e-5, atol=1e-5)
    assert s[2:].max() < 1e-5


def test_scale_of_the_gradient_does_not_matter() -> None:
    """Loss scaling changes nothing: polar(c G) = polar(G) from 1e-30 to 1e30."""
    grad = torch.randn(6, 4)
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(step_of(grad * scale), step_of(grad), rtol=1e-4, atol=1e-5)


def test_vectors_step_along_the_normalized_gradient() -> None:
    """Biases and norms are matrices of one column, so SpecGD(model.parameters()) just works."""
    grad = torch.tensor([3.0, -4.0])
    torch.testing.assert_close(step_of(grad), torch.tensor([0.6, -0.8]))
    torch.testing.assert_close(step_of(torch.tensor(-5.0)), torch.tensor(-1.0))


def test_smoothed_method_shrinks_small_directions() -> None:
    """T_beta maps a singular value s to s / sqrt(s^2 + beta^2)."""
    s = torch.tensor([2.0, 0.5, 0.0])
    torch.testing.assert_close(
        step_of(torch.diag(s), method="smoothed", smoothing=0.5),
        torch.diag(s / (s**2 + 0.25).sqrt()),
    )


@pytest.mark.parametrize("method", ["newton_schulz", "precise"])
def test_iterative_methods_are_as_accurate_as_documented(method: str) -> None:
    """12 % for newton_schulz, 1e-3 for precise, on a well-conditioned gradient."""
    s = torch.linalg.svdvals(step_of(torch.randn(20, 40), method=method))
    assert (s - 1).abs().max() < {"newton_schulz": 0.14, "precise": 1e-3}[method]


def test_maximize_ascends_and_l2_still_pulls_to_zero() -> None:
    """maximize turns the objective's sign, never the penalty's."""
    w = torch.diag(torch.tensor([1.0, 2.0]))
    p = nn.Parameter(w.clone())
    p.grad = torch.zeros(2, 2)
    SpecGD([p], lr=0.1, l2=1.0, maximize=True).step()
    torch.testing.assert_close(p.detach(), w - 0.1 * torch.eye(2))
    torch.testing.assert_close(
        step_of(torch.eye(2), maximize=True), -step_of(torch.eye(2), maximize=False)
    )


def test_weight_decay_caps_singular_values_at_its_inverse() -> None:
    """Pushed forever along one direction, W stops at 1 / weight_decay, as documented."""
    p = nn.Parameter(torch.zeros(2, 2))
    optimizer = SpecGD([p], lr=0.05, weight_decay=0.5)
    for _ in range(400):
        p.grad = -torch.eye(2)
        optimizer.step()
    torch.testing.assert_close(p.detach(), 2.0 * torch.eye(2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, "lr must be a finite number of at least 0"),
        ({"momentum": 1.0}, r"momentum must be a number in \[0, 1\), got 1.0"),
        ({"nesterov": True}, "nesterov=True needs momentum above 0"),
        ({"method": "qr"}, "method must be one of .* got 'qr'"),
        ({"method": "smoothed", "smoothing": 0.0}, "smoothing must be above 0"),
        ({"l2": float("inf")}, "l2 must be a finite number"),
    ],
)
def test_bad_hyper_parameters_are_named(arguments: dict[str, object], message: str) -> None:
    """A mistake shows at construction, with the value."""
    with pytest.raises(ValueError, match=message):
        SpecGD([nn.Parameter(torch.zeros(2, 2))], **arguments)


def test_reference_of_reference() -> None:
    """The float64 truth itself: singular values are exactly one or zero."""
    s = torch.linalg.svdvals(polar_exact(torch.diag(torch.tensor([5.0, 1e-3, 0.0]))))
    torch.testing.assert_close(s, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
