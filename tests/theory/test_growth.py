"""Kang et al., arXiv 2602.06385, as checks B1 to B8: equal rate, smallest first, convergence."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from torch_specgd import ConstantThenLinear, LoraPair, SpecGD, SpectrumTracker
from torch_specgd import factorization as fz

SIGMA = [10.0, 8.0, 6.0, 4.0, 2.0]
ETA = 0.01
JORDAN = (3.4445, -4.7750, 2.0315)
CLASSIC = (15 / 8, -10 / 8, 3 / 8)


def grow(make_optimizer, sigma=SIGMA, steps=330, seed=0) -> SpectrumTracker:  # type: ignore[no-untyped-def]
    """The paper's 60 x 70 toy, rank 5, watched by a SpectrumTracker after every step."""
    target = fz.target_from_spectrum(60, 70, sigma, seed=seed)
    problem = fz.Problem(target)
    b, a = (Parameter(w[0]) for w in fz.lora_init(60, 5, 70, gamma=1e-3, seeds=[seed]))
    optimizer = make_optimizer([a, b])
    # Ours is named by PEFT: the paper's A, zero at the start, is lora_b.
    tracker = SpectrumTracker(
        None, every=1, pairs=[LoraPair("toy", a, b)], targets={"toy": target}, optimizer=optimizer
    )
    tracker.record(0)
    for step in range(1, steps + 1):
        grads = fz.gradients([b.detach()[None], a.detach()[None]], problem)
        b.grad, a.grad = grads[0][0], grads[1][0]
        optimizer.step()
        tracker.update(step)
    return tracker


def rates(tracker: SpectrumTracker, eta: float = ETA) -> Tensor:
    """Growth of sqrt(d_i) per eta, while no mode has arrived yet."""
    steps, modes = tracker.history("toy", "modes")
    first = int(arrivals(tracker).min())
    low, high = first // 5, 4 * first // 5
    root = modes.clamp(min=0).sqrt()
    return (root[high] - root[low]) / (steps[high] - steps[low]) / eta


def arrivals(tracker: SpectrumTracker, fraction: float = 0.95) -> Tensor:
    """First step at which each mode has reached a fraction of its target."""
    _, modes = tracker.history("toy", "modes")
    goals = torch.linalg.svdvals(tracker.targets["toy"])[: modes.shape[1]]
    reached = modes >= fraction * goals
    assert bool(reached.any(0).all())
    return reached.double().argmax(0).double()


def spread(rate: Tensor) -> float:
    return float((rate.max() - rate.min()) / rate.mean())


@pytest.fixture(scope="module")
def exact() -> SpectrumTracker:
    return grow(partial(SpecGD, lr=ETA))


def test_b1_all_modes_grow_at_the_same_unit_rate(exact: SpectrumTracker) -> None:
    """SpecGD's polar factor is not exact, or the tracker's projections are wrong."""
    rate = rates(exact)
    assert spread(rate) < 0.01
    assert float(rate.mean()) == pytest.approx(1.0, abs=0.01)


def test_b2_smallest_modes_arrive_first_at_the_predicted_steps(exact: SpectrumTracker) -> None:
    """A user who plans the number of steps by sqrt(sigma) / eta would be misled."""
    hits = arrivals(exact)
    assert bool((hits.diff() < 0).all())
    predicted = fz.hit_time(SIGMA, rate=ETA, fraction=0.95)
    assert float((hits / predicted - 1).abs().max()) < 0.02
    assert torch.allclose(exact.predicted_hits("toy"), fz.hit_time(SIGMA, rate=ETA), rtol=1e-9)


def test_b2g_gradient_descent_learns_the_largest_mode_first() -> None:
    """The control: on a well-separated spectrum gradient descent does the opposite."""
    tracker = grow(partial(torch.optim.SGD, lr=ETA), sigma=[27.0, 9.0, 3.0, 1.0, 0.3], steps=60)
    _, modes = tracker.history("toy", "modes")
    half = int((modes[:, 0] > 13.5).double().argmax())
    assert half > 0
    share = modes[half] / torch.tensor([27.0, 9.0, 3.0, 1.0, 0.3])
    assert float(share[1:].max()) < 0.05


def test_b3_polar_backends() -> None:
    """`precise` may stand in for the exact polar factor in theory; five Jordan steps may not."""

    def of(**options: object) -> float:
        return spread(rates(grow(partial(SpecGD, lr=ETA, **options))))  # type: ignore[arg-type]

    assert of(method="precise") < 0.02
    assert of(method="newton_schulz", ns_coefficients=[JORDAN] * 5 + [CLASSIC] * 3) < 0.02
    assert 0.05 <= of(method="newton_schulz", ns_coefficients=JORDAN) <= 0.6
    # The smoothed operator of the paper's analysis, at the shipped default.
    assert of(method="smoothed") < 0.02


def test_b4_unequal_step_sizes_grow_at_their_geometric_mean() -> None:
    """Learning rates per factor: the effective rate is sqrt(lr_a lr_b), as reports say."""

    def optimizer(factors: list[Parameter]) -> SpecGD:
        a, b = factors
        return SpecGD([{"params": [a], "lr": ETA}, {"params": [b], "lr": ETA / 4}])

    tracker = grow(optimizer, steps=640)
    rate = rates(tracker)
    assert float((rate / 0.5 - 1).abs().max()) < 0.01
    assert tracker.records[-1]["rate"] == pytest.approx(ETA / 2)


def test_b5_thirty_random_starts_all_converge() -> None:
    """Ranks below, at and above the target's: the global minimum is reached from every start."""
    target = fz.target_from_spectrum(30, 35, [5.0, 4.0, 3.0, 2.0, 1.0])
    for rank in (3, 5, 8):
        # Not smaller: from tiny starts the exact factor can leave the weakest mode at its saddle.
        start = fz.gaussian_init([35, rank, 30], std=[0.1, 0.1], seeds=range(10))
        run = fz.descend(
            start, fz.Problem(target), partial(SpecGD, lr=0.02), 600, record_every=600,
            make_scheduler=partial(ConstantThenLinear, total_steps=600),
        )  # fmt: skip
        best = 0.5 * torch.linalg.svdvals(target)[rank:].square().sum()
        relative = (run.loss[-1] - best) / (0.5 * target.square().sum())
        assert float(relative.max()) < 1e-4


def test_b6_l2_soft_thresholds() -> None:
    """l2 inside the gradient has the optimum that its documentation states."""
    target = fz.target_from_spectrum(30, 35, [5.0, 4.0, 3.0, 2.0, 1.0])
    start = fz.gaussian_init([35, 5, 30], std=1e-2, seeds=range(4))
    run = fz.descend(
        start, fz.Problem(target), partial(SpecGD, lr=0.02, method="smoothed", l2=1.5), 800,
        record_every=800, make_scheduler=partial(ConstantThenLinear, total_steps=800),
    )  # fmt: skip
    assert float((run.products[-1] - fz.soft_threshold(target, 1.5)).abs().max()) < 1e-3


def test_b6_decoupled_weight_decay_caps() -> None:
    """Decoupled decay caps singular values at 1 / wd^2 and leaves the smaller ones alone."""
    target = fz.target_from_spectrum(30, 35, [5.0, 4.0, 3.0, 2.0, 1.0])
    start = fz.lora_init(30, 5, 35, seeds=[0])
    run = fz.descend(
        start, fz.Problem(target), partial(SpecGD, lr=0.02, weight_decay=0.7), 1200,
        record_every=1200, make_scheduler=partial(ConstantThenLinear, total_steps=1200),
    )  # fmt: skip
    sigma = torch.linalg.svdvals(run.products[-1][0])[:5]
    cap = fz.weight_decay_cap(0.7)
    assert cap == pytest.approx(2.041, abs=1e-3)
    expected = torch.tensor([cap, cap, cap, 2.0, 1.0], dtype=torch.float64)
    assert float((sigma - expected).abs().max()) < 0.02


def test_b7_a_constant_step_ends_in_a_floor_of_its_square() -> None:
    """Why schedules decay: the loss stops falling at a multiple of lr^2."""
    target = fz.target_from_spectrum(30, 35, [5.0, 4.0, 3.0, 2.0, 1.0])
    start = fz.lora_init(30, 5, 35, seeds=[0])
    floors = []
    for lr in (0.04, 0.02, 0.01):
        steps = int(10 / lr)
        run = fz.descend(start, fz.Problem(target), partial(SpecGD, lr=lr), steps)
        floors.append(float(run.loss[-100:].mean()) / lr**2)
    assert max(floors) / min(floors) < 1.25


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_b8_deeper_products_arrive_at_the_depths_root(depth: int) -> None:
    """sigma^(1/L) / eta for L factors."""
    target = fz.target_from_spectrum(20, 25, SIGMA)
    start = fz.gaussian_init([25, *[10] * (depth - 1), 20], std=1e-3, seeds=[0])
    run = fz.descend(start, fz.Problem(target), partial(SpecGD, lr=0.005), 700)
    u, sigma, vh = torch.linalg.svd(target)
    modes = torch.einsum("mi,ksmn,in->ksi", u[:, :5], run.products, vh[:5])[:, 0]
    hits = (modes >= 0.95 * sigma[:5]).double().argmax(0)
    predicted = fz.hit_time(SIGMA, depth=depth, rate=0.005, fraction=0.95)
    assert float((hits / predicted - 1).abs().max()) < 0.02
