"""Numbers that a step takes: random bits under capture, and rates of one dimension."""

import importlib

import pytest
import torch

from torch_specgd import Muon
from torch_specgd.triton_kernels import momentum_step, weight_step


def test_a_capture_without_a_step_before_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A count that is made under capture would be set back by every replay."""
    module = importlib.import_module("torch_specgd.muon")  # the package has a function of that name
    for kept in ("bfloat16", "int8", "int4"):
        w = torch.nn.Parameter(torch.randn(4, 6))
        optimizer = Muon([w], lr=0.1, state_dtype=kept)
        w.grad, before = torch.randn(4, 6), w.detach().clone()
        with monkeypatch.context() as patched:
            patched.setattr(module, "capturing", lambda device: True)
            with pytest.raises(RuntimeError, match="needs a step before the capture of a CUDA"):
                optimizer.step()
        assert torch.equal(w, before)
        assert optimizer.param_groups[0]["rounding_step"] == 0
        assert not any(x.any() for x in optimizer.state[w].values())
        optimizer.step()
        monkeypatch.setattr(module, "capturing", lambda device: True)
        optimizer.step()
        assert optimizer.state_dict()["param_groups"][0]["rounding_step"] == 2
        monkeypatch.undo()


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
