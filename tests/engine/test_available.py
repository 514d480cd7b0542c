"""GPUs without Triton, with an old one, of an old make, or whose compiler errs: the library."""

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

pytest.importorskip("triton")

from torch_specgd.triton_kernels import momentum_step, plan, weight_step
from torch_specgd.triton_kernels.iterate.products import TorchProducts
from torch_specgd.triton_kernels.iterate.run import products_for
from torch_specgd.triton_kernels.kernels import available, configuration, elementwise
from torch_specgd.triton_kernels.operator import PLANNED, _new

REQUEST = ("auto", *PLANNED, "default", 1e-7, None, 1e-2, None)
SHAPES = ((12, 768, 768), (8, 16, 1024), (1, 100, 300), (8, 1024, 60), (12, 3072, 768))


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What was found out about this machine's Triton is for this machine."""
    monkeypatch.setattr(torch.cuda, "device", nullcontext)  # there is none to switch to
    available.forget()
    yield
    available.forget()


REASONS = {
    "no Triton": ("sm_90", None, "Triton is not installed"),
    "old": ("sm_90", "3.1.0", "at least 3.5, got 3.1.0"),
    "T4": ("sm_75", "3.9.0", "no kernels for sm_75"),
    "RDNA": ("gfx1100", "3.9.0", "no kernels for gfx1100"),
}


def _all_kinds_of_launches() -> None:
    with FakeTensorMode():
        for shape in SHAPES:
            x = torch.empty(shape, device="cuda:0")
            assert _new(x, *REQUEST).shape == shape
        one = [torch.empty(4, 4, device="cuda:0") for _ in range(3)]
        momentum_step(*([x] for x in one), 0.9, fused=True)
        weight_step([one[0]], [one[1]], [1.0], 0.1, fused=True)


@pytest.mark.parametrize("reason", REASONS)
def test_the_library_multiplies(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step on Windows, on a T4 or with an old Triton ended in an error."""
    arch, version, message = REASONS[reason]
    monkeypatch.setattr(configuration, "_of_device", lambda index: arch)
    monkeypatch.setattr(available, "_version", lambda: version)
    monkeypatch.setattr(FakeTensor, "copy_", lambda self, src: torch.ops.aten.copy_(self, src))
    with pytest.warns(UserWarning, match=message) as seen:
        _all_kinds_of_launches()
    assert len(seen) == 1, "one warning, and no more"


@pytest.mark.parametrize(("arch", "dtype"), [("sm_75", torch.float16), ("sm_90", torch.bfloat16)])
def test_arithmetic_is_what_the_gpu_has(arch: str, dtype: torch.dtype) -> None:
    """bfloat16 is emulated before compute capability 8, at a tenth of the rate."""
    assert plan((768, 768), 12, device="cuda", arch=arch).dtype == dtype
    for device in ("xpu", "mps"):
        assert plan((768, 768), device=device).dtype == torch.bfloat16


def test_a_launch_that_is_wrong_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilers of several versions made wrong code for some tiles of Hopper."""
    device = torch.device("cuda", 0)
    monkeypatch.setattr(configuration, "_of_device", lambda index: "sm_90")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def fails(config: dict, device: torch.device) -> float:
        raise ValueError("ptxas")

    for check, message in (
        (lambda config, device: 0.5, "off by 0.5"),
        (lambda config, device: float("nan"), "off by nan"),
        (fails, "ValueError: ptxas"),
    ):
        available._checked.cache_clear()
        monkeypatch.setitem(available.CHECKS, "small", check)
        with pytest.warns(UserWarning, match=message):
            assert not available.trusted(device, {"small": {"N": 64}})
        assert not available.trusted(device, {"small": {"N": 64}})  # and no second warning
    monkeypatch.setitem(available.CHECKS, "small", lambda config, device: 1e-6)
    assert available.trusted(device, {"small": {"N": 32}})


def test_products_of_a_batch_that_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning would promise the library, and the wrong kernel run on."""
    chosen = plan((768, 768), 12, device="cuda", arch="sm_90")
    x = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0), shape=(12, 768, 768))
    monkeypatch.setattr(configuration, "_of_device", lambda index: "sm_90")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(available.CHECKS, "symmetric", lambda config, device: 1.0)
    monkeypatch.setitem(available.CHECKS, "apply", lambda config, device: 0.0)
    with pytest.warns(UserWarning, match="symmetric kernel was off"):
        assert isinstance(products_for(x, chosen), TorchProducts)
    available._checked.cache_clear()
    monkeypatch.setitem(available.CHECKS, "symmetric", lambda config, device: 0.0)
    assert not isinstance(products_for(x, chosen), TorchProducts)


def test_a_step_whose_kernels_do_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.5's assembler knows no B300: the first step would end in its error."""
    seen: list[str] = []

    def fails(config: dict, device: torch.device) -> float:
        raise ValueError("ptxas")

    monkeypatch.setattr(configuration, "_of_device", lambda index: "sm_100")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setitem(available.CHECKS, "elementwise", fails)
    for name in ("momentum", "update"):
        monkeypatch.setattr(elementwise, name, lambda *_: seen.append("launched"))
    with FakeTensorMode():
        g, b, out = ([torch.empty(4, 4, device="cuda:0")] for _ in range(3))
        with pytest.warns(UserWarning, match="ValueError: ptxas"):
            momentum_step(g, b, out, 0.9, fused=True)
        weight_step(g, out, [1.0], 0.1, fused=True)  # and no second warning
    assert not seen


@pytest.mark.parametrize(("major", "minor", "table"), [
    (7, 5, "sm_75"), (8, 0, "sm_80"), (8, 6, "sm_89"), (8, 9, "sm_89"), (9, 0, "sm_90"),
    (10, 0, "sm_100"), (10, 3, "sm_100"), (12, 0, "sm_89"),
])  # fmt: skip
def test_table_of_a_card(
    major: int, minor: int, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer card would be given tiles that do not fit in its shared memory."""
    configuration._of_device.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (major, minor))
    assert configuration.architecture(torch.device("cuda", 7)) == table
    configuration._of_device.cache_clear()
