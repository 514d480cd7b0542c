"""Numbers that a step takes: random bits under capture, and rates of one dimension."""

import importlib

import pytest
import torch

from torch_specgd import Muon
from torch_specgd.triton_kernels import momentum_step, weight_step


def test_random_bits_are_refused_before_anything_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every replay of the graph would round with the same bits, and the buffers drift."""
    module = importlib.import_module("torch_specgd.muon")  # the package has a function of that name
    w = torch.nn.Parameter(torch.randn(4, 6))
    optimizer = Muon([w], lr=0.1, state_dtype="bfloat16")
    for captured in (False, True):
        w.grad, before = torch.randn(4, 6), w.detach().clone()
        monkeypatch.setattr(module, "capturing", lambda device, c=captured: c)
        if captured:
            kept = optimizer.state[w]["momentum_buffer"].clone()
            with pytest.raises(RuntimeError, match="while a CUDA graph is captured"):
                optimizer.step()
            assert torch.equal(w, before)
            assert torch.equal(optimizer.state[w]["momentum_buffer"], kept)
        else:
            optimizer.step()
            assert not torch.equal(w, before)


def test_numbers_of_one_dimension() -> None:
    """A rate of shape (1,) on the CPU ended the step of weights on another device."""
    rate = torch.tensor([0.25])
    for device in ("cpu", "meta"):
        w, o, g = (torch.ones(2, 2, device=device) for _ in range(3))
        momentum_step([g], [w], [o], rate)
        weight_step([w], [o], [2.0], rate, 0.5)
        assert w.shape == (2, 2)
        if device == "cpu":
            assert w[0, 0].item() == 1 - 0.25 * 0.5 - 0.25 * 2.0
