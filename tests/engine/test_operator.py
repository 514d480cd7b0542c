"""The registered operator and the plan: fake tensors, compilation, printing."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_specgd.triton_kernels import SCHEDULES, cost_on_paper, orthogonalize, plan
from torch_specgd.triton_kernels.iterate import products, run
from torch_specgd.triton_kernels.operator import PLANNED, flatten, orthogonalize_op


def _arguments(x: torch.Tensor, method: str = "auto", schedule: str | None = None) -> tuple:
    own = PLANNED if schedule is None else flatten(SCHEDULES[schedule])
    return (x, method, *own, "default", 1e-7, None, 1e-2, None)


@pytest.mark.parametrize(
    ("method", "schedule"),
    [("auto", None), ("gram", "degree9_3"), ("svd", None), ("precise", None)],
)
@pytest.mark.parametrize("shape", [(2, 5, 9), (9, 5)])
def test_opcheck(method: str, schedule: str | None, shape: tuple[int, ...]) -> None:
    """Tracing, faking and schema would disagree with what runs."""
    torch.library.opcheck(orthogonalize_op, _arguments(torch.randn(shape), method, schedule))


@pytest.mark.parametrize("shape", [(3, 4, 7), (7, 4), (2, 0, 4), (1, 5)])
def test_fake_tensors_agree(shape: tuple[int, ...]) -> None:
    """A compiled optimizer would read the result with wrong strides."""
    x = torch.randn(shape)
    real = orthogonalize(x)
    with FakeTensorMode() as mode:
        fake = orthogonalize(mode.from_tensor(x))
    assert fake.shape == real.shape
    assert fake.stride() == real.stride()
    assert fake.dtype == real.dtype


def test_compiles_without_graph_breaks() -> None:
    """A user's torch.compile of the step would fall apart at the orthogonalization."""

    def step(w: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return w - 0.1 * orthogonalize(g)

    w, g = torch.randn(6, 10), torch.randn(6, 10)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(w, g), step(w, g))


@pytest.mark.parametrize("shape", [(16, 50), (330, 330), (768, 3072)])
def test_every_machine_takes_the_same_steps(shape: tuple[int, int]) -> None:
    """A model would train otherwise on one processor than on another."""
    chosen = {
        plan(shape, device=device, arithmetic=dtype).schedule.name
        for device in ("cpu", "cuda")
        for dtype in (None, torch.float32, torch.bfloat16)
    }
    assert chosen == {"deep"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("shape", [(768, 3072), (768, 768), (16, 1024), (4096, 14336)])
def test_plan_is_no_dearer_than_polar_express(device: str, shape: tuple[int, int]) -> None:
    """The promise is at least its accuracy at fewer FLOPs."""
    chosen = plan(shape, device=device)
    usual = SCHEDULES["polar_express"]
    if min(shape) > 64:
        assert chosen.flops() <= 0.9 * usual.flops(*shape)
    text = str(chosen)
    assert "GFLOP" in text
    assert chosen.schedule.name in text


def test_plan_can_be_overridden_and_run() -> None:
    """A user's own choice would be ignored."""
    chosen = plan((40, 80), schedule="degree9_3", form="direct", arithmetic=torch.float64)
    x = torch.randn(40, 80)
    expected = orthogonalize(x, method="newton_schulz", schedule="degree9_3", dtype=torch.float64)
    assert torch.equal(orthogonalize(x, plan=chosen), expected)
    assert plan((40, 80), schedule="degree9_3", form="direct", arithmetic=torch.float64) is chosen


def test_a_plan_chooses_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan for a GPU would leave out what decides its speed, or print what it does not run."""
    wide = plan((768, 3072), batch=12, device="cuda", arch="sm_90")
    assert wide.configs().keys() == {"symmetric", "apply"}
    assert "tiles on sm_90: apply 128x256x64, 8 warps, 3 stages, descriptors" in str(wide)
    # 385 columns are no multiple of 16 bytes, which descriptors need.
    odd = plan((384, 385), batch=64, device="cuda", arch="sm_90")
    assert not odd.configs()["apply"]["DESCRIPTOR"]
    assert plan((16, 1024), batch=9, device="cuda", arch="sm_100").configs()["small"]["N"] == 16
    few = plan((300, 300), device="cuda", arch="sm_80")
    assert not few.tiles
    assert "vendor's library" in str(few)
    # No GPU, and none named.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not plan((768, 3072), batch=12, device="cuda").tiles


def test_a_plans_tiles_can_be_overridden() -> None:
    """A user's own tiles would be printed, and others launched."""
    shape, options = (768, 3072), {"batch": 12, "device": "cuda", "arch": "sm_90"}
    mine = plan(shape, **options, tiles={"apply": {"BLOCK_M": 64}})
    assert mine.configs()["apply"] == plan(shape, **options).configs()["apply"] | {"BLOCK_M": 64}
    kinds = {one.kind: one.tile for one in cost_on_paper(mine, "sm_90").launches if one.tiles}
    assert kinds == {"symmetric": (128, 256, 64), "apply": (64, 256, 64)}
    for bad, match in (
        ({"aply": {}}, "'aply'"),
        ({"apply": {"BLOCK": 1}}, "BLOCK_M"),
    ):
        with pytest.raises(ValueError, match=match):
            plan(shape, **options, tiles=bad)
    with pytest.raises(ValueError, match="GPU"):
        plan(shape, tiles={"apply": {"BLOCK_M": 64}})
    with pytest.raises(ValueError, match="sm_91"):
        plan(shape, device="cuda", arch="sm_91")


def test_a_plans_tiles_are_for_its_own_batch() -> None:
    """The last, smaller batch goes to the vendor's library, and would be refused its tiles."""
    chosen = plan((4, 768, 3072), batch=3, device="cuda", arch="sm_90")
    for shape in ((12, 768, 3072), (4, 3, 3072, 768)):
        assert chosen.tiles_for(shape, "sm_90") == chosen.configs()
    assert plan((768, 768), device="cuda", arch="sm_80").tiles_for((768, 768), "sm_80")
    for shape, arch in (
        ((768, 3072), "sm_90"),
        ((12, 768, 768), "sm_90"),
        ((12, 768, 3072), "sm_80"),
    ):
        assert chosen.tiles_for(shape, arch) == {}


def test_one_launch_is_for_short_sides() -> None:
    """An embedding's LoRA factor would take dozens of launches of the vendor's library."""
    assert plan((16, 1024), batch=192, device="cuda").one_launch
    assert plan((4096, 64), device="cuda").one_launch
    for length, launches in ((8192, 1), (8193, 2), (128256, 2)):
        chosen = plan((16, length), device="cuda")
        assert (chosen.one_launch, chosen.traffic()[1]) == (True, launches)
        assert len(cost_on_paper(chosen, "sm_90").launches) == launches
    for shape, options in (
        ((65, 1024), {}),
        ((16, 1024), {"accuracy": "fast", "schedule": "flat"}),
        ((16, 1024), {"arithmetic": torch.bfloat16}),
    ):
        assert not plan(shape, device="cuda", **options).one_launch
    assert not plan((16, 1024)).one_launch


def test_a_plans_restarts_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own restarts would be printed, and others run."""
    options = {"schedule": "polar_express", "form": "gram", "arithmetic": torch.float16}
    assert plan((40, 80), **options).restarts == (1, 3)
    chosen = plan((40, 80), **options, restarts=(2, 4))
    assert "restart before (2, 4)" in str(chosen)
    seen = []
    monkeypatch.setattr(
        run,
        "gram",
        lambda start, schedule, ops, restarts, out: seen.append(restarts) or start.x,
    )
    orthogonalize(torch.randn(40, 80), plan=chosen)
    assert seen == [(2, 4)]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"shape": (3,)}, "two positive sides"),
        ({"shape": (3, 3), "batch": 0}, "batch"),
        ({"shape": (3, 3), "accuracy": "best"}, "default"),
        ({"shape": (3, 3), "form": "dual"}, "direct"),
    ],
)
def test_plan_refuses(options: dict, match: str) -> None:
    """Bad values must be named."""
    with pytest.raises(ValueError, match=match):
        plan(**options)


def test_unknown_accuracy() -> None:
    """A typo must be answered with the accepted values."""
    with pytest.raises(ValueError, match="fast"):
        orthogonalize(torch.eye(3), accuracy="best")


@pytest.mark.parametrize("accuracy", ["fast", "high"])
def test_accuracies(accuracy: str) -> None:
    """'high' would be no better than 'fast' promises."""
    x = torch.randn(70, 200, dtype=torch.float64)
    s = torch.linalg.svdvals(orthogonalize(x, accuracy=accuracy))
    assert (s - 1).abs().max() < (1e-4 if accuracy == "high" else 0.06)


@pytest.mark.parametrize(
    ("halves", "sizes"),
    [(False, (5, 18, 33)), (True, (2, 18, 34))],
)
def test_parts_of_a_symmetric_product_equal_the_whole(halves: bool, sizes: tuple[int, ...]) -> None:
    """Large products compute lower blocks only; odd sizes must not lose rows, nor strides one."""
    for n in sizes:
        x = torch.randn(2, n, 7, dtype=torch.float64)
        found = products.triangle_product(x.new_full((2, n, n), torch.nan), x, x, halves=halves)
        assert torch.allclose(found, x @ x.mT, atol=1e-12)
        assert torch.allclose(found, found.mT, atol=1e-13)
        spaced = torch.full((2, 2 * n, 3 * n), torch.nan, dtype=torch.float64)[:, ::2, ::3]
        spaced.copy_(found)
        for added in (found, spaced, found.mT):
            place = x.new_full((3, n, n), torch.nan)[1:]
            result = products.triangle_product(place, x, x, added, 0.5, 2.0, halves)
            assert result.data_ptr() == place.data_ptr()
            assert torch.allclose(result, 2.5 * found, atol=1e-12)


def test_single_large_products_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second thread would wait while one matrix is multiplied; odd ones have no halves."""
    monkeypatch.setattr(products, "cpu_has_amx", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    seen = []

    halves = products._halves

    def noted(one: torch.Tensor, left: torch.Tensor, *rest: torch.Tensor, **factors: float) -> None:
        seen.append(tuple(left.shape))
        halves(one, left, *rest, **factors)

    monkeypatch.setattr(products, "_halves", noted)
    monkeypatch.setattr(products, "_HALVED_GRAM_ROWS", 30)
    for shape in ((2, 30, 9), (3, 30, 9), (1, 31, 9), (1, 28, 9)):
        x = torch.randn(shape).to(torch.bfloat16)
        found = products.TorchProducts().gram(x, 1.0).double()
        truth = x.double() @ x.double().mT + torch.eye(shape[1], dtype=torch.float64)
        assert (found - truth).abs().max() < 2**-7 * truth.abs().max()
    assert seen == [(30, 9)] * 2


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_parts_of_a_batch_do_not_mix(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, amx: bool
) -> None:
    """Working memory is used again for the next part: nothing of the last one may shine through."""
    monkeypatch.setattr(run, "cpu_has_amx", lambda: amx)
    monkeypatch.setattr(run, "_CHUNK", 2 * 70 * 90)
    x = torch.randn(5, 70, 90).to(dtype)
    x[1] = 1e-30 * x[1]
    x[2] = torch.outer(torch.randn(70), torch.randn(90)).to(dtype)
    before = x.clone()
    for batch in (x, x.mT):
        together = orthogonalize(batch, dtype=torch.bfloat16)
        alone = torch.cat([orthogonalize(one[None], dtype=torch.bfloat16) for one in batch])
        # One or several to a product differ in the order of sums, and that by 16-bit roundings.
        assert (together - alone).abs().max() < 0.02
    assert torch.equal(x, before)


def test_scalars_of_a_16_bit_pass_stay_in_float32() -> None:
    """A CPU's add would round 0.7019 to 0.7031, and a degree-9 step would diverge by it."""
    from torch_specgd.triton_kernels.iterate.products import scale_members, scaled_sum

    ones = (1 + torch.arange(128) / 128).to(torch.bfloat16).expand(2, 64, 128).clone()
    found = scaled_sum(torch.zeros_like(ones), 1.0, ones, 0.7019).double() / ones.double()
    assert abs(found.mean().item() - 0.7019) < 1e-4
    before = ones.double()
    found = scale_members(ones, torch.tensor([0.7019, 3.1415]).view(2, 1, 1)).double() / before
    assert (found.mean(dim=(1, 2)) / torch.tensor([0.7019, 3.1415]) - 1).abs().max() < 2e-4
