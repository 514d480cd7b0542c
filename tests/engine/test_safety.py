"""No shipped default diverges from rounding: adversarial spectra in emulated 16-bit storage."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.polar import few_dimensions, spectra, with_spectrum
from reference.rounded import (
    FlushedProducts,
    MirroredProducts,
    RoundedProducts,
    SplitProducts,
    largest_singular_value,
)
from reference.structured import structured
from torch_specgd.triton_kernels import SCHEDULES, certify, orthogonalize
from torch_specgd.triton_kernels.iterate import products
from torch_specgd.triton_kernels.iterate.iteration import direct, gram
from torch_specgd.triton_kernels.iterate.normalize import begin, prescale

LIMIT = 1.1
SHIPPED = [
    *((name, "direct", dtype, ()) for name in ("deep", "flat", "polar_express_8")
      for dtype in (torch.bfloat16, torch.float16)),
    *((name, "gram", dtype, SCHEDULES[name].restarts(torch.finfo(dtype).eps / 2))
      for name in ("deep", "flat", "polar_express_8") for dtype in (torch.float16, torch.float32)),
]  # fmt: skip


def _run(
    x: torch.Tensor, name: str, form: str, dtype: torch.dtype, restarts: tuple[int, ...]
) -> float:
    schedule = SCHEDULES[name]
    worst = 0.0
    # A CPU's start on whole products, a GPU's on mirrored triangles, or in the small kernel.
    ways = [(True, RoundedProducts()), (False, MirroredProducts())]
    if dtype == torch.float32:
        ways.append((False, SplitProducts()))
    for look, ops in ways:
        start = begin(x, dtype, schedule.normalization, ops, look=look)
        if form == "direct":
            y = direct(start, schedule, ops)
        else:
            y = gram(start, schedule, ops, restarts)
        worst = max(worst, largest_singular_value(y))
    return worst


@pytest.mark.parametrize(("name", "form", "dtype", "restarts"), SHIPPED)
@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_few_dimensions(
    n: int, name: str, form: str, dtype: torch.dtype, restarts: tuple[int, ...]
) -> None:
    """An embedding's gradient with three active rows would blow up within one step."""
    assert _run(few_dimensions(n, 800), name, form, dtype, restarts) < LIMIT


@pytest.mark.parametrize(("name", "form", "dtype", "restarts"), SHIPPED)
@pytest.mark.parametrize("rank", [1, 2, 3, 8])
def test_few_directions_of_many(
    rank: int, name: str, form: str, dtype: torch.dtype, restarts: tuple[int, ...]
) -> None:
    """The gradient of a few tokens has their rank; mirrored triangles of a carried Q sent its
    largest singular value to 2.3 in float32, and beyond any bound in float16."""
    for shape in ((33, 130), (48, 48)):
        x = torch.randn(50, shape[0], rank) @ torch.randn(50, rank, shape[1])
        assert _run(x, name, form, dtype, restarts) < LIMIT


@pytest.mark.parametrize("rank", [1, 2, 3, 8])
def test_low_rank_through_the_cpus_triangles(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU mirrors blocks from 512 rows on: 600 rows and a gradient of rank 2 gave 9."""
    monkeypatch.setattr(products, "_TRIANGLE_ROWS", 33)
    monkeypatch.setattr(products, "_TRIANGLE_ELEMENTS", 1)
    for shape in ((70, 80), (70, 200)):
        x = torch.randn(50, shape[0], rank) @ torch.randn(50, rank, shape[1])
        y = orthogonalize(x, dtype=torch.float32)
        assert largest_singular_value(y) < LIMIT


@pytest.mark.parametrize(("name", "form", "dtype", "restarts"), SHIPPED)
def test_every_spectrum(
    name: str, form: str, dtype: torch.dtype, restarts: tuple[int, ...]
) -> None:
    """A rounding error that grows instead of dying out destroys a layer in one step."""
    inputs = {k: with_spectrum(v, 48, 96).float() for k, v in spectra(48).items()}
    inputs |= {"gauss": torch.randn(48, 96), "square": torch.randn(48, 48)}
    for spectrum, x in inputs.items():
        assert _run(x[None], name, form, dtype, restarts) < LIMIT, spectrum


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    values=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=24),
    seed=st.integers(0, 2**16),
    case=st.sampled_from(SHIPPED),
)
def test_any_spectrum(values: list[float], seed: int, case: tuple) -> None:
    """The adversary may know the schedule: any spectrum at all has to stay below the limit."""
    n = len(values)
    x = with_spectrum(torch.tensor(values), n, n + seed % 9, seed).float()
    assert _run(x[None], *case) < LIMIT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-4, 1.0, 1e4, 1e30, 1e35])
def test_start_of_a_gpu_at_any_scale(scale: float, dtype: torch.dtype) -> None:
    """A GPU may not look at the norms, and would let a tiny or huge gradient vanish or overflow."""
    ops, schedule = RoundedProducts(), SCHEDULES["deep"]
    x = torch.stack([scale * torch.randn(20, 70), torch.zeros(20, 70), torch.randn(20, 70)])
    x[2, 3, 4] = torch.nan
    start = begin(x, dtype, schedule.normalization, ops, look=False)
    y = direct(start, schedule, ops)
    s = torch.linalg.svdvals(y[0].double())
    assert (s - 1).abs().max() < (0.06 if dtype == torch.bfloat16 else 0.04)
    assert torch.equal(y[1], torch.zeros_like(y[1]))
    assert y[2].isnan().any()


@pytest.mark.parametrize("scale", [1e-38, 1e-8, 1.0, 1e17, 3e37])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["deep", "flat"])
def test_start_of_a_cpu_keeps_what_it_promises(name: str, dtype: torch.dtype, scale: float) -> None:
    """Factors cut to bfloat16 must stay a bound: what lies above it diverges."""
    x = torch.randn(8, 30, 50, dtype=torch.float64) * torch.logspace(0, -1, 30)[:, None]
    x = (x / x.abs().max() * scale).float()
    schedule = SCHEDULES[name]
    start = begin(x, dtype, schedule.normalization, RoundedProducts())
    s = torch.linalg.svdvals(start.x.double()) * start.factor.double().flatten()[:, None]
    power = int(schedule.normalization.removeprefix("schatten"))
    bound = (s**power).sum(1) ** (1 / power)
    # Two factors cut by at most 2^-7 each, whose root is taken; rounding of R beyond that.
    low, high = (1 - 2**-7, 1 + 2**-8) if dtype == torch.bfloat16 else (1 - 1e-6, 1 + 1e-6)
    assert bound.min() > low
    assert bound.max() < high


@pytest.mark.parametrize("name", ["deep", "flat"])
def test_shipped_restarts_are_the_best_of_their_number(name: str) -> None:
    """Restarts chosen by habit: all choices of benchmarks/engine_accuracy.py, measured again."""
    shipped, x = SCHEDULES[name].restarts(2**-11), few_dimensions(5, 800)
    steps = range(1, len(SCHEDULES[name]))
    worst = {
        restarts: _run(x, name, "gram", torch.float16, restarts)
        for number in range(len(shipped) + 1)
        for restarts in combinations(steps, number)
    }
    assert worst.pop(shipped) < LIMIT
    assert min(worst.values()) > LIMIT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_gram_form_of_any_schedule_is_as_safe_as_the_direct(name: str, dtype: torch.dtype) -> None:
    """Ten steps of DeepSeek's schedule gave infinity in float32, five Polar Express steps 1e9 in
    float16: each multiplies R's rounding by the square of its slope."""
    restarts = SCHEDULES[name].restarts(torch.finfo(dtype).eps / 2)
    v = torch.linalg.qr(torch.randn(60, 16))[0]
    inputs = [few_dimensions(n, 400) @ v[:, :n].mT for n in (2, 3, 5, 12)]
    inputs += [torch.randn(50, 16, r) @ torch.randn(50, r, 300) for r in (1, 2, 3, 8)]
    for x in inputs:
        assert _run(x, name, "gram", dtype, restarts) < 0.05 + max(
            _run(x, name, "direct", dtype, ()), SCHEDULES[name].range(1e-9)[1]
        )


def test_default_needs_no_float16_denormals() -> None:
    """A GPU that flushes them would lose R's small entries, and with them the iteration."""
    ops, schedule = FlushedProducts(), SCHEDULES["deep"]
    restarts = schedule.restarts(2**-11)
    inputs = [few_dimensions(n, 800) for n in (2, 3, 5, 12)]
    inputs += [with_spectrum(v, 48, 96).float()[None] for v in spectra(48).values()]
    for x in (*inputs, torch.randn(1, 512, 2048)):
        start = begin(x, torch.float16, schedule.normalization, ops, look=False)
        assert largest_singular_value(gram(start, schedule, ops, restarts)) < LIMIT


@pytest.mark.parametrize("given", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_start_of_a_gpu_rounds_once(given: torch.dtype, dtype: torch.dtype) -> None:
    """A bfloat16 gradient would lose a second bit on its way to float16, in every entry."""
    x = torch.randn(3, 40, 60).to(given)
    y = prescale(x, dtype).double()
    scale = (y * x.double()).sum(dim=(1, 2), keepdim=True) / x.double().square().sum(
        dim=(1, 2), keepdim=True
    )
    unit = torch.finfo(dtype).eps / 2
    assert ((y / (scale * x.double()) - 1).abs().amax()) < 1.1 * unit


def test_without_safety_rank_one_explodes() -> None:
    """Shows that the test above can fail: the raw published steps do diverge."""
    raw = SCHEDULES["polar_express"].steps
    worst = 0.0
    for seed in range(6):
        x = with_spectrum(spectra(24)["rank_one"], 24, 24, seed).to(torch.bfloat16)
        # Normalized in bfloat16, as most published loops do.
        y = (x / x.norm())[None]
        for a, b, c in raw:
            r = y @ y.mT
            y = a * y + (b * r + c * r @ r) @ y
        worst = max(worst, largest_singular_value(y))
    assert worst > LIMIT


def test_default_is_at_least_as_accurate_as_five_polar_express_steps() -> None:
    """The promise of the default, on every spectrum, mean error over nonzero directions."""
    for name, values in spectra(96).items():
        x = with_spectrum(values, 96, 128).double()
        rank = int((values > 1e-9).sum())
        errors = {}
        for options in ({}, {"schedule": "polar_express", "method": "newton_schulz"}):
            y = orthogonalize(x, **options)
            s = torch.linalg.svdvals(y)[:rank]
            errors[len(options)] = float((s - 1).abs().mean())
        # A flat spectrum may by luck sit where the other ripple crosses one.
        assert errors[0] < max(errors[2], 0.04) + 1e-3, name


def test_certificate_sees_what_is_wrong() -> None:
    """A certificate that always passes is worse than none."""
    q = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64))[0]
    low_rank = q[:, :5] @ q[:5]
    good = certify(torch.stack([q, low_rank]))
    assert good.deviation.max() < 1e-6
    assert good.rank.tolist() == pytest.approx([20, 5], abs=1e-6)
    assert good.sigma_max.tolist() == pytest.approx([1, 1], abs=1e-6)
    # Far above one, where 3 g^2 - 2 g^3 by itself would leave for infinity.
    worse = certify(torch.diag(torch.tensor([1.3, 1.2, 1.0, 0.0], dtype=torch.float64)))
    assert worse.rank.item() == pytest.approx(3, abs=1e-3)
    assert worse.deviation.item() > 0.4
    assert certify(9 * low_rank).deviation.item() == pytest.approx(80, abs=1e-4)
    bad = certify(1.1 * q)
    assert bad.sigma_max.item() == pytest.approx(1.1, abs=1e-6)
    assert bad.deviation.item() > 0.1
    with pytest.raises(ValueError, match="iterations"):
        certify(q, 0)


@pytest.mark.parametrize("k", [2, 3, 8, 40])
def test_structured_matrices_stay_below_the_limit(k: int) -> None:
    """Entries that repeat are rounded alike: errors add up instead of averaging out."""
    torch.manual_seed(k)
    for rows, columns in ((100, 120), (320, 350)):
        for name, x in structured(rows, columns, k):
            y = orthogonalize(x, dtype=torch.bfloat16)
            assert largest_singular_value(y[None]) < LIMIT, (rows, name)
