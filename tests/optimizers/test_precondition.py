"""The parts of a preconditioner, each by numbers worked out by hand."""

import pytest
import torch

from torch_specgd import Eigenbasis, Shampoo
from torch_specgd.step import precondition, second_moment
from torch_specgd.step.precondition import accumulate, floored_root, is_due, next_basis, next_root


def test_defaults_and_ranges_are_the_documented_ones() -> None:
    """A page that says 0.95 and 20 steps, and a rule that takes others, cannot both be right."""
    assert Shampoo() == Shampoo(beta=0.95, every=20, sides="short", root=2)
    assert Eigenbasis() == Eigenbasis(beta=0.95, every=10, sides="both")
    for root in (2, 4, 8):
        assert Shampoo(beta=0.0, every=1, sides="short", root=root).root == root
    for root in (3, 5, 9):
        with pytest.raises(ValueError, match="root must be one of"):
            Shampoo(root=root)


def test_the_first_steps_take_a_basis_each_and_then_every_tenth() -> None:
    """A basis of one step is that of one gradient, and the tenth is a good while later."""
    assert [step for step in range(1, 32) if is_due(step, 10)] == [*range(1, 11), 20, 30]
    assert [step for step in range(1, 6) if is_due(step, 1)] == [1, 2, 3, 4, 5]


def test_means_leave_out_what_float32_cannot_hold() -> None:
    """One overflow in one matrix would stay in its mean for ever, and leave the others alone."""
    x = torch.tensor([[[1.0, 2.0], [0.0, 1.0]], [[1e30, 0.0], [0.0, 2.0]]])
    covariance = torch.eye(2).repeat(2, 1, 1)
    accumulate(covariance, x, 0.75)
    assert covariance[0].tolist() == [[0.75 + 1.25, 0.5], [0.5, 0.75 + 0.25]]
    assert torch.equal(covariance[1], 0.75 * torch.eye(2))  # as if it had been zero


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_a_basis_turns_towards_the_eigenvectors_at_any_scale(scale: float) -> None:
    """One step of orthogonal iteration: the first column is that of a power iteration."""
    a = scale * torch.tensor([[[5.0, 2.0], [2.0, 1.0]]])
    basis = next_basis(a, torch.eye(2)[None])[0]
    assert basis[:, 0].abs().tolist() == pytest.approx([5 / 29**0.5, 2 / 29**0.5])
    torch.testing.assert_close(basis.mT @ basis, torch.eye(2))
    nothing = next_basis(torch.zeros(1, 2, 2), torch.eye(2)[None])[0]
    torch.testing.assert_close(nothing.mT @ nothing, torch.eye(2))


@pytest.mark.parametrize("root", [2, 4])
def test_roots_of_tiny_means_are_roots_and_of_rounding_noise_the_identity(root: int) -> None:
    """Below 1.2e-38 / 1.2e-7 = 1e-31 a mean has lost digits, and may have negative eigenvalues."""
    a = torch.diag(torch.tensor([16.0, 1.0]))[None]
    for scale in (1.0, 1e-31, 1e25):
        found = next_root(a * scale, root)[0]
        assert float(found[1, 1] / found[0, 0]) == pytest.approx(16 ** (1 / root), rel=1e-3)
        assert float(found[0, 1]) == pytest.approx(0.0, abs=1e-6)
    for scale in (1e-33, 0.0):
        found = next_root(a * scale, root)[0]
        assert float(found[1, 1] / found[0, 0]) == pytest.approx(1.0, rel=1e-3)
    alone = next_root(torch.cat([a, a * 0]), root)
    assert float(alone[0, 1, 1] / alone[0, 0, 0]) == pytest.approx(16 ** (1 / root), rel=1e-3)


def test_a_root_asks_no_device_whether_a_mean_is_symmetric(monkeypatch) -> None:
    """It is by construction, and a GPU would have to be waited for."""
    asked = []
    monkeypatch.setattr(precondition, "inverse_root", lambda a, root, check: asked.append(check))
    next_root(torch.eye(2)[None], 2)
    assert asked == [False]


def test_divisors_are_raised_by_a_hundredth_of_their_own_size() -> None:
    """Entries that never had a gradient would be divided by nothing."""
    squares = torch.tensor([[[16.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    found = floored_root(squares)
    assert found[0].flatten().tolist() == pytest.approx([4.02, 0.02, 0.02, 0.02])
    assert found[1].flatten().tolist() == [1.0] * 4
    assert floored_root(1e-8 * squares)[0, 0].tolist() == pytest.approx([4.02e-4, 0.02e-4])


@pytest.mark.parametrize(
    ("m", "n", "sides", "expected"),
    [
        (16, 4, "outputs", {"left": 16}),
        (17, 4, "outputs", {"right": 4}),  # above four times the inputs
        (3, 9000, "outputs", {"left": 3}),
        (8192, 3000, "outputs", {"left": 8192}),
        (8193, 3000, "outputs", {"right": 3000}),
        (4, 5, "short", {"left": 4}),
        (5, 5, "short", {"left": 5}),
        (6, 5, "short", {"right": 5}),
        (9000, 9001, "short", {}),
        (6, 5, "both", {"left": 6, "right": 5}),
        (4, 5, "both", {"left": 4, "right": 5}),
        (8193, 5, "both", {"right": 5}),
        (8192, 8193, "both", {"left": 8192}),
    ],
)
def test_sides_are_those_that_pay(m: int, n: int, sides: str, expected: dict) -> None:
    """A side too many costs more than all else of a step, a side too few does nothing."""
    assert precondition._sides(m, n, sides) == expected


def test_a_normalized_update_keeps_its_size() -> None:
    """By hand: rows with root mean squares 3 and 1, of which each is divided by its own."""
    o = torch.tensor([[3.0, 3.0], [1.0, -1.0]])
    v = torch.zeros(2, 1)
    out = second_moment.normalize(o, v, 0.75, (1,))
    assert v.flatten().tolist() == [0.25 * 9, 0.25 * 1]
    size = 20**0.5 / 2  # of four entries of one absolute value
    torch.testing.assert_close(out, size * torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    # Later each row is divided by the root of the old mean and the new one.
    out = second_moment.normalize(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), v, 0.75, (1,))
    assert v.flatten().tolist() == [0.75 * 2.25 + 0.25, 0.75 * 0.25 + 0.25]
    ratio = float(out[1, 0] / out[0, 0])
    assert ratio == pytest.approx(((0.75 * 2.25 + 0.25) / (0.75 * 0.25 + 0.25)) ** 0.5)
    assert float(out.norm()) == pytest.approx(2.0)
    zero = second_moment.normalize(torch.zeros(2, 2), torch.zeros(2, 2), 0.95, ())
    assert zero.eq(0).all()
