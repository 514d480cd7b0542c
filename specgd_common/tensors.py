"""What is asked of any tensor before it is worked on."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")


def is_dtensor(x: Tensor) -> "TypeGuard[DTensor]":
    """Say whether x is a DTensor, without the import, which takes a second where none exists."""
    # The types of nearly all: an attribute that is missing takes a microsecond to be missed.
    if type(x) is Tensor or type(x) is Parameter:
        return False
    return hasattr(x, "placements") and hasattr(x, "device_mesh")


def local(x: Tensor) -> Tensor:
    """Return this rank's piece of a DTensor, sharing its memory; any other tensor itself."""
    return x.to_local() if is_dtensor(x) else x


def full(x: Tensor) -> Tensor:
    """Return all of a DTensor, the same on every rank (a collective); any other tensor itself."""
    return x.full_tensor() if is_dtensor(x) else x


def norm64(x: Tensor) -> float:
    """Return the Euclidean norm, summed in float64.

    Summed in float32, as torch does by default, it is off by 4e-4 at ten million entries.
    """
    return float(torch.linalg.vector_norm(x.detach(), dtype=torch.float64))


def lasting(make: Callable[..., T], *args: Any, **options: Any) -> T:
    """Return ``make(*args, **options)``, whose tensors can be written anywhere.

    What inference mode makes can be written in that mode alone, and state outlives the step.

    Args:
        make: What makes them.
        *args: Of it.
        **options: Of it.
    """
    # A compiled step would break at the question, and at a context that does nothing.
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return make(*args, **options)
    with torch.inference_mode(False):
        return make(*args, **options)
