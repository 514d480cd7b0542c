"""What a training script switches on around a step must not reach the engine."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from torch_specgd import Muon, SpecGD
from torch_specgd.spectrum.measures import lora_balance, lora_singular_values, mode_projections
from torch_specgd.triton_kernels import certify, orthogonalize, orthogonalize_together
from torch_specgd.triton_kernels.iterate.run import as_written
from torch_specgd.triton_kernels.kernels.available import on_device

METHODS = ("auto", "newton_schulz", "gram", "precise", "svd", "smoothed")
SHAPES = ((2, 16, 300), (60, 300), (300, 60), (70, 90))


def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(torch.float32)


def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def _mode(name: str) -> AbstractContextManager[Any]:
    from contextlib import contextmanager

    return {
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "inference": torch.inference_mode,
        "deterministic": contextmanager(_deterministic),
        "float64": lambda: contextmanager(_default_dtype)(torch.float64),
        "bfloat16": lambda: contextmanager(_default_dtype)(torch.bfloat16),
        "meta": lambda: torch.device("meta"),
        "anomaly": lambda: torch.autograd.detect_anomaly(check_nan=False),
        "no_grad": torch.no_grad,
    }[name]()


MODES = ("autocast", "inference", "deterministic", "float64", "bfloat16", "meta", "no_grad")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", MODES)
def test_results_do_not_follow_a_mode(mode: str, method: str) -> None:
    """Inside autocast a step raised, or lost three digits without a word."""
    for shape in SHAPES:
        x = torch.randn(shape)
        expected = orthogonalize(x, method=method)
        with _mode(mode):
            found = orthogonalize(x, method=method)
        assert torch.equal(found, expected)
        assert found.dtype == torch.float32


@pytest.mark.parametrize("mode", MODES)
def test_batches_and_certificates_do_not_follow_a_mode(mode: str) -> None:
    """The way of LoRA factors, and what judges it, are others than those of one call."""
    xs = [torch.randn(3, 8, 20), torch.randn(2, 30, 8)]
    outs, again = ([torch.empty_like(x) for x in xs] for _ in range(2))
    orthogonalize_together(xs, outs)
    before = certify(outs[0])
    with _mode(mode):
        orthogonalize_together(xs, again)
        after = certify(outs[0])
    for one, other in zip((*outs, *before), (*again, *after), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("mode", ["autocast", "deterministic", "float64", "bfloat16"])
@pytest.mark.parametrize("optimizer", [Muon, SpecGD])
def test_steps_do_not_follow_a_mode(optimizer: Any, mode: str) -> None:
    """`optimizer.step()` inside the forward's autocast block is common, and raised."""
    for shape in ((16, 512), (300, 600), (60, 300), (8, 3, 3, 3)):
        start, gradient = torch.randn(shape), torch.randn(shape)
        after = []
        for inside in (False, True):
            w = torch.nn.Parameter(start.clone())
            w.grad = gradient.clone()
            own = optimizer([w], lr=0.1)
            if inside:
                with _mode(mode):
                    own.step()
            else:
                own.step()
            after.append(w.detach())
        assert torch.equal(*after)


@pytest.mark.parametrize("mode", ["inference", "meta", "no_grad", "anomaly"])
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (Muon, {}),
        (Muon, {"state_dtype": "bfloat16"}),
        (Muon, {"state_dtype": "int8", "second_moment": "neuron"}),
        (Muon, {"precondition": "shampoo", "second_moment": "element"}),
        (SpecGD, {"momentum": 0.9}),
    ],
)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_state_of_a_first_step_in_a_mode_serves_the_next(
    optimizer: Any, options: dict[str, Any], mode: str
) -> None:
    """State that inference mode made ended the first step outside of it in an error."""
    for shape in ((16, 512), (60, 300), (7,)):
        start, gradient = torch.randn(shape), torch.randn(shape)
        after = []
        for inside in (False, True):
            w = torch.nn.Parameter(start.clone())
            w.grad = gradient.clone()
            own = optimizer([w], lr=0.1, **options)
            with _mode(mode if inside else "no_grad"):
                own.step()
            own.step()
            after.append(w.detach())
            assert not any(getattr(t, "requires_grad", False) for t in own.state[w].values())
        assert torch.equal(*after)


def test_measures_of_spectra_do_not_follow_autocast() -> None:
    """A report on adapters would show singular values of products in bfloat16."""
    b, a = torch.randn(40, 4), torch.randn(4, 30)
    u, _, vh = torch.linalg.svd(torch.randn(40, 30), full_matrices=False)

    def measured() -> list[torch.Tensor]:
        return [lora_singular_values(b, a), lora_balance(b, a), mode_projections(b, a, u, vh)]

    expected = measured()
    with torch.autocast("cpu", torch.bfloat16):
        found = measured()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_vmap_and_functional_transforms() -> None:
    """Per-sample directions through torch.func would end in "no batching rule"."""
    x = torch.randn(4, 3, 6, 9)
    found = torch.func.vmap(orthogonalize, in_dims=1, out_dims=1)(x)
    assert torch.allclose(found, orthogonalize(x), atol=1e-6)

    def loss(w: torch.Tensor) -> torch.Tensor:
        return (w * orthogonalize(x[0, 0])).sum()

    assert torch.equal(torch.func.grad(loss)(torch.ones(6, 9)), orthogonalize(x[0, 0]))


def test_anomaly_detection() -> None:
    """Who looks for the first NaN of a run keeps it on during the step."""
    with pytest.warns(UserWarning, match="Anomaly Detection"), _mode("anomaly"):
        assert orthogonalize(torch.randn(4, 9)).isfinite().all()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_contexts_of_two_threads_give_the_setting_back(device: str) -> None:
    """Of two steps whose contexts overlapped, the later one kept the other's setting for good."""
    backend = torch.backends.cuda.matmul if device == "cuda" else torch.backends.mkldnn.matmul
    backend.fp32_precision = "tf32"
    first, second = (as_written(torch.device(device)) for _ in range(2))
    first.__enter__()
    other = threading.Thread(target=second.__enter__)
    other.start()
    other.join()
    first.__exit__(None, None, None)
    assert backend.fp32_precision == "ieee"
    second.__exit__(None, None, None)
    assert backend.fp32_precision == "tf32"
    backend.fp32_precision = "none"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_setting_that_follows_the_general_one_goes_on_to(device: str) -> None:
    """After one step the backend would ignore what a script sets for all of them."""
    backend = torch.backends.cuda.matmul if device == "cuda" else torch.backends.mkldnn.matmul
    backend.fp32_precision = "none"
    # In brackets: torch's own test tools, which other files import, forbid it without.
    with torch.backends.flags(fp32_precision="tf32"):
        with as_written(torch.device(device)):
            assert backend.fp32_precision == "ieee"
        assert backend.fp32_precision == "tf32"
    with torch.backends.flags(fp32_precision="ieee"):
        assert backend.fp32_precision == "ieee"


def test_the_tensors_gpu_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device: parameters on cuda:1 were read from cuda:0."""
    seen: list[object] = []

    class Guard:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            seen.append(self.device)

        def __exit__(self, *_: object) -> None:
            seen.append("back")

    monkeypatch.setattr(torch.cuda, "device", Guard)
    with on_device(torch.device("cuda:1")):
        assert seen == [torch.device("cuda:1")]
    assert seen[1:] == ["back"]
