"""Powers, clips, smoothed factors, inverse roots and eigenbases, by products alone."""

from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reference import spectral as truth
from reference.polar import few_dimensions, schatten, spectra, with_spectrum
from reference.rounded import MirroredProducts, RoundedProducts, SplitProducts
from reference.search import rotations
from torch_specgd.triton_kernels import (
    Schedule,
    design_schedule,
    eigenbasis,
    inverse_root,
    orthogonalize,
    plan,
    spectral_clip,
    spectral_power,
    spectral_smooth,
)
from torch_specgd.triton_kernels.iterate.iteration import direct
from torch_specgd.triton_kernels.iterate.normalize import begin
from torch_specgd.triton_kernels.iterate.roots import inverse_root_of
from torch_specgd.triton_kernels.operator import orthogonalize_op, plain
from torch_specgd.triton_kernels.planning.plan import Request
from torch_specgd.triton_kernels.spectral import power_schedule, root_schedule

POWERS = (-0.25, -0.1, 0.1, 0.25, 0.5)
ROOTS = (2, 4, 8)
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "power": lambda x: spectral_power(x, 0.25),
    "clip": lambda x: spectral_clip(x, 0.5),
    "smooth": lambda x: spectral_smooth(x, 0.1),
}
OF_SYMMETRIC: dict[str, Callable[[Tensor], Tensor]] = {
    "root": lambda a: inverse_root(a, 4),
    "basis": eigenbasis,
}


def _spectrum(low: float, n: int, seed: int = 0) -> Tensor:
    """Values from one down to `low`, the ends among them."""
    generator = torch.Generator().manual_seed(seed)
    inner = low ** torch.rand(n - 2, generator=generator, dtype=torch.float64)
    return torch.cat([torch.tensor([1.0, low], dtype=torch.float64), inner])


def _positive(values: Tensor, seed: int = 0) -> Tensor:
    n = len(values)
    q = with_spectrum(torch.ones(n), n, n, seed)
    a = (q * values.double()) @ q.T
    return (a + a.T) / 2


def _error(a: Tensor, z: Tensor, r: int) -> float:
    """How far A^(1/2r) Z A^(1/2r) is from the identity: the relative error of an inverse root."""
    half = truth.root(a, 2 * r)
    eye = torch.eye(a.shape[-1], dtype=torch.float64)
    return float(torch.linalg.matrix_norm(half @ z.double() @ half - eye, 2).max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("power", POWERS)
def test_powers_are_within_two_percent(power: float, dtype: torch.dtype) -> None:
    """An update between SGD's and Muon's would be neither."""
    for shape in ((40, 70), (70, 40)):
        x = with_spectrum(_spectrum(3e-3, 40), *shape)
        x *= 17 / schatten(x, 4)
        error = spectral_power(x.to(dtype), power).double() - truth.power(x, power)
        unit = max(17**power, 17**power * 3e-3**power)
        assert torch.linalg.matrix_norm(error, 2) < 0.02 * unit


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    values=st.lists(st.floats(1e-2, 1.0), min_size=1, max_size=20),
    power=st.floats(-0.25, 0.5),
    scale=st.sampled_from([1e-20, 1.0, 1e20]),
)
def test_any_power_of_any_spectrum(values: list[float], power: float, scale: float) -> None:
    """The power may be a setting that a sweep draws."""
    x = scale * with_spectrum(torch.tensor(values), len(values), len(values) + 3)
    found, expected = spectral_power(x, power), truth.power(x, power)
    # Values are those of a matrix of norm one, whose powers are at most its smallest's.
    norm = schatten(x / scale, 4) * scale
    unit = norm**power * max(1.0, (min(values) * scale / norm) ** power)
    assert torch.linalg.matrix_norm(found - expected, 2) < 0.02 * unit


@pytest.mark.parametrize("way", [(RoundedProducts(), True), (MirroredProducts(), False)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("power", [-0.25, 0.1, 0.5])
def test_no_power_overshoots(power: float, dtype: torch.dtype, way: tuple) -> None:
    """A weighted sum of iterates may add up their roundings."""
    (ops, look), schedule = way, power_schedule(power)
    largest = max(1.0, 1e-3**power)
    for x in (rotations(4000), *(few_dimensions(n, 700) for n in (2, 3, 4, 6, 8, 12))):
        start = begin(x, dtype, schedule.normalization, ops, look=look)
        y = direct(start, schedule, ops)
        assert torch.linalg.matrix_norm(y, 2).max() < 1.1 * largest


@pytest.mark.parametrize("power", [0.25, 0.5])
def test_powers_in_emulated_bfloat16(power: float) -> None:
    """Half the width is enough where small singular values are not raised far."""
    ops, schedule = MirroredProducts(), power_schedule(power)
    for name, values in spectra(96).items():
        x = with_spectrum(values, 96, 128).to(torch.bfloat16)
        start = begin(x[None], torch.bfloat16, schedule.normalization, ops, look=False)
        u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
        s = s / schatten(x, 4)
        kept = s >= 1e-3
        found = u.mT[kept] @ direct(start, schedule, ops)[0].double() @ vh.mT[:, kept]
        error = torch.linalg.matrix_norm(found - torch.diag(s[kept] ** power), 2)
        assert error < 0.05, name


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (20, 20)])
@pytest.mark.parametrize("limit", [0.03, 0.4, 2.0])
def test_clipping(shape: tuple[int, int], limit: float) -> None:
    """Singular values beyond the limit would come through, or those below it be moved."""
    x = with_spectrum(_spectrum(1e-3, min(shape)), *shape)
    x = torch.stack([x, 3 * x])
    error = spectral_clip(x, limit) - truth.clip(x, limit)
    assert torch.linalg.matrix_norm(error, 2).max() < 2e-3


@settings(derandomize=True, deadline=None, max_examples=30)
@given(values=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=20), limit=st.floats(1e-2, 2.0))
def test_clipping_any_spectrum(values: list[float], limit: float) -> None:
    """Values near the limit are where both sides meet."""
    x = with_spectrum(torch.tensor(values), len(values), len(values) + 3)
    error = spectral_clip(x, limit) - truth.clip(x, limit)
    assert torch.linalg.matrix_norm(error, 2) < 2e-3


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
@pytest.mark.parametrize("smoothing", [3e-3, 0.1, 5.0])
def test_smoothing(shape: tuple[int, int], smoothing: float) -> None:
    """It has to be what the singular value decomposition gives."""
    x = with_spectrum(_spectrum(1e-3, 30), *shape)
    found = spectral_smooth(x, smoothing)
    assert torch.linalg.matrix_norm(found - truth.smooth(x, smoothing), 2) < 1e-4
    exact = orthogonalize(x, method="smoothed", smoothing=smoothing)
    assert torch.linalg.matrix_norm(found - exact, 2) < 1e-4


@pytest.mark.parametrize("name", ["clip", "smooth"])
def test_clipped_and_smoothed_in_sixteen_bits(name: str) -> None:
    """Hidden layers are wider than 64, and bfloat16 where the processor multiplies it."""
    x = with_spectrum(spectra(96)["log3"], 96, 128).float()
    expected = truth.clip(x, 0.5) if name == "clip" else truth.smooth(x, 0.1)
    error = FUNCTIONS[name](x).double() - expected
    assert torch.linalg.matrix_norm(error, 2) < 0.05


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("n", [2, 12, 200])
def test_inverse_roots_have_four_digits(n: int, root: int, dtype: torch.dtype) -> None:
    """Shampoo would scale some directions by another power than others."""
    a = 300 * torch.stack([_positive(_spectrum(1e-3, n, seed), seed) for seed in range(3)])
    found = inverse_root(a.to(dtype), root)
    assert found.dtype == dtype
    assert torch.equal(found, found.mT)
    assert _error(a, found, root) < 2e-4
    assert (found - truth.inverse_root(a, root)).abs().max() < 2e-4 * (0.3 ** (-1 / root))


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    values=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=20),
    root=st.sampled_from(ROOTS),
    scale=st.sampled_from([1e-20, 1.0, 1e20]),
)
def test_inverse_root_of_any_spectrum(values: list[float], root: int, scale: float) -> None:
    """Statistics of gradients have any spectrum, at any scale."""
    a = _positive(torch.tensor([1.0, *values]))
    found = inverse_root((scale * a).float(), root)
    assert _error(a, found.double() * scale ** (1 / root), root) < 2e-4


class _ThreeProducts(SplitProducts):
    """Float32 products as three bfloat16 products, float32 between them."""

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        highs = [x.to(torch.bfloat16).float() for x in (a, b)]
        lows = [(x - h).to(torch.bfloat16).float() for x, h in zip((a, b), highs, strict=True)]
        return lows[0] @ highs[1] + highs[0] @ lows[1] + highs[0] @ highs[1]


@pytest.mark.parametrize("root", ROOTS)
def test_inverse_roots_of_hard_matrices(root: int) -> None:
    """Matrix units multiply float32 in pieces: no direction may come out a tenth too large."""
    for x in (rotations(4000), *(few_dimensions(n, 700) for n in (2, 3, 4, 6, 8, 12))):
        a = x @ x.mT
        a = (a + a.mT) / 2
        half = truth.root(a, 2 * root)
        for ops in (RoundedProducts(), SplitProducts(), _ThreeProducts()):
            z = inverse_root_of(a, root_schedule(root), ops)
            top = torch.linalg.matrix_norm(half @ z.double() @ half, 2)
            assert top.max() < 1.1, type(ops)
    a = torch.stack([_positive(_spectrum(1e-3, 60, seed), seed) for seed in range(3)])
    z = inverse_root_of(a.float(), root_schedule(root), _ThreeProducts())
    assert _error(a, z, root) < 0.05


def test_zeros_are_inverted_as_small_values() -> None:
    """A statistic of few gradients has a low rank: its inverse would be infinite."""
    x = torch.randn(30, 4, dtype=torch.float64)
    z = inverse_root(x @ x.T, 4)
    eigenvalues = torch.linalg.eigvalsh(z)
    largest = torch.linalg.eigvalsh(x @ x.T)[-1]
    assert eigenvalues[-1] < 15 * largest**-0.25
    ridged = x @ x.T + largest * torch.eye(30)
    assert _error(ridged, inverse_root(ridged, 4), 4) < 2e-4


def _statistics(n: int) -> tuple[Tensor, Tensor]:
    """An average of G G^T, and the same after one more gradient."""
    left = with_spectrum(torch.arange(1, n + 1.0) ** -0.75, n, n)
    a = left @ left.T
    g = left @ torch.randn(n, n, dtype=torch.float64) / n**0.5
    return (a + a.T) / 2, 0.9 * a + 0.1 * g @ g.T


def test_two_rounds_from_the_last_basis_are_worth_five_steps_of_qr() -> None:
    """A basis that lags behind the statistics is worth less than none."""
    old, new = _statistics(60)
    basis = torch.linalg.eigh(old)[1]
    found = [eigenbasis(new, basis, rounds=k) for k in (1, 2)]
    left = []
    for _ in range(5):
        basis = basis[:, (basis.T @ new @ basis).diagonal().argsort(descending=True)]
        basis = torch.linalg.qr(new @ basis)[0]
        left.append(truth.off_diagonal(new, basis))
    assert truth.off_diagonal(new, found[0]) < left[0]
    assert truth.off_diagonal(new, found[1]) < left[4]


@pytest.mark.parametrize("rank", [1, 8, 200])
def test_an_eigenbasis_stays_orthonormal_whatever_the_rank(rank: int) -> None:
    """With most eigenvalues alike every pair turns as far as it can, all at once."""
    x = torch.randn(200, rank) if rank > 1 else torch.ones(200, 1)
    q = torch.eye(200)
    for _ in range(3):
        q = eigenbasis(x @ x.T, q, rounds=5, check=False)
        assert (torch.linalg.svdvals(q) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_eigenbasis_from_nothing_is_that_of_eigh(dtype: torch.dtype) -> None:
    """Up to signs and order, where eigenvalues are apart."""
    a = torch.stack([_statistics(24)[0], _positive(torch.linspace(1, 2, 24))]).to(dtype)
    q = eigenbasis(a, rounds=25)
    assert truth.off_diagonal(a, q).max() < 1e-5
    eye = torch.eye(24, dtype=torch.float64)
    assert (q.double().mT @ q.double() - eye).abs().max() < 1e-5
    vectors = torch.linalg.eigh(a.double())[1]
    assert ((q.double().mT @ vectors).abs().amax(-1) - 1).abs().max() < 1e-4


def test_basis_stays_orthogonal_over_many_rounds() -> None:
    """A basis that is turned in every step would wear out."""
    a, q = _statistics(20)[0].float(), None
    for _ in range(60):
        a = 0.9 * a + 0.1 * _statistics(20)[1].float()
        q = eigenbasis((a + a.T) / 2, q, rounds=1)
    assert q is not None
    assert (q.T @ q - torch.eye(20)).abs().max() < 1e-5


def test_no_function_decomposes() -> None:
    """An eigendecomposition takes a GPU longer than the rest of a step."""
    names = ("svd", "svdvals", "eigh", "eigvalsh", "eig", "qr", "cholesky", "inv", "solve")

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("decomposed")

    x = torch.randn(8, 12)
    patches = [mock.patch.object(torch.linalg, name, forbidden) for name in names]
    for patch in patches:
        patch.start()
    try:
        found = [f(x) for f in FUNCTIONS.values()] + [f(x @ x.T) for f in OF_SYMMETRIC.values()]
    finally:
        for patch in patches:
            patch.stop()
    assert all(y.isfinite().all() for y in found)


@pytest.mark.parametrize("name", [*FUNCTIONS, *OF_SYMMETRIC])
def test_batches_nan_zero_and_empty(name: str) -> None:
    """One broken matrix would break its batch; an empty shard would raise."""
    symmetric = name in OF_SYMMETRIC
    function = (OF_SYMMETRIC if symmetric else FUNCTIONS)[name]
    x = torch.randn(2, 2, 6, 6) if symmetric else torch.randn(2, 2, 6, 9)
    x = x @ x.mT if symmetric else x
    x[0, 1] = 0.0
    given = x.clone()
    y = function(x)
    assert torch.equal(x, given)
    assert y.shape == x.shape
    for i in range(2):
        for j in range(2):
            assert torch.allclose(y[i, j], function(x[i, j]), atol=1e-5)
    if name != "basis":
        assert torch.equal(y[0, 1], torch.zeros_like(y[0, 1]))
    broken = x.clone()
    broken[1, 0] = torch.nan
    z = function(broken)
    assert z[1, 0].isnan().any()
    assert torch.allclose(z[[0, 0, 1], [0, 1, 1]], y[[0, 0, 1], [0, 1, 1]], atol=1e-5)
    for shape in ((0, 5, 5), (3, 0, 0)):
        assert function(torch.empty(shape)).shape == shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*FUNCTIONS, *OF_SYMMETRIC])
def test_results_have_the_dtype_of_what_is_given(name: str, dtype: torch.dtype) -> None:
    """A bfloat16 parameter would be updated by a float32 tensor."""
    x = torch.randn(5, 5)
    x = (x @ x.T).to(dtype)
    x = (x + x.T) / 2
    y = (FUNCTIONS | OF_SYMMETRIC)[name](x)
    assert y.dtype == dtype
    assert y.isfinite().all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: spectral_power(torch.eye(3), 0.6), ValueError, "power must be in"),
        (lambda: spectral_power(torch.eye(3), float("nan")), ValueError, "power must be in"),
        (lambda: spectral_clip(torch.eye(3), 0.0), ValueError, "limit must be positive"),
        (lambda: spectral_smooth(torch.eye(3), -1.0), ValueError, "smoothing must be positive"),
        (lambda: spectral_smooth(torch.ones(3), 1.0), ValueError, "2 dimensions"),
        (lambda: spectral_smooth([[1.0]], 1.0), TypeError, "must be a torch.Tensor"),
        (lambda: spectral_smooth(torch.ones(2, 2, dtype=torch.int64), 1.0), TypeError, "floating"),
        (lambda: inverse_root(torch.eye(3), 3), ValueError, "root must be one of"),
        (lambda: inverse_root(torch.randn(3, 4)), ValueError, "must be square"),
        (lambda: inverse_root(torch.eye(3).triu(-1) + torch.ones(3, 3).triu()), ValueError,
         "must be symmetric"),
        (lambda: inverse_root(torch.eye(3, dtype=torch.int64)), TypeError, "dense and real"),
        (lambda: inverse_root([[1.0]]), TypeError, "must be a torch.Tensor"),
        (lambda: eigenbasis(torch.ones(3, 3).triu()), ValueError, "must be symmetric"),
        (lambda: eigenbasis(torch.eye(3), torch.eye(4)), ValueError, "start must have"),
        (lambda: eigenbasis(torch.eye(3), rounds=0), ValueError, "rounds must be"),
        (lambda: orthogonalize(torch.eye(3), schedule=root_schedule(4)), ValueError, "root 2"),
        (lambda: orthogonalize(torch.eye(3), schedule=power_schedule(0.5), method="gram"),
         ValueError, "no weights for the Gram form"),
        (lambda: orthogonalize(torch.eye(3), schedule=power_schedule(0.5), steps=4),
         ValueError, "steps must be 9"),
        (lambda: Schedule("x", ((1.5, -0.5),), weights=(1.0,)), ValueError, "weights must be 2"),
        (lambda: design_schedule(5, 2, function=np.log, lower=1e-3, root=4), ValueError, "root"),
        (lambda: design_schedule(5, 2, function=lambda s: s * np.nan), ValueError, "finite"),
    ],
)  # fmt: skip
def test_refusals(call: Callable[[], Tensor], error: type, message: str) -> None:
    """What cannot be done would be done wrong."""
    with pytest.raises(error, match=message):
        call()


def test_weights_pass_through_the_operator() -> None:
    """A traced or compiled step would fall back to the polar factor."""
    schedule, x = power_schedule(0.5), torch.randn(2, 5, 9)
    request = Request("newton_schulz", schedule, "default", 1e-7, None, 1e-2, None)
    torch.library.opcheck(orthogonalize_op, (x, *plain(request)))
    eager = orthogonalize(x, schedule=schedule)
    compiled = torch.compile(
        lambda y: orthogonalize(y, schedule=schedule), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x), eager)
    s = torch.linalg.svdvals(x)
    expected = (s / torch.linalg.vector_norm(s, ord=4, dim=-1, keepdim=True)) ** 0.5
    assert torch.allclose(torch.linalg.svdvals(eager), expected, atol=5e-3)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_weighted_sums_take_the_direct_form(device: str) -> None:
    """The Gram form, and the kernel of one launch, never have what X becomes after each step."""
    for shape in ((16, 50), (300, 3000)):
        chosen = plan(shape, schedule=power_schedule(0.5), device=device)
        assert (chosen.form, chosen.one_launch) == ("direct", False)


@pytest.mark.parametrize("function", [np.sqrt, lambda s: s / np.hypot(s, 0.03), np.sin])
def test_any_function_can_be_designed(function: Callable) -> None:
    """Weights come from a fit that has to hold between its points as well."""
    schedule = design_schedule(5, 9, safety=1.05, cushion=0.6, function=function)
    s = np.geomspace(1e-3, 1.0, 20_001)
    assert np.abs(schedule(s) - function(s)).max() < 0.02
    values = torch.from_numpy(s[::2000])
    x = with_spectrum(values, len(values), 20)
    y = orthogonalize(x, schedule=schedule)
    expected = truth.of_singular_values(
        x / x.norm(), lambda s: torch.from_numpy(function(s.numpy()))
    )
    assert torch.linalg.matrix_norm(y - expected, 2) < 0.02
