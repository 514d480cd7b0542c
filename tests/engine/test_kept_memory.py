"""Memory that is used again: results stay what they were, whoever calls next, and however."""

import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_specgd.triton_kernels import orthogonalize
from torch_specgd.triton_kernels.iterate import products, run
from torch_specgd.triton_kernels.iterate.run import KeptMemory


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_KEPT", KeptMemory())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(5, 70, 70), (5, 70, 90), (5, 90, 70), (70, 75)])
def test_a_result_is_not_written_over(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The next layer's call would change this layer's update."""
    x, other = (torch.randn(shape).to(dtype) for _ in range(2))
    for form in ("newton_schulz", "gram", "auto"):
        before = x.clone()
        found = orthogonalize(x, method=form)
        kept = found.clone()
        orthogonalize(other, method=form)
        assert torch.equal(found, kept)
        assert torch.equal(x, before)
        place = torch.empty_like(x)
        assert torch.equal(orthogonalize(x, method=form, out=place), kept)
        orthogonalize(other, method=form)
        assert torch.equal(place, kept)
        orthogonalize(before, method=form, out=before)
        assert torch.equal(before, kept)


def test_threads_do_not_share() -> None:
    """Two replicas' steps in one process would write into each other's buffers."""
    inputs = [torch.randn(2, 70 + i, 70 + i) for i in range(3)]
    truths = [orthogonalize(x) for x in inputs]
    wrong: list[int] = []

    def work() -> None:
        for _ in range(20):
            wrong.extend(
                i for i, x in enumerate(inputs) if not torch.equal(orthogonalize(x), truths[i])
            )

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_inference_mode_leaves_can_be_written() -> None:
    """A training step after an evaluation would end in "inplace update to inference tensor"."""
    kept = KeptMemory()
    with torch.inference_mode():
        kept.give(kept.take(100))
    memory = kept.take(100)
    assert not memory.is_inference()
    memory[:8].copy_(torch.zeros(8))
    x = torch.randn(2, 70, 70)
    truth = orthogonalize(x)
    with torch.inference_mode():
        assert torch.equal(orthogonalize(x), truth)
    assert torch.equal(orthogonalize(x.clone(), out=torch.empty_like(x)), truth)


def test_another_default_device() -> None:
    """Scripts set torch.set_default_device; buffers made there would hold nothing, or not fit."""
    x = torch.randn(2, 70, 70).to(torch.bfloat16)
    truth = orthogonalize(x)
    products._one.cache_clear()
    run._KEPT = KeptMemory()
    with torch.device("meta"):
        found = orthogonalize(x, out=torch.empty_like(x, device="cpu"))
    assert torch.equal(found, truth)
    assert torch.equal(orthogonalize(x), truth)


def test_a_call_without_data_leaves_nothing_behind() -> None:
    """Who traces a step under FakeTensorMode first would train on memory that is not there."""
    kept = KeptMemory()
    real = kept.take(100)
    kept.give(real)
    with FakeTensorMode():
        kept.give(kept.take(50))
    assert kept.take(50).data_ptr() == real.data_ptr()
