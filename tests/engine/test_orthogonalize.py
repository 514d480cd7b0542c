"""The front door: every method against float64, every input a user may pass."""

import pytest
import torch
from torch.optim._muon import _zeropower_via_newtonschulz

from reference.polar import polar, spectra, through_svd, with_spectrum
from torch_specgd.triton_kernels import SCHEDULES, orthogonalize, resolve_schedule
from torch_specgd.triton_kernels.iterate import run

METHODS = ("auto", "newton_schulz", "gram", "precise", "svd", "smoothed")
ITERATIVE = METHODS[:4]
JORDAN = (3.4445, -4.7750, 2.0315)


@pytest.mark.parametrize("method", ["newton_schulz", "gram"])
@pytest.mark.parametrize("name", ["jordan", "polar_express", "degree9_3", "cubic"])
@pytest.mark.parametrize("shape", [(5, 17), (33, 12), (1, 9), (9, 1), (24, 24)])
def test_equals_scalar_map_through_svd(method: str, name: str, shape: tuple[int, int]) -> None:
    """A wrong coefficient, transposition or normalization would give another matrix."""
    x = torch.randn(shape, dtype=torch.float64)
    schedule = SCHEDULES[name]
    norm = x.norm().item()
    if schedule.normalization == "schatten4":
        norm = (torch.linalg.svdvals(x) ** 4).sum().item() ** 0.25
    truth = through_svd(x, schedule, norm)
    got = orthogonalize(x, method=method, schedule=schedule)
    assert (got - truth).abs().max() < 1e-9


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (20, 20), (1, 5), (5, 1)])
def test_bare_triple_is_torch_muon(shape: tuple[int, int]) -> None:
    """A user who switches from torch.optim.Muon would see another trajectory."""
    x = torch.randn(3, *shape)
    got = orthogonalize(x, schedule=JORDAN)
    for one, result in zip(x, got, strict=True):
        expected = _zeropower_via_newtonschulz(one.clone(), JORDAN, 5, 1e-7).float()
        assert (result - expected).abs().max() <= 2**-7


@pytest.mark.parametrize("name", list(spectra(4)))
def test_precise_reaches_one_up_to_condition_1e4(name: str) -> None:
    """'precise' promises singular values within 1e-3 of one wherever sigma > 1e-4 sigma_max."""
    values = spectra(24)[name]
    x = with_spectrum(values, 24, 40).float()
    got = torch.linalg.svdvals(orthogonalize(x, method="precise").double())
    reachable = values[values >= 1e-4].numel()
    assert (got[:reachable] - 1).abs().max() < 1e-3
    assert got.max() < 1 + 1e-3


@pytest.mark.parametrize("name", list(spectra(4)))
def test_svd_is_the_compact_polar_factor(name: str) -> None:
    """Directions without gradient would receive an update from rounding noise."""
    x = with_spectrum(spectra(20)[name], 31, 20)
    got = orthogonalize(x, method="svd", tolerance=1e-10)
    assert (got - polar(x, 1e-10)).abs().max() < 1e-9


def test_smoothed_maps_singular_values() -> None:
    """The smoothing would mean something else than its formula, also at other scales."""
    x = torch.randn(4, 7, 5, dtype=torch.float64)
    for scale in (1e-3, 1.0, 1e3):
        got = orthogonalize(x * scale, method="smoothed", smoothing=0.3)
        for one, result in zip(x * scale, got, strict=True):
            u, s, vh = torch.linalg.svd(one, full_matrices=False)
            truth = (u * (s / (s**2 + 0.09).sqrt())) @ vh
            assert (result - truth).abs().max() < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_zero_matrices_give_zeros(method: str) -> None:
    """A layer without gradient would be destroyed by NaN."""
    assert torch.equal(orthogonalize(torch.zeros(2, 3, 4), method=method), torch.zeros(2, 3, 4))
    assert torch.equal(orthogonalize(torch.zeros(2, 3), schedule=JORDAN), torch.zeros(2, 3))


@pytest.mark.parametrize("method", METHODS)
def test_nan_stays_in_its_batch_member(method: str) -> None:
    """One broken layer would silently break every layer batched with it."""
    x = torch.randn(3, 6, 9)
    clean = orthogonalize(x, method=method)
    x[1, 2, 3] = torch.nan
    got = orthogonalize(x, method=method)
    assert got[1].isnan().any()
    # The masked path may pick another kernel, so equality holds to rounding only.
    assert torch.allclose(got[[0, 2]], clean[[0, 2]], atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("method", [*ITERATIVE, "svd"])
def test_scale_does_not_matter(method: str, scale: float) -> None:
    """Tiny or huge gradients would vanish or overflow in the norm."""
    x = torch.randn(5, 8)
    got = orthogonalize(x * scale, method=method)
    assert torch.allclose(got, orthogonalize(x, method=method), atol=2e-4)


def test_scale_does_not_matter_across_a_batch() -> None:
    """A huge member would push a tiny one below the smallest float."""
    x = torch.randn(1, 5, 8)
    scales = torch.tensor([1e-30, 1.0, 1e30]).view(3, 1, 1)
    got = orthogonalize(x * scales)
    assert torch.allclose(got, got[1:2].expand(3, 5, 8), atol=2e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0)])
def test_empty_input(method: str, shape: tuple[int, ...]) -> None:
    """An empty bucket on one rank would crash the step."""
    assert orthogonalize(torch.zeros(shape), method=method).shape == shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_shape_dtype_no_alias_untouched(method: str, dtype: torch.dtype) -> None:
    """The optimizer would write into the user's gradient or change a parameter's dtype."""
    base = torch.randn(2, 3, 10, 14, dtype=torch.float64).to(dtype)
    for x in (base, base.mT, base[..., ::2, 1::3], base.transpose(0, 2)):
        before = x.clone()
        got = orthogonalize(x, method=method)
        assert got.shape == x.shape
        assert got.dtype == dtype
        got.zero_()
        assert torch.equal(x, before)


@pytest.mark.parametrize("method", ITERATIVE)
def test_orthogonal_input_stays(method: str) -> None:
    """A weight that is orthogonal already would be pushed away from it."""
    q = torch.linalg.qr(torch.randn(12, 12))[0]
    limit = 1e-3 if method == "precise" else 0.13
    assert (torch.linalg.svdvals(orthogonalize(q, method=method)) - 1).abs().max() < limit


@pytest.mark.parametrize("method", ["auto", "precise"])
def test_batch_equals_singles(method: str) -> None:
    """Grouping layers would change training."""
    x = torch.randn(2, 3, 6, 11)
    got = orthogonalize(x, method=method)
    for i in range(2):
        for j in range(3):
            assert torch.allclose(got[i, j], orthogonalize(x[i, j], method=method), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(70, 200), (200, 70), (80, 80)])
def test_groups_in_buffers_equal_singles(
    shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large matrices go a few at a time through two buffers, which must never be one."""
    monkeypatch.setattr(run, "_CHUNK", 2 * shape[0] * shape[1])
    x = torch.randn(5, *shape)
    got = orthogonalize(x, dtype=dtype)
    assert got.is_contiguous()
    for one, alone in zip(got, x, strict=True):
        torch.testing.assert_close(one, orthogonalize(alone, dtype=dtype), rtol=0, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(3, 70, 100), (3, 100, 70), (2, 5, 9), (0, 4), (1, 6)])
def test_result_over_the_input(
    shape: tuple[int, ...], method: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gives the input away gets the same numbers in its place, from any method."""
    monkeypatch.setattr(run, "_CHUNK", 70 * 100)
    x = torch.randn(shape).to(dtype)
    x[..., :1] *= 1e-20  # a member that is scaled first, or none
    for schedule in (None, [[1.5, -0.5]]) if method in ("newton_schulz", "gram") else (None,):
        expected = orthogonalize(x, method=method, schedule=schedule)
        y = x.clone()
        assert orthogonalize(y, method=method, schedule=schedule, out=y) is y
        assert torch.equal(y, expected)
        other = torch.empty_like(x)
        orthogonalize(x, method=method, schedule=schedule, out=other)
        assert torch.equal(other, expected)


def test_out_that_cannot_take_the_result() -> None:
    """A result in the wrong place would be lost, or eat the input halfway."""
    x = torch.randn(2, 4, 6)
    memory = torch.zeros(3, 4, 6)
    for out in (x[0], x.double(), x.mT.contiguous().mT, memory[:, :, :3]):
        with pytest.raises(ValueError, match="out"):
            orthogonalize(x, out=out)
    with pytest.raises(ValueError, match="shares memory"):
        orthogonalize(memory[:2], out=memory[1:])
    # Side by side in one piece of memory they are welcome, as a step of Muon keeps them.
    memory[:1].copy_(x[:1])
    result = orthogonalize(memory[:1], out=memory[1:2])
    assert torch.equal(result, orthogonalize(x[:1]))
    assert torch.equal(memory[:1], x[:1])


def test_bfloat16_direct_form_follows_exact_arithmetic() -> None:
    """Above 64 the direct form runs in bfloat16 and must stay near the scalar map."""
    x = torch.randn(80, 200)
    s = torch.linalg.svdvals(orthogonalize(x, dtype=torch.bfloat16).double())
    low, high = resolve_schedule(None).range()
    # Direct bf16 follows exact arithmetic to about 2e-3 in sigma_max; storage adds 2^-8.
    assert s.max() < high + 2e-2
    assert s.min() > low - 5e-2


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (torch.zeros(3, 3, dtype=torch.int64), "int64"),
        (torch.zeros(3, 3, dtype=torch.complex64), "complex64"),
        (torch.zeros(3, 3).to_sparse(), "layout"),
        ([[1.0]], "list"),
    ],
)
def test_wrong_kinds(x: object, match: str) -> None:
    """The message must name what was passed."""
    with pytest.raises(TypeError, match=match):
        orthogonalize(x)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "nope"}, "newton_schulz"),
        ({"schedule": "nope"}, "polar_express"),
        ({"schedule": [(1.0,)]}, "2 to 5"),
        ({"schedule": (1.0, float("nan"), 1.0)}, "finite"),
        ({"steps": 0}, r"\[1, 99\]"),
        ({"eps": 0.0}, "eps"),
        ({"smoothing": -1.0}, "smoothing"),
        ({"tolerance": 1.0}, "tolerance"),
    ],
)
def test_wrong_values(options: dict[str, object], match: str) -> None:
    """A typo must be answered with the accepted values, not with another result."""
    with pytest.raises(ValueError, match=match):
        orthogonalize(torch.eye(3), **options)  # type: ignore[arg-type]


def test_wrong_dimensions_and_dtype() -> None:
    """A bias must be refused, not reshaped."""
    with pytest.raises(ValueError, match=r"\(3,\)"):
        orthogonalize(torch.zeros(3))
    with pytest.raises(TypeError, match="int32"):
        orthogonalize(torch.eye(3), dtype=torch.int32)
    with pytest.raises(TypeError, match="schedule"):
        orthogonalize(torch.eye(3), schedule=3.0)  # type: ignore[arg-type]
