"""Float32 products in float32, whatever the process allows elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["full_float32"]


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Multiply float32 on a device without TF32 or bfloat16 inside, as long as the context lasts.

    ``torch.set_float32_matmul_precision("high")`` or ``"medium"`` suits a model's layers, not
    these products: a Gram matrix that is rounded to bfloat16 gets negative eigenvalues, and a
    step of degree 9 sends one to 200.

    Args:
        device: Whose products.
    """
    backends: Any = torch.backends  # its stubs lack mkldnn.matmul
    backend = backends.cuda.matmul if device.type == "cuda" else backends.mkldnn.matmul
    allowed = backend.fp32_precision
    backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        backend.fp32_precision = allowed
