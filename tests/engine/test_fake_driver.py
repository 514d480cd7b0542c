"""Where launches go and what is compiled, on a driver that launches nothing."""

from collections import Counter

import pytest
import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

pytest.importorskip("triton")

from reference.fake_driver import fake_driver
from torch_specgd.step.muon import muon
from torch_specgd.triton_kernels import (
    engine,
    momentum_step,
    multi_tensor,
    operator,
    orthogonalize,
)
from torch_specgd.triton_kernels.kernels import available


def _step(shapes: tuple, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multi_tensor, "_PLAIN", {FakeTensor})
    monkeypatch.setattr(engine, "orthogonalize_op", operator._new)
    monkeypatch.setattr(FakeTensor, "data_ptr", lambda self: 4096)
    monkeypatch.setattr(FakeTensor, "copy_", lambda self, src: torch.ops.aten.copy_(self, src))
    with FakeTensorMode(), torch.no_grad():
        p, g, b = ([torch.empty(s, device=device) for s in shapes] for _ in range(3))
        muon(
            p, g, b, lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True,
            ns_coefficients="auto", eps=1e-7, ns_steps=5, adjust_lr_fn=None,
        )  # fmt: skip


def test_first_launches_are_checked_on_the_tensors_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of a launch for cuda:1 read cuda:1's memory from cuda:0, the current one."""
    asked: list[tuple[int | None, int]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # torch 2.9 wakes the GPU that it is told of when it makes a fake tensor there.
    monkeypatch.setattr(fake_tensor, "init_gpu_context", lambda device: None, raising=False)
    monkeypatch.setattr(multi_tensor, "_PLAIN", {FakeTensor})
    available.forget()
    with fake_driver() as seen, FakeTensorMode():

        def check(config: dict, device: torch.device) -> float:
            asked.append((device.index, seen.device))
            return 1.0  # off: nothing is launched behind it

        monkeypatch.setitem(available.CHECKS, "elementwise", check)
        g, b, out = ([torch.empty(4, 4, device="cuda:1")] for _ in range(3))
        with pytest.warns(UserWarning, match="off by 1"):
            momentum_step(g, b, out, 0.9)
    available.forget()
    assert asked == [(1, 1)]
    assert seen.device == 0


@pytest.mark.parametrize("shapes", [((768, 768),) * 12, ((16, 1024),) * 6, ((300, 400),) * 2])
def test_launches_go_to_the_tensors_device(shapes: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters on cuda:1 while cuda:0 is current: all launches read cuda:0's memory."""
    with fake_driver() as seen:
        _step(shapes, "cuda:1", monkeypatch)
    assert {stream for _, stream in seen.launched} == {"stream of cuda:1"}
    assert seen.device == 0, "the caller's device comes back"
    names = [name for name, _ in seen.launched]
    assert names[0] == "momentum_kernel"
    assert names[-1] == "update_kernel"


def test_few_kernels_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel takes seconds in the first step of every job."""
    shapes = 3 * ((2304, 768), (768, 768), (3072, 768), (768, 3072)) + 8 * ((16, 1024),)
    with fake_driver() as seen:
        _step(shapes, "cuda:0", monkeypatch)
        first = len(seen.compiled)
        _step(shapes, "cuda:0", monkeypatch)
    assert first <= 16, Counter(seen.compiled)
    assert len(seen.compiled) == first


def test_the_operator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`orthogonalize` in anybody's code launches where its input lies."""
    monkeypatch.setattr(engine, "orthogonalize_op", operator._new)
    monkeypatch.setattr(FakeTensor, "data_ptr", lambda self: 4096)
    monkeypatch.setattr(FakeTensor, "copy_", lambda self, src: torch.ops.aten.copy_(self, src))
    with fake_driver() as seen, FakeTensorMode():
        orthogonalize(torch.empty(64, 512, 512, device="cuda:3"))
    assert {stream for _, stream in seen.launched} == {"stream of cuda:3"}
