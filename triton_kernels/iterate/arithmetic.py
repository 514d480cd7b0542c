"""What the process allows its other operations does not reach the engine's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_BACKENDS: Any = torch.backends  # its stubs lack mkldnn.matmul and fp32_precision
_LOCK = threading.Lock()
_INSIDE: dict[str, tuple[int, str]] = {}  # contexts by backend, and what was allowed before them


@contextmanager
def as_written(device: torch.device) -> Iterator[None]:
    """Run operations on a device with the dtypes that they are given.

    Autocast is set aside, and float32 products are computed in float32: TF32 and bfloat16 suit a
    model's layers, but a Gram matrix that is rounded to bfloat16 gets negative eigenvalues, and a
    step of degree 9 sends one to 200. A GPU becomes the current one, where Triton launches.

    Args:
        device: Of the tensors.
    """
    with ExitStack() as stack:
        if device.type != "meta" and torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        gpu = device.type == "cuda"
        if gpu:
            stack.enter_context(on_device(device))
        backend = _BACKENDS.cuda.matmul if gpu else _BACKENDS.mkldnn.matmul
        _enter("cuda" if gpu else "mkldnn", backend)
        stack.callback(_leave, "cuda" if gpu else "mkldnn", backend)
        yield


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Make a GPU the current one: Triton launches there, wherever the tensors are.

    Args:
        device: Of the tensors; nothing is done for a CPU.
    """
    if device.type != "cuda":
        yield
        return
    guard = torch.cuda.device(device)
    try:
        guard.__enter__()
    except (RuntimeError, TypeError):
        if torch.cuda.is_available():
            raise
        # Without a GPU there is no device to switch to: these are tensors without data.
        yield
        return
    try:
        yield
    finally:
        guard.__exit__(None, None, None)


def _enter(kind: str, backend: Any) -> None:
    # The setting is the process's: the first context of all threads notes it.
    with _LOCK:
        count, before = _INSIDE.get(kind, (0, ""))
        if count == 0:
            before = backend.fp32_precision
            if before == _BACKENDS.fp32_precision:
                before = "none"  # what follows the setting of all backends goes on to follow it
            backend.fp32_precision = "ieee"
        _INSIDE[kind] = count + 1, before


def _leave(kind: str, backend: Any) -> None:
    with _LOCK:
        count, before = _INSIDE[kind]
        if count == 1:
            backend.fp32_precision = before
        _INSIDE[kind] = count - 1, before
