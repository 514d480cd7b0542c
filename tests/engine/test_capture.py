"""A GPU's path without a GPU: fake CUDA tensors run through it, and no step may wait for values.

A CUDA graph records launches only. What breaks a capture is a value that the host reads (a branch
on a norm, an index by a mask), a copy from the host, and a launch that changes from one run to the
next; fake tensors have no values to read, and a dispatch mode sees every copy.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")
from triton.tools.tensor_descriptor import TensorDescriptor

from torch_specgd.triton_kernels import (
    SCHEDULES,
    momentum_step,
    plan,
    weight_step,
)
from torch_specgd.triton_kernels.kernels import (
    configuration,
    elementwise,
    launch,
    launch_small,
)
from torch_specgd.triton_kernels.operator import PLANNED, _new, flatten

JORDAN = (3.4445, -4.7750, 2.0315)
KERNELS = {
    launch: ("symmetric_kernel", "apply_kernel"),
    launch_small: ("parts_kernel", "small_kernel"),
    elementwise: ("momentum_kernel", "update_kernel"),
}


class NoWaiting(TorchDispatchMode):
    """Refuses what a capture refuses, once `strict`; keeps the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.strict = False
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        tensors = [x for x in (*args, found) if isinstance(x, torch.Tensor)]
        self.names.append(str(func))
        if self.strict:
            devices = {x.device.type for x in tensors if x.ndim}
            assert devices <= {"cuda"}, f"{func} copies between {devices}"
        return found


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """An H100 that notes its launches and computes nothing."""
    launches: list[tuple[str, tuple, tuple]] = []

    def noted(name: str) -> dict[tuple, Callable]:
        class Kernel:
            def __getitem__(self, grid: tuple) -> Callable:
                def run(*args: Any, **options: Any) -> None:
                    plain = tuple(
                        str(a.block_shape) if isinstance(a, TensorDescriptor) else a
                        for a in args
                        if not isinstance(a, torch.Tensor)
                    )
                    launches.append((name, grid, (*plain, *sorted(options.items()))))

                return run

        return Kernel()

    for module, names in KERNELS.items():
        for name in names:
            monkeypatch.setattr(module, name, noted(name))
    monkeypatch.setattr(configuration, "_of_device", lambda index: "sm_90")
    monkeypatch.setattr(FakeTensor, "data_ptr", lambda self: 16 * self.untyped_storage()._cdata)
    # The bound method asks a build without CUDA for the current device; the operator does not.
    monkeypatch.setattr(FakeTensor, "copy_", lambda self, src: torch.ops.aten.copy_(self, src))
    with FakeTensorMode(), NoWaiting() as mode:
        yield SimpleNamespace(launches=launches, mode=mode)


def _capture(gpu: SimpleNamespace, step: Callable[[], object]) -> list:
    """Run once to fill the tables, as a warm-up does, then twice as under capture."""
    step()
    gpu.mode.strict = True
    runs = []
    for _ in range(2):
        gpu.launches.clear()
        gpu.mode.names.clear()
        step()
        runs.append((list(gpu.launches), list(gpu.mode.names)))
    assert runs[0] == runs[1]
    return runs[0][0]


def _arguments(method: str, schedule: Any, form: str, accuracy: str) -> tuple:
    own = PLANNED if schedule is None else flatten(schedule)
    return (form or method, *own, accuracy, 1e-7, None, 1e-2, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "kernels"),
    [
        ((12, 768, 3072), {"symmetric_kernel", "apply_kernel"}),
        ((12, 3072, 768), {"symmetric_kernel", "apply_kernel"}),
        ((4, 1024, 1024), {"symmetric_kernel", "apply_kernel"}),
        ((192, 16, 1024), {"small_kernel"}),
        ((192, 1024, 60), {"small_kernel"}),
        ((2, 16, 50257), {"parts_kernel", "small_kernel"}),
        ((1, 100, 300), set()),
    ],
)
def test_default_never_waits(
    gpu: SimpleNamespace, shape: tuple[int, ...], kernels: set[str], dtype: torch.dtype
) -> None:
    """The capture of an optimizer step would fail, or replay with another run's values."""
    x = torch.empty(shape, device="cuda", dtype=dtype)
    found = _capture(gpu, lambda: _new(x, *_arguments("auto", None, "", "default")))
    assert {name for name, _, _ in found} == kernels
    if kernels:
        assert len(found) == plan(shape, dtype=dtype, device="cuda").traffic()[1]
    if "apply_kernel" in kernels:
        options = [
            dict(entry for entry in rest if isinstance(entry, tuple) and len(entry) == 2)
            for *_, rest in found
        ]
        assert all(one["DESCRIPTOR"] for one in options)


@pytest.mark.parametrize(
    ("method", "schedule", "form", "accuracy"),
    [
        ("auto", None, "", "fast"),
        ("auto", None, "", "high"),
        ("newton_schulz", "polar_express", "", "default"),
        ("gram", "deep", "", "default"),
        ("precise", None, "", "default"),
        ("auto", "jordan", "torch_muon", "default"),
    ],
)
def test_other_ways_never_wait(
    gpu: SimpleNamespace, method: str, schedule: str | None, form: str, accuracy: str
) -> None:
    """Only the default could be captured, and nobody would know before the first try."""
    x = torch.empty(4, 512, 1024, device="cuda")
    own = None if schedule is None else SCHEDULES[schedule]
    outs: list[torch.Tensor] = []
    _capture(gpu, lambda: outs.append(_new(x, *_arguments(method, own, form, accuracy))))
    assert outs
    assert all(out.shape == x.shape for out in outs)


@pytest.mark.parametrize("nesterov", [False, True])
def test_fused_steps_never_wait(gpu: SimpleNamespace, nesterov: bool) -> None:
    """A learning rate in a tensor would be read on the host, once, and stay as it was then."""
    shapes = ((64, 3, 3, 3), (300, 70), (16, 1024))
    g, b, w = ([torch.empty(s, device="cuda") for s in shapes] for _ in range(3))
    outs = [torch.empty(s, device="cuda", dtype=torch.bfloat16) for s in shapes]
    lr, mu = (torch.empty((), device="cuda") for _ in range(2))

    def step() -> None:
        momentum_step(g, b, outs, mu, nesterov=nesterov, fused=True)
        weight_step(w, outs, [1.0, 2.0, 0.5], lr, 0.1, fused=True)

    found = _capture(gpu, step)
    # One of 300 x 70 elements fills no whole lines, and has launches of its own.
    assert [name for name, _, _ in found] == ["momentum_kernel"] * 2 + ["update_kernel"] * 2


def test_the_detector_detects(gpu: SimpleNamespace) -> None:
    """Shows that the tests above can fail: a branch, a mask, a copy."""
    x = torch.empty(3, 4, device="cuda")
    for wrong in (
        lambda: x if x.sum() > 0 else -x,
        lambda: x[x[:, 0] > 0],
        lambda: x * torch.tensor([1.0, 2.0, 3.0, 4.0]).to("cuda"),
    ):
        gpu.mode.strict = False
        with pytest.raises((RuntimeError, AssertionError)):
            _capture(gpu, wrong)
