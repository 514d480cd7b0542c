"""Steps of degree 33 and 65: taken on a CPU where rounding averages out, and looked after."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from reference.legs import legs_taken
from reference.polar import schatten, through_svd, with_spectrum
from reference.rounded import largest_singular_value
from reference.structured import structured
from torch_specgd import Muon
from torch_specgd.triton_kernels import (
    SCHEDULES,
    Schedule,
    design_schedule,
    orthogonalize,
    plan,
    planning,
)
from torch_specgd.triton_kernels import apart as module
from torch_specgd.triton_kernels.apart import (
    apart,
    averages_out,
    direct_apart,
    estimated_output,
    rounding,
)
from torch_specgd.triton_kernels.normalize import begin
from torch_specgd.triton_kernels.operator import flatten, orthogonalize_op, unflatten
from torch_specgd.triton_kernels.products import TorchProducts
from torch_specgd.triton_kernels.schedules import LONG

LIMIT = 1.1
N = 384  # rows: more than the 320 from which a CPU's plan looks at long steps
BY_NAME = {s.name: s for s in LONG}
STEEP = LONG[-1]


def momentum(k: int) -> Tensor:
    """Singular values as they are in training: half of them below a fiftieth of the largest."""
    i = torch.arange(1.0, k + 1)
    return i**-0.8 * 10 ** (-1.5 * i / k)


def slow(k: int) -> Tensor:
    """Singular values whose Frobenius norm is three times the largest."""
    return torch.arange(1.0, k + 1) ** -0.4


def middle(k: int) -> Tensor:
    """Singular values whose Frobenius norm is twice the largest."""
    return torch.arange(1.0, k + 1) ** -0.6


def auto(x: Tensor, **options: object) -> Tensor:
    """As on a CPU that multiplies bfloat16, whatever this one does."""
    return orthogonalize(x, dtype=torch.bfloat16, accuracy="training", **options)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def without_amx(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With AMX they are not taken, see `planning`."""
    monkeypatch.setattr(planning, "cpu_has_amx", lambda: False)
    planning._plan.cache_clear()
    yield
    planning._plan.cache_clear()


@pytest.fixture
def taken() -> Iterator[list[str]]:
    """The names of the schedules that matrices take, see `legs_taken`."""
    with legs_taken() as names:
        yield names


# What they are


@pytest.mark.parametrize("name", list(BY_NAME))
def test_design_finds_them_again(name: str) -> None:
    """A default that nobody can derive could not be improved, or trusted."""
    shipped = BY_NAME[name]
    degrees = tuple(2 * chain.degree + 1 for chain in shipped.chains)
    found = design_schedule(
        degrees, lower=shipped.lower, safety=1.0, headroom=shipped.headroom, top=1.04
    )
    s = np.geomspace(1e-4, 1.0, 10_001)
    assert np.abs(found(s) - shipped(s)).max() < 1e-6
    for ours, theirs in zip(found.chains, shipped.chains, strict=True):
        assert np.ravel(ours.links) == pytest.approx(np.ravel(theirs.links), rel=1e-5)


@pytest.mark.parametrize("name", list(BY_NAME))
def test_they_reach_as_far_as_five_polar_express_steps_with_no_more_ripple(name: str) -> None:
    """The promise of the default, where the plan takes them."""
    usual, ours = SCHEDULES["polar_express"], BY_NAME[name]
    (low, high), (usual_low, usual_high) = ours.range(), usual.range()
    assert high / low <= usual_high / usual_low * 1.001
    leg = next(
        leg
        for leg in plan((N, N), accuracy="training", arithmetic=torch.bfloat16).legs
        if leg.schedule is ours
    )
    reach = ours.slope / (low + high) * leg.flatness
    assert reach >= usual.slope / (usual_low + usual_high) * 0.999
    assert leg.schedule.flops(N, N) < SCHEDULES["deep"].flops(N, N)


@pytest.mark.parametrize("name", list(BY_NAME))
def test_a_number_and_a_matrix_make_the_polynomial(name: str) -> None:
    """The map that is printed and the one that is multiplied out would differ."""
    r = np.linspace(0, 1.1, 501)
    for chain in BY_NAME[name].chains:
        parts = apart(chain)
        t = r
        for k, (a, b) in enumerate(parts.squares):
            t = a * r * r + r if k == 0 else a * t * t + t + b * r
        h = chain(r)
        assert np.abs(parts.constant + parts.factor * t - h).max() < 1e-9 * np.abs(h).max()
        assert parts.constant == pytest.approx(float(chain(0.0)), rel=1e-12)


def test_a_long_schedule_is_data() -> None:
    """It could not be printed, stepped with, passed to the operator, or kept in a checkpoint."""
    for ours in LONG:
        assert "degree" in str(ours)
        assert ours.long
        assert len(replace(ours, steps=ours.steps[:1])) == 1
        again = unflatten(ours.name, *flatten(ours)[:4])
        assert again is not None
        assert again.steps == ours.steps
        torch.library.opcheck(
            orthogonalize_op,
            (
                torch.randn(20, 30),
                "newton_schulz",
                *flatten(ours),
                "",
                "default",
                1e-7,
                None,
                1.0,
                None,
            ),
            test_utils=("test_schema", "test_faketensor"),
        )
    assert not SCHEDULES["deep"].long
    mixed = Schedule("mixed", (*LONG[0].steps, SCHEDULES["flat"].steps[2]))
    assert mixed(0.5) == pytest.approx(
        SCHEDULES["flat"].steps[2] @ (float(LONG[0](0.5)) ** np.array([1, 3, 5]))
    )


def test_what_they_cannot_do_is_refused() -> None:
    """A GPU's kernels, the Gram form and a safety factor would be given steps they do not know."""
    ours = STEEP
    with pytest.raises(ValueError, match="run on a CPU"):
        plan((N, N), device="cuda", schedule=ours)
    with pytest.raises(ValueError, match="direct form"):
        plan((N, N), schedule=ours, form="gram")
    with pytest.raises(ValueError, match="float32 or float64"):
        orthogonalize(torch.ones(9, 9), schedule=ours, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="without restarts"):
        plan((N, N), schedule=ours, restarts=(1,))
    with pytest.raises(ValueError, match="finite"):
        Schedule("nan", (replace(ours.chains[0], centre=float("nan")),))
    with pytest.raises(ValueError, match="three numbers"):
        Schedule("short", (replace(ours.chains[0], links=((1.0, 2.0),) * 4),))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="degree 7"):
        Schedule("mixed", (*ours.steps, (1.0, 1.0, 1.0, 1.0)))
    with pytest.raises(ValueError, match="vanishes at zero"):
        apart(replace(ours.chains[0], centre=0.0, links=((1.0, 0.0, 0.0),) * 4))
    with pytest.raises(ValueError, match="no coefficients"):
        _ = ours.coefficients
    with pytest.raises(ValueError, match="safety factor"):
        replace(ours, safety=1.02)
    with pytest.raises(ValueError, match="four or five squares"):
        Schedule("short", (replace(ours.chains[0], links=ours.chains[0].links[:3]),))
    with pytest.raises(ValueError, match="safety 1 and cushion 0"):
        design_schedule((65, 33), lower=1e-3)
    with pytest.raises(ValueError, match="top"):
        design_schedule(5, 2, top=0.0)
    _, *links = ours.chains[0].links
    with pytest.raises(ValueError, match="vanishes at zero"):
        apart(replace(ours.chains[0], centre=0.0, links=((1.0, 1.0, 0.0), *links)))


# What they compute


@pytest.mark.parametrize("name", list(BY_NAME))
@pytest.mark.parametrize("shape", [(40, 40), (40, 90), (90, 40), (1, 7), (7, 1)])
def test_float64_follows_the_map(name: str, shape: tuple[int, int]) -> None:
    """The order of products, signs and scalars, against a singular value decomposition."""
    x = with_spectrum(momentum(min(shape)), *shape)
    y = orthogonalize(x, method="newton_schulz", schedule=BY_NAME[name])
    assert torch.allclose(y, through_svd(x, BY_NAME[name], schatten(x, 8)), atol=1e-9)


@pytest.mark.parametrize(("spectrum", "rows", "name"), [
    (slow, 320, "long_33"), (slow, 513, "long_33"), (middle, 512, "long_65"),
    (momentum, 600, "long_65_steep"),
])  # fmt: skip
@pytest.mark.parametrize("tall", [False, True])
def test_bfloat16_stays_near_the_map(
    spectrum: Callable[[int], Tensor], rows: int, name: str, tall: bool, taken: list[str]
) -> None:
    """Rounding would lift values of one to two, and nobody look."""
    x = torch.stack([with_spectrum(spectrum(rows), rows, rows + 40, s) for s in range(2)]).float()
    x = x.mT.contiguous() if tall else x
    y = auto(x)
    assert taken == [name] * 2
    for one, result in zip(x, y, strict=True):
        u, s, vh = torch.linalg.svd(one.double(), full_matrices=False)
        exact = torch.from_numpy(BY_NAME[name]((s / schatten(one, 8)).numpy()))
        found = ((u.mT @ result.double()) * vh).sum(dim=1)
        # The map swings between its limits faster than rounding lets a value be told from the next;
        # below them it rises. X's own rounding hides what is smaller still.
        low, high = BY_NAME[name].range()
        rising = exact < low
        assert low - 0.08 < found[~rising].min() < found.max() < high + 0.06
        wrong = (found - exact).abs() > 0.06
        assert not wrong[rising & (s > 5e-3 * s[0])].any()
        assert largest_singular_value(result[None]) < LIMIT


def test_a_batch_of_all_kinds_is_what_its_members_are(taken: list[str]) -> None:
    """Members would get each other's results where they take different ways."""
    kinds = (momentum(600), slow(600), torch.ones(600), torch.zeros(600), middle(600))
    members = [with_spectrum(values, 600, 640, k).float() for k, values in enumerate(kinds)]
    members += [1e-30 * members[0], 1e30 * members[1], members[0].clone(), torch.eye(600, 640)]
    members[7][3, 5] = torch.nan
    x = torch.stack(members)
    y = auto(x)
    assert set(taken) == {"flat", "long_33", "long_65", "long_65_steep", "deep"}
    for k, one in enumerate(members):
        assert torch.equal(y[k].isnan(), auto(one).isnan()), k
        assert torch.allclose(y[k], auto(one), atol=0.02, equal_nan=True), k
    assert y[7].isnan().any()
    assert not y[3].any()
    same = x.clone()
    auto(same, out=same)
    assert torch.allclose(same, y, atol=0.02, equal_nan=True)


# Where they are not taken, and what is done again


def test_with_amx_they_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step saves in products it would spend on passes."""
    monkeypatch.setattr(planning, "cpu_has_amx", lambda: True)
    planning._plan.cache_clear()
    legs = plan((320, 400), accuracy="training", arithmetic=torch.bfloat16).legs
    assert [leg.schedule.name for leg in legs] == ["flat", "deep"]


def test_they_need_rows_flatness_and_bfloat16() -> None:
    """float32 has the Gram form, and few rows too much rounding for what is saved."""
    options = {"accuracy": "training", "arithmetic": torch.bfloat16}
    names = [leg.schedule.name for leg in plan((320, 400), **options).legs]
    assert names == ["flat", "long_33", "long_65", "long_65_steep", "deep"]
    for shape, other in (
        ((319, 400), {}), ((320, 400), {"arithmetic": torch.float32}),
        ((320, 400), {"form": "gram"}), ((320, 400), {"device": "cuda"}),
        ((320, 400), {"accuracy": "default"}),
    ):  # fmt: skip
        legs = plan(shape, **(options | other)).legs
        assert not any(leg.schedule.long for leg in legs)


@pytest.mark.parametrize("schedule", LONG)
def test_errors_do_not_average_out_along_axes_or_in_few_rows(schedule: Schedule) -> None:
    """A gradient with a few active rows would be rounded as if it had hundreds."""
    spread = with_spectrum(momentum(700), 700, 700).float()
    heavy = spread.clone()
    heavy[0] *= 50
    few = torch.zeros(700, 700)
    few[:5] = torch.randn(5, 700)
    x = torch.stack([spread, torch.diag(momentum(700)), heavy, few])
    start = begin(x, torch.bfloat16, "schatten8", TorchProducts())
    assert averages_out(rounding(start.r), schedule).tolist() == [True, False, False, False]


def test_predicted_lift_is_what_rounding_does() -> None:
    """The rule would let matrices through that leave the second step's room, or hardly any."""
    first = replace(STEEP, steps=STEEP.steps[:1])
    top = first.range(1e-9)[1]
    ops = TorchProducts()
    for rows in (320, 768):
        x = with_spectrum(torch.arange(1.0, rows + 1) ** -0.6, rows, rows)[None].float()
        start = begin(x, torch.bfloat16, "schatten8", ops)
        predicted = float(torch.cosh(65 * rounding(start.r).error.sqrt()))
        found = largest_singular_value(direct_apart(start, first, ops)) / top
        assert 1 + 0.3 * (predicted - 1) < found < 1.1 * predicted


@pytest.mark.parametrize("k", [2, 3, 8, 40])
def test_structured_matrices_stay_below_the_limit(k: int, taken: list[str]) -> None:
    """What two steps gain is worth nothing if one matrix in a thousand destroys a layer."""
    torch.manual_seed(k)
    for rows, columns in ((320, 350), (512, 512)):
        for name, x in structured(rows, columns, k):
            assert largest_singular_value(auto(x)[None]) < LIMIT, (rows, name)
    assert set(BY_NAME) & set(taken)


@pytest.mark.parametrize("seed", [1284, 2103])
def test_a_diagonal_matrix_that_once_diverged(seed: int) -> None:
    """R^2 from the normalization, rounded by itself, lifted one value by 1.3: 1e26 came out."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.diag(10 ** (-5 * torch.rand(320, generator=generator)))
    assert auto(x).abs().max() < LIMIT


def _lifted(by: float) -> tuple[Tensor, Tensor]:
    """A matrix of 600 rows, and one that lies outside of what its normalization promises."""
    x = with_spectrum(momentum(600), 600, 640).float()
    start = begin(x[None], torch.bfloat16, "schatten8", TorchProducts())
    return start.x, start.factor * by


def test_what_leaves_the_room_is_seen_and_done_again() -> None:
    """A value above its room comes out at a thousand, and would be added to the weights."""
    x, factor = _lifted(1.1)
    r = (factor.square() * (x.float() @ x.float().mT)).to(torch.bfloat16)
    start = begin(x.float(), torch.bfloat16, "schatten8", TorchProducts())
    start = start._replace(x=x, r=r, u=None, factor=factor)
    asked: list[Tensor] = []

    def redo(lost: Tensor) -> Tensor:
        asked.append(lost)
        return torch.full_like(x[lost], 0.5)

    unwatched = direct_apart(start._replace(r=r.clone()), STEEP, TorchProducts())
    assert not largest_singular_value(unwatched) < 10
    y = direct_apart(start._replace(r=r.clone()), STEEP, TorchProducts(), redo=redo)
    assert [lost.tolist() for lost in asked] == [[True]]
    assert torch.equal(y, torch.full_like(x, 0.5))


@pytest.mark.parametrize("value", [2.0, 30.0, float("nan")])
def test_estimate_sees_one_value_beside_hundreds(value: float) -> None:
    """Norms do not: 599 values of one outweigh one of thirty."""
    x = with_spectrum(torch.cat([torch.tensor([1.0]), torch.full((599,), 0.7)]), 600, 600).float()
    r = (x @ x.mT).to(torch.bfloat16)[None]
    # h(R) is one, but `value` at the eigenvalue one.
    top = torch.linalg.eigh(r[0].float())[1][:, -1:]
    t = ((value - 1) * top @ top.mT).to(torch.bfloat16)[None]
    parts = module.Apart(1.0, 1.0, ())
    assert not float(estimated_output(r, t, parts)) <= module.LARGEST
    fine = float(estimated_output(r, torch.zeros_like(r), parts))
    assert 0.7 < fine < 1.01


def test_a_lost_member_takes_the_safe_way(
    monkeypatch: pytest.MonkeyPatch, taken: list[str]
) -> None:
    """Its neighbours' results are written over the input from which it has to be done again."""
    x = torch.stack([with_spectrum(momentum(600), 600, 640, k) for k in range(3)]).float()
    expected = auto(x)
    safe = orthogonalize(
        x[1], method="newton_schulz", dtype=torch.bfloat16,
        schedule=replace(SCHEDULES["deep"], normalization="schatten4"),
    )  # fmt: skip
    real = estimated_output

    def one_lost(*arguments: object) -> Tensor:
        found = real(*arguments)  # type: ignore[arg-type]
        return found + torch.tensor([0.0, 1.0, 0.0])[: len(found)]

    monkeypatch.setattr(module, "estimated_output", one_lost)
    taken.clear()
    for out in (None, torch.empty_like(x), x):
        y = auto(x, **({} if out is None else {"out": out}))
        assert taken.count("again") == 1
        taken.clear()
        assert torch.equal(y[0], expected[0])
        assert torch.equal(y[2], expected[2])
        assert torch.allclose(y[1], safe, atol=0.02)
        assert not torch.allclose(y[1], expected[1], atol=0.02)


def test_nothing_is_drawn_from_the_callers_generator() -> None:
    """Dropout after a step would differ from the run without it."""
    x = with_spectrum(momentum(600), 600, 600).float()
    module._probes.cache_clear()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    auto(x)
    assert torch.equal(torch.get_rng_state(), before)


def test_muon_takes_them_and_orthogonalize_by_itself_does_not(taken: list[str]) -> None:
    """A step would take three steps for two, or a caller get results nobody promised."""
    x = with_spectrum(middle(512), 512, 512).float()
    orthogonalize(x, dtype=torch.bfloat16)
    assert taken.pop() == "deep"
    p = torch.nn.Parameter(torch.zeros(512, 512))
    p.grad = x
    Muon([p], lr=1.0, weight_decay=0.0).step()
    if planning.cpu_multiplies_bf16():
        assert taken == ["long_65"]
    assert 0.7 < torch.linalg.svdvals(p.detach())[100] < LIMIT


def test_muon_takes_a_long_schedule_by_itself() -> None:
    """Nobody could look at what it does to a loss."""
    p = torch.nn.Parameter(torch.zeros(40, 60))
    p.grad = with_spectrum(momentum(40), 40, 60).float()
    optimizer = Muon([p], lr=1.0, weight_decay=0.0, ns_coefficients=STEEP)
    optimizer.step()
    s = torch.linalg.svdvals(p.detach())
    assert 0.75 < s[-20] < s[0] < LIMIT
