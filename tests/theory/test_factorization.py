"""The test bed against slow truths: autograd, scipy's integrators and graphs; its errors."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import factorization as reference
from torch_specgd import SpecGD
from torch_specgd import factorization as fz

exact = partial(torch.allclose, rtol=1e-12, atol=1e-13)
widths = st.lists(st.integers(1, 5), min_size=3, max_size=5)
checked = settings(derandomize=True, deadline=None, max_examples=50)


def random_problem(dims: list[int], seed: int, l2: float) -> tuple[list[torch.Tensor], fz.Problem]:
    """Two seeds of factors, and a half-observed target."""
    m, n = dims[-1], dims[0]
    target = fz.target_from_spectrum(m, n, [2.0], seed=seed)
    mask = fz.random_mask(m, n, (m * n + 1) // 2, seed=seed)
    return fz.gaussian_init(dims, std=1.0, seeds=[seed, seed + 1]), fz.Problem(target, mask, l2)


@checked
@given(widths, st.integers(0, 99), st.sampled_from([0.0, 0.7]))
def test_loss_and_gradients_are_those_of_autograd(dims: list[int], seed: int, l2: float) -> None:
    """Every flow and every optimizer's run rests on them."""
    factors, problem = random_problem(dims, seed, l2)
    losses, grads = fz.loss(factors, problem), fz.gradients(factors, problem)
    for s in range(2):
        one = [w[s] for w in factors]
        assert exact(losses[s], reference.loss(one, problem.target, problem.mask, l2))
        truth = reference.gradients(one, problem.target, problem.mask, l2)
        for got, expected in zip(grads, truth, strict=True):
            assert torch.allclose(got[s], expected, rtol=1e-10, atol=1e-10)


@checked
@given(widths, st.integers(0, 99))
def test_coupling_matrix_is_the_gram_matrix_of_gradients(dims: list[int], seed: int) -> None:
    """Users read from it which entries interact."""
    factors, problem = random_problem(dims, seed, 0.0)
    coupling = fz.coupling_matrix(factors, problem.mask)
    for s in range(2):
        truth = reference.coupling_matrix([w[s] for w in factors], problem.mask)
        assert torch.allclose(coupling[s], truth, rtol=1e-9, atol=1e-9)


@checked
@given(st.integers(1, 12), st.integers(0, 999), st.floats(0.0, 0.5))
def test_connected_components_are_those_of_scipy(n: int, seed: int, density: float) -> None:
    """Labels in scipy's own order, for chains and stars and isolated nodes."""
    noise = torch.rand(n, n, generator=torch.Generator().manual_seed(seed))
    adjacency = torch.triu(noise < density, 1)
    adjacency = adjacency | adjacency.T
    labels = fz.connected_components(adjacency)
    assert labels.tolist() == reference.components(adjacency).tolist()


def test_long_chains_are_one_component() -> None:
    """The labels travel along the longest path, not only to neighbours' neighbours."""
    order = torch.randperm(300, generator=torch.Generator().manual_seed(3))
    adjacency = torch.zeros(300, 300, dtype=torch.bool)
    adjacency[order[:-1], order[1:]] = True
    assert int(fz.connected_components(adjacency | adjacency.T).max()) == 0


@pytest.mark.parametrize("depth", [2, 3])
def test_gradient_flow_agrees_with_scipy(depth: int) -> None:
    """Step control must not cost accuracy: rtol 1e-6 a step, a few hundred steps."""
    start = fz.gaussian_init([4, *[3] * (depth - 1), 5], std=0.3, seeds=[0, 1])
    target = fz.target_from_spectrum(5, 4, [3.0, 1.0])
    mask = fz.random_mask(5, 4, 12)
    times = [0.0, 0.5, 4.0]
    run = fz.gradient_flow(start, fz.Problem(target, mask), times)
    for s in range(2):
        truth = reference.flow([w[s] for w in start], target, mask, times)
        for got, expected in zip(run.factors, truth, strict=True):
            assert float((got[:, s] - expected).abs().max()) < 1e-4


def test_spectral_flow_agrees_with_scipy() -> None:
    """The smoothed spectral flow, through its stiff phase at the target."""
    start = fz.gaussian_init([4, 3, 5], std=0.3, seeds=[0])
    target = fz.target_from_spectrum(5, 4, [3.0, 1.0])
    mask = torch.ones(5, 4, dtype=torch.bool)
    times = [0.0, 0.5, 1.0, 1.5]
    run = fz.spectral_gradient_flow(start, fz.Problem(target), times, smoothing=0.1)
    truth = reference.flow([w[0] for w in start], target, mask, times, smoothing=0.1)
    for got, expected in zip(run.factors, truth, strict=True):
        assert float((got[:, 0] - expected).abs().max()) < 5e-3


def test_exact_spectral_flow_arrives_and_stays() -> None:
    """Without smoothing the flow chatters no wider than its shortest step allows."""
    target = fz.target_from_spectrum(8, 9, [1.0, 0.25])
    start = fz.lora_init(8, 2, 9)
    run = fz.spectral_gradient_flow(start, fz.Problem(target), [0.0, 0.4, 1.2], smoothing=0.0)
    assert float(run.products[1].sub(target).norm()) > 0.5  # sigma = 1 arrives at time 1
    assert float(run.products[2].sub(target).norm()) < 0.02


def test_a_seed_does_not_depend_on_its_company() -> None:
    """Adding seeds to an experiment must not change the earlier ones."""
    alone = fz.gaussian_init([4, 3, 5], std=0.1, seeds=[7])
    among = fz.gaussian_init([4, 3, 5], std=0.1, seeds=[1, 7, 3])
    assert all(torch.equal(a[0], b[1]) for a, b in zip(alone, among, strict=True))
    problem = fz.Problem(fz.target_from_spectrum(5, 4, [2.0, 1.0]))
    ends = [fz.gradient_flow(s, problem, [0.0, 20.0]).products[-1] for s in (alone, among)]
    assert torch.allclose(ends[0][0], ends[1][1], rtol=1e-12, atol=1e-12)


def test_flow_reaches_machine_precision_and_rests() -> None:
    """stop_loss far below the tolerance is reached; steps must not bounce around the optimum."""
    problem = fz.Problem(torch.ones(3, 3), fz.diagonal_mask(3))
    run = fz.gradient_flow(
        fz.family_init(3, 2, alpha=0.1, m=3.0), problem, [0.0, 1e9], stop_loss=1e-24
    )
    assert bool(run.converged.all())
    assert float(run.loss[-1]) <= 1e-24


def test_exhausted_steps_are_an_error() -> None:
    """A flow that is cut short must not pass for one that has ended."""
    problem = fz.Problem(torch.ones(3, 3))
    with pytest.raises(RuntimeError, match="max_steps=5 steps reached time"):
        fz.gradient_flow(fz.family_init(3, 2, alpha=0.1, m=3.0), problem, [0.0, 9.0], max_steps=5)


def test_descend_equals_the_plain_loop() -> None:
    """Batched seeds, matrices and stacks alike: the same as one run after the other."""
    problem = fz.Problem(fz.target_from_spectrum(5, 4, [2.0, 1.0]))
    start = fz.gaussian_init([4, 3, 5], std=0.1, seeds=[0, 1])
    both = fz.descend(start, problem, partial(SpecGD, lr=0.05), 20, record_every=7)
    assert both.times.tolist() == [0, 7, 14, 20]
    for s in range(2):
        one = fz.descend([w[s : s + 1] for w in start], problem, partial(SpecGD, lr=0.05), 20)
        assert torch.allclose(one.products[-1, 0], both.products[-1, s], rtol=1e-9, atol=1e-11)


def test_spectral_momentum_state_of_a_stack_keeps_the_rate() -> None:
    """Momentum leaves the rate of growth as it is: the polar factor forgets the scale."""
    target = fz.target_from_spectrum(20, 25, [4.0, 2.0])
    run = fz.descend(
        fz.lora_init(20, 2, 25), fz.Problem(target),
        partial(SpecGD, lr=0.01, momentum=0.95, nesterov=True), 120,
    )  # fmt: skip
    growth = torch.linalg.svdvals(run.products[[50, 100], 0])[:, :2].sqrt().diff(dim=0) / 0.5
    assert torch.allclose(growth, torch.ones(1, 2, dtype=torch.float64), atol=1e-3)


@checked
@given(
    st.integers(2, 6), st.integers(2, 5), st.floats(1.0, 1e3), st.floats(1e-3, 0.2),
    st.sampled_from([1, 3]),
)  # fmt: skip
def test_closed_forms_solve_their_equations(
    blocks: int, depth: int, m: float, alpha: float, block_size: int
) -> None:
    """Fit and conserved quantity hold together, over the whole range of arguments."""
    alpha /= block_size
    lam1, lam2 = fz.limit_eigenvalues(blocks, depth, alpha=alpha, m=m, block_size=block_size)
    total = lam1**depth + (blocks - 1) * lam2**depth
    assert total == pytest.approx(blocks * block_size, rel=1e-9)
    start = fz.family_eigenvalues(blocks, alpha=alpha, m=m, block_size=block_size)
    if start[1] > 1e-6:
        kept = [fz.conserved_quantity(a, b, depth) for a, b in (start, (lam1, lam2))]
        assert kept[1] == pytest.approx(kept[0], rel=1e-6)


def test_depth_two_stable_rank_is_its_formula() -> None:
    """1 + (n-1) ((m-1)/(m+n-1))^4, whatever alpha."""
    for n, m in ((4, 10.0), (7, 1.5), (3, 1.0)):
        formula = 1 + (n - 1) * ((m - 1) / (m + n - 1)) ** 4
        for alpha in (1e-3, 0.1):
            assert fz.limit_stable_rank(n, 2, alpha=alpha, m=m) == pytest.approx(formula)
    assert fz.limit_stable_rank(4, 2, alpha=0.1, m=math.inf) == pytest.approx(4.0)


def test_l2_optimum_is_a_stationary_point() -> None:
    """The soft threshold is where the penalized gradient vanishes."""
    target = fz.target_from_spectrum(6, 7, [3.0, 2.0, 0.5])
    u, s, vh = torch.linalg.svd(fz.soft_threshold(target, 1.0), full_matrices=False)
    s[2:] = 0.0  # rounding, whose square root would be 1e-8
    factors = [(s.sqrt()[:, None] * vh)[None], (u * s.sqrt())[None]]
    for g in fz.gradients(factors, fz.Problem(target, l2=1.0)):
        assert float(g.abs().max()) < 1e-12


def test_plasticity_without_new_data_has_nothing_to_lose() -> None:
    """The control of the protocol: the same data twice gives gap zero."""
    start = fz.gaussian_init([4, 4, 4], std=0.1, seeds=range(3))
    mask = fz.chain_mask(4)
    report = fz.plasticity(start, torch.ones(4, 4), mask, mask)
    assert float(report.gap.abs().max()) < 1e-4
    assert report.warm_stable_rank.shape == (3,)


ones = torch.ones(3, 3)
start3 = fz.family_init(3, 2, alpha=0.1, m=2.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fz.Problem(ones, mask=ones), TypeError, "mask must be a bool tensor"),
        (lambda: fz.Problem(ones, mask=torch.ones(2, 3).bool()), ValueError, r"\(3, 3\)"),
        (lambda: fz.Problem(ones, mask=torch.zeros(3, 3).bool()), ValueError, "at least one"),
        (lambda: fz.Problem(ones, l2=-1.0), ValueError, "l2 must be at least 0, got -1.0"),
        (lambda: fz.Problem(torch.ones(3)), ValueError, "target must be"),
        (lambda: fz.target_from_spectrum(2, 3, [1, 1, 1]), ValueError, "2 singular values"),
        (lambda: fz.random_mask(2, 2, 5), ValueError, "from 1 to 4, got 5"),
        (lambda: fz.family_init(3, 1, alpha=0.1, m=2.0), ValueError, "depth is 1"),
        (lambda: fz.family_init(3, 2, alpha=0.1, m=0.5), ValueError, "m must be from 1"),
        (lambda: fz.family_init(3, 2, alpha=0.0, m=2.0), ValueError, "alpha must be positive"),
        (lambda: fz.gaussian_init([3, 3, 3], std=[1.0]), ValueError, "2 numbers"),
        (lambda: fz.gradient_flow(start3, fz.Problem(ones[:2]), [0, 1]), ValueError, "target"),
        (lambda: fz.gradient_flow(start3, fz.Problem(ones), [1, 0]), ValueError, "ascending"),
        (lambda: fz.gradient_flow(start3[:1], fz.Problem(ones), [0, 1]), ValueError, "2 factors"),
        (
            lambda: fz.gradient_flow(fz.lora_init(3, 2, 4)[::-1], fz.Problem(ones), [0, 1]),
            ValueError,
            "first factor first",
        ),
        (
            lambda: fz.spectral_gradient_flow(start3, fz.Problem(ones), [0, 1], smoothing=-1),
            ValueError,
            "smoothing must be at least 0",
        ),
        (lambda: fz.descend(start3, fz.Problem(ones), SpecGD, 0), ValueError, "at least 1"),
        (lambda: fz.coupling_matrix(start3, ones.bool(), max_entries=8), ValueError, "max_entries"),
        (lambda: fz.connected_components(ones.triu().bool()), ValueError, "symmetric"),
        (lambda: fz.cross_coupling(ones[None], torch.zeros(3)), ValueError, "two different"),
        (lambda: fz.sample_mask(ones.bool(), 10), ValueError, "from 1 to 9, got 10"),
        (lambda: fz.gram_limit(start3, value=-1.0), ValueError, "must be positive"),
        (lambda: fz.gram_limit(start3 * 2), ValueError, "got 4"),
        (lambda: fz.hit_time([1.0], rate=0.0), ValueError, "rate must be positive"),
        (lambda: fz.soft_threshold(ones, -1.0), ValueError, "l2"),
        (lambda: fz.weight_decay_cap(-1.0), ValueError, "weight_decay"),
        (lambda: fz.limit_stable_rank(3, 3, alpha=9.0, m=2.0), ValueError, "exceeds"),
        (lambda: fz.unseen_rmse(ones, ones, ones.bool()), ValueError, "none is left"),
        (
            lambda: fz.plasticity(start3, ones, fz.chain_mask(3), fz.diagonal_mask(3)),
            ValueError,
            "contain every entry",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error: type[Exception], message: str) -> None:  # type: ignore[no-untyped-def]
    """A wrong mask or shape must not become a strange result."""
    with pytest.raises(error, match=message):
        call()
