"""Schedules: what their scalar maps do, and that the design reproduces the published tables."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_specgd.triton_kernels import (
    SCHEDULES,
    Schedule,
    design_schedule,
    orthogonalize,
    resolve_schedule,
)
from torch_specgd.triton_kernels.schedule.named import is_triple
from torch_specgd.triton_kernels.schedule.squares import chain_of_squares
from torch_specgd.triton_kernels.workshop.design import minimax_step
from torch_specgd.triton_kernels.workshop.search_chain import chained_step

# Name, interval of inputs, smallest and largest output (exact arithmetic, no safety factor).
RANGES = [
    ("jordan", 7e-3, 0.682, 1.134),
    ("you", 7e-3, 0.978, 1.032),
    ("polar_express", 1e-3, 0.876, 1.124),
    ("polar_express_6", 1e-3, 0.9988, 1.0012),
    ("polar_express_8", 1e-3, 0.9999, 1.0001),
    ("cans", 1e-3, 0.884, 1.120),
    ("deepseek", 1e-3, 1.000, 1.001),
    ("quintic_4", 5e-3, 0.917, 1.083),
    ("degree9_3", 5e-3, 0.9618, 1.0382),
    ("degree9_4", 1e-3, 0.9902, 1.0098),
]
THRESHOLDS = [("jordan", 1.264), ("you", 1.325), ("convergent", 3**0.5)]
# The table that modded-nanogpt, Dion and nanochat ship: safety factor and cushion baked in.
MODDED = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


@pytest.mark.parametrize(("name", "lower", "low", "high"), RANGES)
def test_published_intervals(name: str, lower: float, low: float, high: float) -> None:
    """A digit lost in a table would change every update."""
    raw = Schedule("raw", SCHEDULES[name].steps)
    found = raw.range(lower)
    # One unit of the last published digit; CANS prints its coefficients to four.
    tolerance = 7e-3 if name == "cans" else 1e-3
    assert found == pytest.approx((low, high), abs=tolerance)


@pytest.mark.parametrize(("name", "threshold"), THRESHOLDS)
def test_divergence_thresholds(name: str, threshold: float) -> None:
    """The printed headroom would promise a safety that is not there."""
    assert SCHEDULES[name].divergence_threshold == pytest.approx(threshold, abs=2e-3)


def test_safety_factor_gives_headroom() -> None:
    """Without it, rounding above one explodes; with it, about as much overshoot is harmless."""
    raw = Schedule("raw", SCHEDULES["polar_express"].steps)
    assert raw.divergence_threshold < 1.001
    assert SCHEDULES["polar_express"].divergence_threshold > 1.02


@pytest.mark.parametrize("name", ["polar_express", "deep", "flat", "degree9_3", "degree9_4"])
def test_defaults_stay_below(name: str) -> None:
    """A default that overshoots would amplify a direction instead of equalizing it."""
    schedule = SCHEDULES[name]
    assert schedule.divergence_threshold > 1.02
    assert schedule.range(1e-9)[1] < (1.13 if name == "polar_express" else 1.1)


def test_default_reaches_as_far_as_five_polar_express_steps() -> None:
    """The default would treat small singular values worse than the field's usual choice."""
    usual, ours = SCHEDULES["polar_express"], SCHEDULES["deep"]
    s = np.geomspace(1e-5, 1, 4001)
    assert ours.slope > usual.slope
    assert np.abs(ours(s) - 1).max(where=s > ours.lower, initial=0.0) < 0.035
    assert np.abs(usual(s) - 1).max(where=s > ours.lower, initial=0.0) > 0.12
    # Below, where neither has arrived, ours is ahead everywhere.
    small = s < 5e-4
    assert (ours(s)[small] >= 0.999 * usual(s)[small]).all()
    assert ours.flops(768, 3072) < usual.flops(768, 3072)
    assert ours.flops(768, 768) == 0.9 * usual.flops(768, 768)


# Six-step minimax table of the literature: the five steps of CANS and this one.
SIXTH = (1.888716197, -1.265157225, 0.3765189256)


@pytest.mark.parametrize(
    ("published", "options", "printed"),
    [
        ("degree9_3", {"degree": 9, "steps": 3, "lower": 5e-3}, ".10g"),
        ("degree9_4", {"degree": 9, "steps": 4, "lower": 1e-3}, ".10g"),
        ("quintic_4", {"degree": 5, "steps": 4, "lower": 5e-3}, ".10g"),
        ("flat", {"degree": (9, 9, 5), "lower": 1e-2, "headroom": (1.05, 1.12, 1.05)}, ".12g"),
        ("cans", {"degree": 5, "steps": 6, "lower": 1e-3}, ".4f"),
    ],
)
def test_design_reproduces_tables(published: str, options: dict, printed: str) -> None:
    """Every printed digit: nearly the published table would leave open which of both errs."""
    found = design_schedule(**{"safety": 1.0, **options}).steps
    if published == "cans":
        assert tuple(float(f"{c:.10g}") for c in found[5]) == SIXTH
        found = found[:5]
    for ours, theirs in zip(found, SCHEDULES[published].steps, strict=True):
        assert tuple(float(format(c, printed)) for c in ours) == theirs


def test_design_finds_the_default_again() -> None:
    """A default that nobody can derive could not be improved, or trusted."""
    shipped = SCHEDULES["deep"]
    found = design_schedule(17, 3, shipped.lower, safety=1.0, headroom=shipped.headroom)
    for ours, theirs in zip(found.steps, shipped.steps, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize(("lower", "upper"), [(1e-3, 1.0), (0.05, 1.95), (0.3, 1.8)])
def test_a_chain_is_no_worse_than_its_parts_and_no_better_than_any_polynomial(
    lower: float, upper: float
) -> None:
    """A local optimum or an error that is not what the points show would pass unseen."""
    with localcontext() as context:
        context.prec = 50
        free, least = minimax_step(8, Decimal(repr(lower)), Decimal(repr(upper)))
        _, degree_nine = minimax_step(4, Decimal(repr(lower)), Decimal(repr(upper)))
    chain, error = chained_step(lower, upper, tuple(float(c) for c in free))
    s = np.linspace(lower, upper, 200_001)
    seen = np.abs(1 - s * chain(s * s)).max()
    assert seen == pytest.approx(error, rel=1e-3)
    assert least <= error < min(degree_nine, 2 * float(least) + 0.01)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_chains_are_the_polynomials(name: str) -> None:
    """The map that is printed and the one that is multiplied out would differ."""
    r = np.linspace(0, 4, 101)
    for step in SCHEDULES[name].coefficients:
        chain = chain_of_squares(step)
        h = np.polynomial.polynomial.polyval(r, step)
        around_centre, around_zero = r, r
        for k, (alpha, beta, gamma) in enumerate(chain.links):
            before = r - chain.centre if k == 0 else around_centre
            around_centre = alpha * before**2 + beta * (r - chain.centre) + gamma
        for alpha, beta, gamma in chain.around_zero:
            around_zero = alpha * around_zero**2 + beta * r + gamma
        scale = np.abs(h).max()
        assert np.abs(around_centre - h).max() < 1e-8 * scale
        assert np.abs(around_zero - h).max() < 1e-8 * scale
        expanded = chain.expanded()
        assert expanded[: len(step)] == pytest.approx(step, rel=1e-7, abs=1e-9)


def test_a_step_of_degree_17_has_to_be_a_chain() -> None:
    """Nine arbitrary coefficients would be multiplied out as another polynomial."""
    step = SCHEDULES["deep"].steps[0]
    assert Schedule("same", (step,)).slope == step[0]
    with pytest.raises(ValueError, match="chain of three squares"):
        Schedule("other", ((*step[:3], 1.1 * step[3], *step[4:]),))
    for bad in ((*step[:8], 0.0), step[:6], (1.0, 2.0, 3.0, 4.0, 0.0)):
        with pytest.raises(ValueError, match="coefficients"):
            Schedule("other", (bad,))


@pytest.mark.parametrize("form", ["newton_schulz", "gram"])
def test_a_fifth_degree_that_is_nearly_a_third(form: str) -> None:
    """A fitted step with a tiny last coefficient gave 1e7: its square's centre lies far away."""
    x = torch.randn(2, 20, 30, dtype=torch.float64)
    expected = orthogonalize(x, schedule=[(1.5, -0.5)] * 2, method=form)
    for last in (1e-5, 1e-12, -1e-12):
        step = (1.5, -0.5, last)
        for dtype, limit in ((torch.float64, 1e-12), (torch.bfloat16, 0.02)):
            y = orthogonalize(x, schedule=[step] * 2, method=form, dtype=dtype)
            assert (y - expected).abs().max() < limit + 3 * abs(last)


def test_squares_that_cancel_are_refused() -> None:
    """A ninth degree with a tiny last coefficient is a difference of huge squares: 1e4 came out."""
    for bad in ((1.875, -1.25, 0.375, 1e-6, 1e-9), (1.875, -1.25, 0.375, 0.0, -1e-9)):
        with pytest.raises(ValueError, match="nearly zero"):
            Schedule("fitted", (bad,))
    assert Schedule("good", ((1.875, -1.25, 0.375, 0.1, 0.01),)).slope == 1.875


def test_design_reproduces_polar_express() -> None:
    """Cushion and safety factor would not mean what Polar Express means by them."""
    found = design_schedule(5, 8, 1e-3, safety=1.0, cushion=0.02407327424182761)
    published = SCHEDULES["polar_express_8"].steps
    for t, (ours, theirs) in enumerate(zip(found.steps, published, strict=True)):
        # Printed as doubles, right to a unit or three of their last digit; the seventh step,
        # for an interval 1e-5 wide, was computed with a double's cancellation.
        assert ours == pytest.approx(theirs, rel=2e-15 if t != 6 else 6e-11)
    found = design_schedule(5, 5, 1e-3, safety=1.02, cushion=0.02)
    for ours, theirs in zip(found.coefficients, MODDED, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-13)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(
    degree=st.sampled_from([3, 5, 7, 9]),
    steps=st.integers(1, 4),
    lower=st.floats(1e-3, 0.5),
)
def test_design_equioscillates(degree: int, steps: int, lower: float) -> None:
    """A design that is not minimax would leave accuracy behind."""
    schedule = design_schedule(degree, steps, lower, safety=1.0)
    low, high = schedule.range(lower)
    assert (1 - low) == pytest.approx(high - 1, abs=2e-6)
    assert float(schedule(lower)) == pytest.approx(low, abs=1e-9)


def test_flops_against_the_published_count() -> None:
    """The plan would choose by wrong costs."""
    n, m = 2048, 16384
    quintic = SCHEDULES["jordan"]
    # 20 n^2 m + 10 n^3 without symmetry; gram-newton-schulz publishes 1.460 and 0.790 TFLOP.
    assert quintic.flops(n, m, symmetric=False) == 20 * n * n * m + 10 * n**3
    gram = quintic.flops(n, m, form="gram", restarts=(2,), symmetric=False)
    assert gram == 8 * n * n * m + 28 * n**3
    assert gram / 1e12 == pytest.approx(0.790, abs=1e-3)
    nine = SCHEDULES["degree9_3"]
    # One of the nine products is general: Q, see iteration.gram.
    assert nine.flops(n, m, form="gram", restarts=(2,)) == 6 * n * n * m + 10 * n**3
    assert nine.flops(n, m) == 9 * n * n * m + 6 * n**3


def test_resolve() -> None:
    """What a caller passes would turn into something else."""
    assert resolve_schedule(None).name == "polar_express"
    assert len(resolve_schedule((1.5, -0.5, 0.0))) == 5
    assert len(resolve_schedule("polar_express_8", 6)) == 6
    assert resolve_schedule("polar_express", 7).steps[-1] == SCHEDULES["polar_express"].steps[-1]
    assert resolve_schedule([(1.5, -0.5), (1.875, -1.25, 0.375)]).steps[0] == (1.5, -0.5)
    schedule = SCHEDULES["flat"]
    assert resolve_schedule(schedule) is schedule


def test_the_ends_of_what_resolves() -> None:
    """One step and 99 are schedules; a triple of booleans or of texts is no arithmetic."""
    assert len(resolve_schedule("deep", 1)) == 1
    assert len(resolve_schedule((1.5, -0.5, 0.0), 99)) == 99
    for steps in (0, 100):
        with pytest.raises(ValueError, match=r"steps must be in \[1, 99\]"):
            resolve_schedule("deep", steps)
    three_steps = ((1.5, -0.5), (1.5, -0.5), (1.875, -1.25, 0.375))
    assert resolve_schedule(three_steps).steps == three_steps
    assert not is_triple((True, 1.0, 1.0))
    assert not is_triple((1.0, 2.0))
    assert not is_triple("abc")
    assert is_triple((3, -4.5, 2.0))


def test_reach_is_where_outputs_stay_above_a_level() -> None:
    """How small a singular value may be is what a schedule is chosen by."""
    line = Schedule("line", ((1.5, -0.5),))  # rises from 0 to 1: reached once
    for level in (0.3, 0.7):
        first = line.reach(level)
        assert float(line(first)) >= level
        assert float(line(first / 1.001)) < level
    assert line.reach(1.1) == float("inf")
    assert line.reach(-1.0) == pytest.approx(1e-8)
    # Falls below again behind its first peak: what counts is the last time.
    swing = Schedule("swing", ((4.0, -8.0, 5.0),))
    first = swing.reach(0.9)
    assert float(swing(first)) >= 0.9 > float(swing(first / 1.001))
    assert first > 0.9
    assert float(swing(0.4)) > 1.1


def test_products_and_restarts_are_counted() -> None:
    """A plan takes the cheaper form by these numbers."""
    deep = SCHEDULES["deep"]
    assert deep.products() == (3, 9)
    assert deep.products("gram") == (1, 9 + 3 * 2)
    assert deep.products("gram", (2,)) == (2, 9 + 3)
    assert deep.products("gram", (0, 1, 2)) == (3, 9)
    assert deep.products("gram", (0, 2)) == deep.products("gram", (2,))
    assert Schedule("cubic", ((1.5, -0.5),) * 2).products("gram") == (1, 3)


def test_prints_what_it_does() -> None:
    """A user compares schedules by their printed line."""
    line = str(SCHEDULES["flat"])
    for part in (
        "degree 9,9,5",
        "headroom 1.05,1.12,1.05",
        "slope 123.4",
        "1.0541",
        "above 1.0533",
    ):
        assert part in line
    n, m = 30, 70
    for form, cost in (("direct", "9 n^2 m + 5 n^3"), ("gram", "3 n^2 m + 13 n^3")):
        assert f"{cost} {form.capitalize() if form == 'gram' else form}" in line
        a, b = (int(term.split()[0]) for term in cost.split("+"))
        assert SCHEDULES["flat"].flops(n, m, form=form) == a * n * n * m + b * n**3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"degree": 4}, "degree"),
        ({"degree": 5, "steps": 0}, "degree"),
        ({"degree": (5, 5), "steps": 3}, "must be 2"),
        ({"degree": 5, "lower": 0.0}, "lower"),
        ({"degree": 5, "safety": 0.9}, "safety"),
        ({"degree": 5, "cushion": 1.0}, "cushion"),
        ({"degree": 5, "headroom": 0.9}, "headroom"),
        ({"degree": 5, "steps": 2, "headroom": (1.1, 1.1, 1.1)}, "headroom"),
    ],
)
def test_design_refuses(options: dict, match: str) -> None:
    """Bad values must be named."""
    with pytest.raises(ValueError, match=match):
        design_schedule(**options)


def test_schedule_refuses() -> None:
    """A malformed table must not reach the iteration."""
    with pytest.raises(ValueError, match="no steps"):
        Schedule("x", ())
    with pytest.raises(ValueError, match="safety"):
        Schedule("x", ((1.5, -0.5),), safety=0.5)
    with pytest.raises(ValueError, match="normalization"):
        Schedule("x", ((1.5, -0.5),), normalization="spectral")
    for step in ((1.5,), (1.0,) * 6, (1.5, float("nan")), (float("inf"), -0.5)):
        with pytest.raises(ValueError, match="2 to 5 finite coefficients"):
            Schedule("x", (step,))
