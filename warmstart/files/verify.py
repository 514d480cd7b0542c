"""Hold an output against its input and its report, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .copies import times
from .read import FileError
from .undo import Told


def verify(path: Path, new: Mapping[str, Any], old: Mapping[str, Any], told: Told) -> str:
    """Return a sentence about an output that is its input times the report's factors.

    Args:
        path: Of the output, for the message.
        new: Its tensors.
        old: The input's.
        told: What the report tells.

    Raises:
        FileError: Naming the first tensor that is something else.
    """
    if list(new) != list(old):
        differing = sorted(set(map(str, new)) ^ set(map(str, old)))[:3]
        raise FileError(path, f"its names or their order are not the input's: {differing}")
    if lost := sorted(set(told.factors) - set(old))[:3]:
        raise FileError(path, f"the report tells of {lost}, which the input does not hold")
    for name, x in old.items():
        if not isinstance(x, Tensor):
            continue
        expected = times(x, told.factors[name]) if name in told.factors else x
        y = new[name]
        same = isinstance(y, Tensor) and y.dtype == x.dtype and y.shape == x.shape
        if not same or not torch.equal(y, expected):
            what = "the input times the report's factors" if name in told.factors else "the input's"
            raise FileError(path, f"{name!r} is not {what}")
    count = len(told.factors)
    return f"verified: {count} tensors are as the report tells, {len(old) - count} as they were"
