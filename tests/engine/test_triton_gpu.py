"""The kernels on a real device; skipped, and counted as such, without one."""

from itertools import chain

import pytest
import torch

from reference.launches import exactly, recorded
from reference.polar import spectra, with_spectrum
from torch_specgd.triton_kernels import SCHEDULES, orthogonalize, plan

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 17, 130), (2, 256, 512), (1, 1000, 1001)])
def test_products_on_the_device(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """bfloat16 products and descriptors cannot be seen in the interpreter."""
    from torch_specgd.triton_kernels.kernels import launch

    x = torch.randn(shape, device="cuda").to(dtype)
    truth = x.double() @ x.double().mT
    limit = truth.abs().max() * (2**-7 if dtype == torch.bfloat16 else 2**-9)
    for y in (x, x.mT.contiguous().mT):
        found = launch.symmetric(y, y)
        assert (found.double() - truth).abs().max() < limit
        assert torch.equal(found, found.mT)
    q = (truth / truth.norm()).to(dtype)
    found = launch.apply(q, x).double()
    assert (found - q.double() @ x.double()).abs().max() < limit


@pytest.mark.parametrize(
    "shape",
    [
        # Through torch's products, the one-launch kernel, and ours: direct, Gram, tall.
        (2, 300, 300),
        (2, 300, 1200),
        (5, 16, 1024),
        (5, 1024, 16),
        (16, 512, 512),
        (6, 768, 3072),
        (6, 3072, 768),
    ],
)
def test_orthogonalize_on_the_device(shape: tuple[int, int, int]) -> None:
    """The GPU would train another model than the CPU."""
    x = torch.randn(shape, device="cuda")
    s = torch.linalg.svdvals(orthogonalize(x).double())
    assert s.max() < 1.1
    assert (s - 1).abs().mean() < 0.08


def test_small_rank_launch_on_the_device() -> None:
    """Races and missing barriers do not show in the interpreter."""
    from torch_specgd.triton_kernels.kernels.launch_small import orthogonalize_small

    for n in (5, 16, 32, 60):
        x = torch.randn(64, n, 300, device="cuda")
        found = orthogonalize_small(x, SCHEDULES["deep"])
        truth = orthogonalize(x.double().cpu(), method="gram", schedule="deep")
        assert (found.cpu().double() - truth).abs().max() < 1e-3
        assert torch.equal(found, orthogonalize_small(x, SCHEDULES["deep"]))
        divided = orthogonalize_small(x, SCHEDULES["deep"], columns=128)
        assert (divided.cpu().double() - truth).abs().max() < 1e-3


def test_a_plans_tiles_are_launched_on_the_device() -> None:
    """A user's own tiles would be printed, and others launched."""
    mine = {"BLOCK_M": 64, "BLOCK_N": 64}
    for shape, tiles in (
        ((16, 512, 512), {"symmetric": mine | {"STRIPS": 1}, "apply": mine}),
        ((16, 1200, 512), {"symmetric": mine | {"STRIPS": 1}}),
        ((64, 16, 300), {"small": {"num_warps": 2}}),
    ):
        x = torch.randn(shape, device="cuda")
        chosen = plan(shape, device="cuda", tiles=tiles)
        with recorded() as seen:
            y = orthogonalize(x, plan=chosen)
        assert exactly(seen, chosen.configs())
        assert torch.linalg.matrix_norm(y.double(), 2).max() < 1.1


@pytest.mark.parametrize("kind", ["symmetric", "apply"])
def test_tuning_measures_on_the_device(kind: str) -> None:
    """A first run of tune() would end in an error, or call a broken configuration the fastest."""
    from torch_specgd.triton_kernels.kernels.configuration import architecture, load_table
    from torch_specgd.triton_kernels.workshop.tuning import _on_device, candidates

    arch = architecture(torch.device("cuda"))
    for descriptor in {name.startswith("descriptor") for name in load_table(arch)[kind]}:
        config = candidates(kind, descriptor, arch)[0]
        assert 0 < _on_device(kind, config, (2, 256, 512)) < 1000


def test_float32_is_float32_where_tf32_is_allowed() -> None:
    """Training scripts allow TF32, in which a Gram matrix loses its small eigenvalues."""
    x = torch.randn(4, 100, 300, device="cuda")
    expected = orthogonalize(x, method="precise")
    torch.set_float32_matmul_precision("high")
    try:
        found = orthogonalize(x, method="precise")
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found, expected)


def test_scalars_of_a_16_bit_pass_stay_in_float32_on_the_device() -> None:
    """The engine leaves to a GPU's additions what a CPU's would round."""
    from torch_specgd.triton_kernels.iterate.products import plus_identity, scaled_sum

    ones = (1 + torch.arange(128, device="cuda") / 128).to(torch.bfloat16).expand(2, 64, 128)
    found = scaled_sum(torch.zeros_like(ones), 1.0, ones, 0.7019).double() / ones.double()
    assert abs(found.mean().item() - 0.7019) < 1e-4
    start = torch.full((1, 64, 64), 0.30078125, device="cuda").to(torch.bfloat16)
    # 1.00408 rounds up; with the scalar rounded to 0.703125 first, the sum is a tie and stays 1.
    assert (plus_identity(start, 0.7033).diagonal(dim1=-2, dim2=-1) == 1.0078125).all()


def test_adversarial_spectra_on_the_device() -> None:
    """Tensor cores flush or round otherwise than the emulation."""
    for n, m in ((128, 512), (768, 3072), (1024, 1024)):  # the larger run our kernels
        for name, values in spectra(n).items():
            x = with_spectrum(values, n, m).float().cuda().expand(6, n, m)
            y = orthogonalize(x).double()
            assert torch.linalg.matrix_norm(y, 2).max() < 1.1, (n, m, name)


# Through torch's products, our kernels in both forms, and the one-launch kernel.
WAYS = [(4, 256, 512), (16, 520, 900), (16, 640, 640), (64, 16, 300)]


@pytest.mark.parametrize("shape", WAYS)
def test_cuda_graph(shape: tuple[int, int, int]) -> None:
    """A synchronization inside would break capture of the optimizer step."""
    x = torch.randn(shape, device="cuda")
    expected = orthogonalize(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = orthogonalize(x)
    graph.replay()
    assert torch.equal(y, expected)


@pytest.mark.parametrize(
    "shapes", [((64, 3, 3, 3), (300, 70), (16, 1024)), ((64, 64), (256, 48), (1, 16))]
)
def test_steps_of_an_optimizer_in_a_graph(shapes: tuple[tuple[int, ...], ...]) -> None:
    """One launch for all tensors must equal torch's operations, and be allowed in a capture."""
    from torch_specgd.triton_kernels import momentum_step, weight_step

    g = [torch.randn(s, device="cuda") for s in shapes]
    lr = torch.full((), 0.3, device="cuda")

    def step(fused: bool, b: list[torch.Tensor], w: list[torch.Tensor]) -> None:
        momentum_step(g, b, outs, 0.9, fused=fused)
        weight_step(w, outs, [1.0, 2.0, 0.5], lr, 0.1, fused=fused)

    outs = [torch.empty(s, device="cuda", dtype=torch.bfloat16) for s in shapes]
    plain = [[torch.ones(s, device="cuda") for s in shapes] for _ in range(2)]
    fused = [[torch.ones(s, device="cuda") for s in shapes] for _ in range(2)]
    for _ in range(3):
        step(False, *plain)
    step(True, *fused)  # compiles, and fills the tables that a capture may not copy
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(True, *fused)
    graph.replay()
    graph.replay()
    for one, other in zip(chain(*plain), chain(*fused), strict=True):
        # The operand is rounded to bfloat16, at times to the other neighbour.
        assert torch.allclose(one, other, atol=2e-2)


@pytest.mark.parametrize("shape", WAYS)
def test_determinism(shape: tuple[int, int, int]) -> None:
    """Two runs of the same training would differ."""
    x = torch.randn(shape, device="cuda")
    assert torch.equal(orthogonalize(x), orthogonalize(x))


def test_offsets_beyond_32_bits() -> None:
    """A stack of experts with more than 2^31 elements would corrupt memory."""
    from torch_specgd.triton_kernels.kernels import launch

    x = torch.zeros(2**18 + 1, 64, 129, device="cuda", dtype=torch.bfloat16)
    x[-1] = 1.0
    found = launch.symmetric(x, x)
    assert found[-1].float().min() == 129.0
    assert found[0].abs().max() == 0
