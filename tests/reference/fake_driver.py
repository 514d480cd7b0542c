"""A driver for Triton without a GPU: nothing is compiled or launched, everything is counted.

What a step costs the host, and where it would launch, can be seen on any machine.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from torch_specgd.triton_kernels.kernels import configuration
from torch_specgd.triton_kernels.kernels.apply import apply_kernel
from torch_specgd.triton_kernels.kernels.elementwise import momentum_kernel, update_kernel
from torch_specgd.triton_kernels.kernels.small import parts_kernel, small_kernel
from torch_specgd.triton_kernels.kernels.symmetric import symmetric_kernel


class _Kernel:
    """A compiled kernel that notes the stream of every launch."""

    function = None
    packed_metadata = None

    def __init__(self, name: str, seen: SimpleNamespace) -> None:
        self._name, self._seen = name, seen

    def launch_metadata(self, *arguments: Any) -> None:
        return None

    def run(self, grid_0: int, grid_1: int, grid_2: int, stream: str, *arguments: Any) -> None:
        self._seen.launched.append((self._name, stream))


class _Driver:
    def __init__(self, capability: int, seen: SimpleNamespace) -> None:
        self._capability, self._seen = capability, seen

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return self._seen.device

    def get_current_stream(self, device: int) -> str:
        return f"stream of cuda:{device}"


class _Guard:
    """In the place of ``torch.cuda.device``."""

    def __init__(self, seen: SimpleNamespace, device: torch.device) -> None:
        self._seen, self._index = seen, device.index or 0

    def __enter__(self) -> None:
        self._before, self._seen.device = self._seen.device, self._index

    def __exit__(self, *_: object) -> None:
        self._seen.device = self._before


@contextmanager
def fake_driver(capability: int = 90) -> Iterator[SimpleNamespace]:
    """Yield what was `compiled` and `launched`, as (kernel, stream), and the current `device`.

    Args:
        capability: Of the GPU, 90 for a Hopper.
    """
    seen = SimpleNamespace(compiled=[], launched=[], device=0)

    def compiled(self: Any, key: Any, signature: Any, device: int, *others: Any) -> _Kernel:
        seen.compiled.append(self.__name__)
        kernel = self.device_caches[device][0][key] = _Kernel(self.__name__, seen)
        return kernel

    before = driver._active
    products = (apply_kernel, symmetric_kernel, parts_kernel, small_kernel)
    kernels = (*products, momentum_kernel, update_kernel)
    caches = [kernel.device_caches for kernel in kernels]
    for kernel in kernels:
        kernel.device_caches = defaultdict(kernel.create_binder)
    driver.set_active(_Driver(capability, seen))
    arch = f"sm_{capability}"
    try:
        with (
            mock.patch.object(JITFunction, "_do_compile", compiled),
            mock.patch.object(configuration, "_of_device", return_value=arch),
            mock.patch.object(torch.cuda, "device", lambda device: _Guard(seen, device)),
        ):
            yield seen
    finally:
        driver._active = before
        for kernel, cache in zip(kernels, caches, strict=True):
            kernel.device_caches = cache
