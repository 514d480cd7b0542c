"""The kernels on a real device; skipped, and counted as such, without one."""

from itertools import chain

import pytest
import torch

from reference.polar import spectra, with_spectrum
from torch_specgd.triton_kernels import SCHEDULES, orthogonalize

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
        found = launch.symmetric(y, y)[0]
        assert (found.double() - truth).abs().max() < limit
        assert torch.equal(found, found.mT)
    q = (truth / truth.norm()).to(dtype)
    found = launch.apply(q, x, torch.ones(2, device="cuda")).double()
    assert (found - q.double() @ x.double()).abs().max() < limit


@pytest.mark.parametrize("shape", [(2, 300, 300), (2, 300, 1200), (5, 16, 1024), (5, 1024, 16)])
def test_orthogonalize_on_the_device(shape: tuple[int, int, int]) -> None:
    """The GPU would train another model than the CPU."""
    x = torch.randn(shape, device="cuda")
    s = torch.linalg.svdvals(orthogonalize(x).double())
    assert s.max() < 1.1
    assert (s - 1).abs().mean() < 0.08


def test_small_rank_launch_on_the_device() -> None:
    """Races and missing barriers do not show in the interpreter."""
    from torch_specgd.triton_kernels.kernels.small import orthogonalize_small

    for n in (5, 16, 32, 60):
        x = torch.randn(64, n, 300, device="cuda")
        found = orthogonalize_small(x, SCHEDULES["deep"])
        truth = orthogonalize(x.double().cpu(), method="gram", schedule="deep")
        assert (found.cpu().double() - truth).abs().max() < 1e-3
        assert torch.equal(found, orthogonalize_small(x, SCHEDULES["deep"]))


def test_adversarial_spectra_on_the_device() -> None:
    """Tensor cores flush or round otherwise than the emulation."""
    for name, values in spectra(128).items():
        x = with_spectrum(values, 128, 512).float().cuda()
        assert torch.linalg.matrix_norm(orthogonalize(x).double(), 2) < 1.1, name


def test_cuda_graph() -> None:
    """A synchronization inside would break capture of the optimizer step."""
    x = torch.randn(4, 256, 512, device="cuda")
    expected = orthogonalize(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = orthogonalize(x)
    graph.replay()
    assert torch.equal(y, expected)


def test_steps_of_an_optimizer_in_a_graph() -> None:
    """One launch for all tensors must equal torch's operations, and be allowed in a capture."""
    from torch_specgd.triton_kernels import momentum_step, weight_step

    shapes = ((64, 3, 3, 3), (300, 70), (16, 1024))
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


def test_determinism() -> None:
    """Two runs of the same training would differ."""
    x = torch.randn(4, 300, 700, device="cuda")
    assert torch.equal(orthogonalize(x), orthogonalize(x))


def test_offsets_beyond_32_bits() -> None:
    """A stack of experts with more than 2^31 elements would corrupt memory."""
    from torch_specgd.triton_kernels.kernels import launch

    x = torch.zeros(2**18 + 1, 64, 129, device="cuda", dtype=torch.bfloat16)
    x[-1] = 1.0
    found = launch.symmetric(x, x)[0]
    assert found[-1].float().min() == 129.0
    assert found[0].abs().max() == 0
