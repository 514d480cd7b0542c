"""What a process allows its float32 products elsewhere must not reach the engine's."""

import pytest
import torch

from torch_specgd.triton_kernels import certify, orthogonalize
from torch_specgd.triton_kernels.iterate.run import as_written


@pytest.fixture(params=["high", "medium"])
def allowed(request: pytest.FixtureRequest) -> None:
    """The precision that a user's training script sets."""
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision("highest")


def test_results_do_not_follow_the_setting(allowed: str) -> None:
    """LoRA factors run in float32 on their Gram matrix: in bfloat16 one of them grew to 200."""
    x = torch.randn(64, 16, 64)
    found = {method: orthogonalize(x, method=method) for method in ("auto", "precise", "svd")}
    assert torch.get_float32_matmul_precision() == allowed
    certificate = certify(found["svd"])
    torch.set_float32_matmul_precision("highest")
    for method, y in found.items():
        assert (y - orthogonalize(x, method=method)).abs().max() < 1e-6, method
    assert certificate.deviation.max() < 1e-5


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_setting_comes_back(allowed: str, device: str) -> None:
    """The user's own layers would run slower from the first step on."""
    backend = torch.backends.cuda.matmul if device == "cuda" else torch.backends.mkldnn.matmul
    before = backend.fp32_precision
    with as_written(torch.device(device)):
        assert backend.fp32_precision == "ieee"
    assert backend.fp32_precision == before
