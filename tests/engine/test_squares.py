"""Steps as squares, and a schedule's numbers, at the edges that no shipped schedule has."""

import numpy as np
import pytest

from torch_specgd.triton_kernels import SCHEDULES, Schedule
from torch_specgd.triton_kernels.schedule.squares import Chain, _cancellation, chain_of_squares


@pytest.mark.parametrize("links", [2, 3])
def test_a_chain_is_found_again_from_its_coefficients(links: int) -> None:
    """A sign in one line would multiply out another polynomial of degree 17."""
    made = Chain(0.8, tuple((1.2, b, g) for b, g in ((0.0, -0.5), (0.3, 0.2), (-0.4, 0.7))[:links]))
    found = chain_of_squares(made.expanded())
    assert found.centre == pytest.approx(made.centre)
    assert np.ravel(found.links) == pytest.approx(np.ravel(made.links), abs=1e-9)


def test_short_steps_are_lines_and_parabolas() -> None:
    """A last coefficient of zero makes a line; of one, a parabola as any other."""
    assert chain_of_squares((3.0, -2.0, 0.0)) == Chain(0.0, ((0.0, -2.0, 3.0),))
    for step in ((3.0, -4.0, 1.0), (3.0, -7.0, 1.0), (3.0, -9.0, 1.0)):  # centres 2, 3.5, 4.5
        assert chain_of_squares(step).expanded() == pytest.approx(step)
    assert chain_of_squares((3.0, -9.0, 1.0)).centre == 0.0
    assert chain_of_squares((3.0, -7.0, 1.0)).centre == 3.5


@pytest.mark.parametrize(
    "step",
    [
        SCHEDULES["deep"].steps[0],
        Chain(0.0, ((1.0, 0.0, -3.0), (1.0, 0.3, 0.2), (1.0, -0.4, 0.7))).expanded(),
    ],
)
def test_either_coefficient_that_a_chain_cannot_choose_is_held(step: tuple[float, ...]) -> None:
    """Nine coefficients of which one is wrong are refused; one that is rounded is not."""
    centre = chain_of_squares(step).centre
    shifted = np.polynomial.Polynomial(step)(np.polynomial.Polynomial([centre, 1.0])).coef
    for k in (2, 3):
        for off, wrong in ((1e-5, True), (1.5e-7, True), (0.7e-7, False)):
            other = shifted.copy()
            other[k] += off * abs(shifted).max()
            back = np.polynomial.Polynomial(other)(np.polynomial.Polynomial([-centre, 1.0])).coef
            if wrong:
                with pytest.raises(ValueError, match="chain of three squares"):
                    chain_of_squares(tuple(back))
            else:
                assert chain_of_squares(tuple(back)).centre == pytest.approx(centre)


def test_what_cancels_is_counted_on_the_eigenvalues_of_a_normalized_gram_matrix() -> None:
    """By hand: 2 (r - 1)^2 + 1 has terms up to 2 and values up to 3; (r + 1/2)^2 + 3/4 at r = 1."""
    for step, lost in (((3.0, -4.0, 2.0), 2 / 3), ((1.0, 1.0, 1.0), 2.25 / 3)):
        assert _cancellation(chain_of_squares(step), step) == pytest.approx(lost)
    with pytest.raises(ValueError, match=r"lose a factor of 3\d\.\d of its precision"):
        chain_of_squares((3.0, -4.0, 2.0, 0.5, 0.0187))
    chain_of_squares((3.0, -4.0, 2.0, 0.5, 0.0202))  # loses 24: less than five bits


def test_a_schedule_of_weighted_iterates() -> None:
    """Inverse roots add up iterates: one weight for each, and for the input."""
    made = Schedule("sum", ((1.5, -0.5),), weights=(0.25, 2.0))
    assert made(0.5) == pytest.approx(0.25 * 0.5 + 2.0 * (0.5 * (1.5 - 0.5 * 0.25)))
    assert made(np.array([0.5, 1.0])).shape == (2,)
    for weights in ((1.0,), (1.0, 1.0, 1.0)):
        with pytest.raises(ValueError, match="weights must be 2 numbers, one more than steps"):
            Schedule("sum", ((1.5, -0.5),), weights=weights)


def test_defaults_of_a_schedule() -> None:
    """A table of coefficients alone is a design for 1e-3 to 1, without head room."""
    plain = Schedule("plain", ((1.5, -0.5),))
    assert (plain.lower, plain.headroom, plain.safety) == (1e-3, 1.0, 1.0)
    assert plain.reach() == plain.reach(0.7)
    assert "safety 1," in str(plain)
    assert "headroom 1,1.2" in str(Schedule("some", ((1.5, -0.5),) * 2, headroom=(1.0, 1.2)))


def test_the_gram_form_restarts_before_an_eighth_is_lost() -> None:
    """A segment ends where its slope squared times the roundoff would pass 0.12."""
    deep = SCHEDULES["deep"]
    slope = deep.coefficients[0][0] * deep.coefficients[1][0]
    assert 1 in deep.restarts(0.13 / slope**2)
    assert 1 not in deep.restarts(0.11 / slope**2)
