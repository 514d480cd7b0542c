"""Shin and Yun, arXiv 2603.04703, as checks A1 to A4: coupling, depth, stable rank, plasticity."""

import math

import pytest
import torch

from torch_specgd import factorization as fz
from torch_specgd import stable_rank

INF = math.inf
FAMILY = [  # depth, alpha, m
    (2, 1e-1, 2.0),
    (2, 1e-3, 2.0),
    (2, 1e-1, 10.0),
    (2, 1e-3, 10.0),
    (2, 1e-1, INF),
    (3, 0.3, 10.0),
    (3, 0.1, 10.0),
    (3, 0.3, 100.0),
    (3, 0.1, INF),
    (4, 0.3, 10.0),
    (4, 0.3, 100.0),
]


def fit(start: list[torch.Tensor], mask: torch.Tensor, stop_loss: float = 1e-14) -> torch.Tensor:
    """Products at the end of gradient flow on a target of ones; (S, d, d)."""
    target = torch.ones(mask.shape)
    run = fz.gradient_flow(start, fz.Problem(target, mask), [0.0, 1e9], stop_loss=stop_loss)
    assert bool(run.converged.all())
    return run.products[-1]


@pytest.mark.parametrize(("depth", "alpha", "m"), FAMILY)
def test_a1_stable_rank_follows_its_closed_form(depth: int, alpha: float, m: float) -> None:
    """The flow, or the formula that users compare their runs with, is wrong."""
    product = fit(fz.family_init(4, depth, alpha=alpha, m=m), fz.diagonal_mask(4))
    predicted = fz.limit_stable_rank(4, depth, alpha=alpha, m=m)
    assert abs(float(stable_rank(product)) - predicted) < 1e-3


def test_a1_published_numbers() -> None:
    """The closed form itself: values that were measured with an independent program."""
    ranks = [fz.limit_stable_rank(4, 2, alpha=0.1, m=m) for m in (2.0, 10.0, INF)]
    assert ranks == pytest.approx([1.0048, 1.68916, 4.0], abs=1e-4)
    assert fz.limit_stable_rank(4, 3, alpha=0.3, m=10.0) == pytest.approx(1.0073, abs=1e-4)
    assert fz.limit_stable_rank(4, 3, alpha=0.3, m=100.0) == pytest.approx(2.340, abs=1e-3)


def test_a1_blocks_larger_than_one_and_other_values() -> None:
    """Block-diagonal observations of any block size and value obey the same law."""
    mask = fz.diagonal_mask(3, 2)
    start = fz.family_init(3, 3, alpha=0.2, m=5.0, block_size=2)
    run = fz.gradient_flow(
        start, fz.Problem(torch.full((6, 6), 0.7), mask), [0.0, 1e9], stop_loss=1e-16
    )
    predicted = fz.limit_stable_rank(3, 3, alpha=0.2, m=5.0, block_size=2, value=0.7)
    assert float(stable_rank(run.products[-1])) == pytest.approx(predicted, abs=1e-5)


def test_a1_conserved_quantity_is_conserved() -> None:
    """What the closed form rests on holds along the whole path, not only at its end."""
    for depth in (2, 3, 4):
        start = fz.family_init(4, depth, alpha=0.3, m=10.0)
        problem = fz.Problem(torch.ones(4, 4), fz.diagonal_mask(4))
        run = fz.gradient_flow(start, problem, torch.linspace(0, 8, 5), rtol=1e-7)
        eigenvalues = torch.linalg.eigvalsh(run.factors[0][:, 0])
        kept = fz.conserved_quantity(eigenvalues[:, -1], eigenvalues[:, 0], depth)
        assert torch.allclose(kept, kept[:1], rtol=1e-5)


def test_a2_depth_two_is_decoupled_and_depth_three_is_not() -> None:
    """The coupling matrix no longer tells connected from disconnected data."""
    mask = fz.diagonal_mask(5, 2)
    block = mask.nonzero()[:, 0] // 2
    rms = {}
    for depth in (2, 3, 4, 5):
        factors = fz.gaussian_init([10] * (depth + 1), std=0.1, seeds=range(5))
        coupling = fz.coupling_matrix(factors, mask)
        groups = fz.coupled_components(coupling)
        rms[depth] = float(fz.cross_coupling(coupling, block).rms.mean())
        assert groups.amax(1).tolist() == ([4] * 5 if depth == 2 else [0] * 5)
        identity = [torch.eye(10, dtype=torch.float64)[None]] * depth
        assert float(fz.cross_coupling(fz.coupling_matrix(identity, mask), block).max) == 0.0
    assert rms[2] == 0.0
    assert 0.0 < rms[3] < rms[4] < rms[5]


def test_a2_depth_two_components_are_those_of_the_bipartite_graph() -> None:
    """For any mask: coupling at depth 2 is connectivity of the observations."""
    for seed in range(6):
        mask = fz.random_mask(7, 9, 12, seed=seed)
        factors = fz.gaussian_init([9, 5, 7], std=1.0, seeds=[seed])
        groups = fz.coupled_components(fz.coupling_matrix(factors, mask))[0]
        assert torch.equal(groups, fz.bipartite_components(mask))


def median_rank(depth: int, alpha: float) -> float:
    start = fz.gaussian_init([10] * (depth + 1), std=alpha, seeds=range(5))
    return float(stable_rank(fit(start, fz.diagonal_mask(10), 1e-12)).median())


def test_a3_depth_promotes_low_rank_from_random_starts() -> None:
    """Random starts: depth 2 keeps a high rank at any scale, deeper nets approach rank one."""
    two = [median_rank(2, alpha) for alpha in (1e-1, 1e-3)]
    assert min(two) > 1.7
    assert abs(two[0] - two[1]) < 0.05
    three = [median_rank(3, alpha) for alpha in (1e-1, 1e-3)]
    assert three[1] < 1.25
    assert three[1] < three[0]
    assert median_rank(4, 1e-2) < 1.25


def test_a3b_depth_two_limit_is_the_gram_matrix() -> None:
    """The whole limit is known in advance, entry by entry."""
    start = fz.gaussian_init([10, 10, 10], std=1e-4, seeds=range(5))
    product = fit(start, fz.diagonal_mask(10))
    assert float((product - fz.gram_limit(start)).abs().max()) < 5e-3


def test_a4_plasticity_by_depth() -> None:
    """In the (alpha, m) family: depth 2 loses plasticity, depth 3 and 4 do not, m = inf does."""
    first, second, target = fz.diagonal_mask(5), fz.chain_mask(5), torch.ones(5, 5)

    def gap(depth: int, alpha: float, m: float) -> float:
        start = fz.family_init(5, depth, alpha=alpha, m=m)
        return float(fz.plasticity(start, target, first, second).gap)

    assert gap(2, 1e-3, 10.0) > 0.3
    assert abs(gap(3, 1e-2, 10.0)) < 0.01
    assert abs(gap(4, 1e-2, 10.0)) < 0.01
    assert gap(3, 1e-2, INF) > 0.5
