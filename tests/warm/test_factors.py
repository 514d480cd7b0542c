"""The pure functions of the factors: an edge that is off shrinks a unit by a wrong number."""

import pytest
import torch
from torch import Tensor

from warmstart import shrink_factors, unit_cosine
from warmstart.shrink.factors import check_floor, magnitude_cosine


def effective(g: Tensor, v: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return weight normalization's weight, and gradients of g and v for one of the weight."""
    g, v = g.clone().requires_grad_(), v.clone().requires_grad_()
    dims = [d for d in range(v.ndim) if g.ndim == 0 or g.shape[d] == 1]
    weight = g * v / v.square().sum(dims, keepdim=True).sqrt()
    d_g, d_v = torch.autograd.grad(weight, (g, v), gradient)
    return weight.detach(), d_g, d_v


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
@pytest.mark.parametrize(
    ("shape", "magnitudes"), [((5, 3), (5, 1)), ((4, 3, 2), (4, 1, 1)), ((4, 3), (1, 3))]
)
def test_magnitudes_have_the_cosine_of_the_effective_weight(shape, magnitudes, scale, dtype):
    """A weight-normalized layer shrinks as the plain layer that computes the same.

    In float32 the squares of such gradients are zero or infinite.
    """
    torch.manual_seed(0)
    g = torch.randn(magnitudes, dtype=torch.float64) * 3
    v = torch.randn(shape, dtype=torch.float64)
    gradient = torch.randn(shape, dtype=torch.float64) * scale
    dims = [d for d, n in enumerate(magnitudes) if n == 1]
    weight, d_g, d_v = effective(g, v, gradient)
    ours = magnitude_cosine(g.to(dtype), v.to(dtype), d_g.to(dtype), d_v.to(dtype))
    assert ours.shape == g.shape
    expected = unit_cosine(weight, gradient, dims)
    tolerance = 30 * torch.finfo(dtype).eps  # sums of at most six terms, a root, two quotients
    torch.testing.assert_close(ours.double(), expected, rtol=tolerance, atol=tolerance)
    assert (expected.abs() > 1e-3).all()


def test_magnitudes_without_signal_have_cosine_zero() -> None:
    """A unit of length zero and one without a gradient go to the floor, and no NaN to a weight."""
    g, v = torch.tensor([[0.0], [2.0], [-2.0]]), torch.tensor([[3.0, 4.0]] * 3)
    d_g = torch.tensor([[1.0], [0.0], [1.0]])
    cosine = magnitude_cosine(g, v, d_g, torch.zeros(3, 2))
    assert cosine.flatten().tolist() == [0.0, 0.0, -1.0]
    along_only = magnitude_cosine(torch.tensor(2.0), v[0], torch.tensor(0.5), torch.zeros(2))
    assert float(along_only) == 1.0


def test_magnitudes_of_one_and_of_very_short_directions() -> None:
    """A magnitude starts at one in some layers; squares of tiny numbers are zero in float32."""
    one, v = torch.tensor(1.0), torch.tensor([3.0, 4.0]) / 5
    assert float(magnitude_cosine(one, v, 0.5 * one, torch.zeros(2))) == 1.0
    assert float(magnitude_cosine(one, v, 1e-25 * one, torch.zeros(2))) == 1.0
    # As long across v as along it, for a v of length 1e-12: the angle is 45 degrees.
    across = 1e12 * torch.tensor([-4.0, 3.0]) / 5
    assert float(magnitude_cosine(one, 1e-12 * v, one, across)) == pytest.approx(0.5**0.5)


def test_a_floor_of_one_keeps_everything_and_none_is_refused() -> None:
    """The ends of (0, 1]: one is a factor, zero would kill a unit for good."""
    w = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    assert shrink_factors(w, -w, (1,), floor=1.0).flatten().tolist() == [1.0, 1.0]
    assert check_floor(1e-6) is None
    for floor in (0.0, 1.0000001, -0.3):
        with pytest.raises(ValueError, match="floor must be in"):
            check_floor(floor)
    for kind in (True, "0.3"):
        with pytest.raises(TypeError, match="floor must be a number"):
            check_floor(kind)


def test_units_without_a_gradient_are_kept_where_asked() -> None:
    """Embeddings of tokens that never occurred: their rows stay, all others are judged."""
    w = torch.tensor([[1.0, 2.0], [3.0, -1.0], [1.0, 0.0]])
    d = torch.tensor([[0.0, 0.0], [-3.0, 1.0], [1.0, 0.0]])
    assert shrink_factors(w, d, (1,)).flatten().tolist() == pytest.approx([0.3, 0.3, 1.0])
    kept = shrink_factors(w, d, (1,), zero_gradient="keep")
    assert kept.flatten().tolist() == pytest.approx([1.0, 0.3, 1.0])
    entries = shrink_factors(w, d, (), zero_gradient="keep").flatten()
    assert entries.tolist() == pytest.approx([1.0, 1.0, 0.3, 0.3, 1.0, 1.0])
