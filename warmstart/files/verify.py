"""Hold an output against its input and its report, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .copies import times
from .read import FileError
from .undo import Told, check_norm

_STATISTICS = ("running_mean", "running_var")


def verify(path: Path, new: Mapping[str, Any], old: Mapping[str, Any], told: Told) -> str:
    """Return a sentence about an output that is its input as the report tells.

    Tensors with factors must be the input times these, to the last bit. Of new values the report
    tells norms alone, and these are held. All other tensors must be the input's.

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
    if lost := sorted({*told.factors, *told.norms} - set(old))[:3]:
        raise FileError(path, f"the report tells of {lost}, which the input does not hold")
    for name, x in old.items():
        renewed = told.renewed and name.endswith(_STATISTICS)
        if isinstance(x, Tensor) and not renewed:
            _check(path, name, new[name], x, told)
    count, whole = len(told.norms), len(old)
    how = "" if told.factors else ", by their norms"
    rest = " (running statistics renewed)" if told.renewed else ""
    return (
        f"verified {path}: {count} tensors are as the report tells{how}, "
        f"{whole - count} as they were{rest}"
    )


def _check(path: Path, name: str, y: Any, x: Tensor, told: Told) -> None:
    same = isinstance(y, Tensor) and y.dtype == x.dtype and y.shape == x.shape
    if same and name in told.norms and name not in told.factors:
        try:
            check_norm(name, y, told.norms[name])
        except ValueError as error:
            raise FileError(path, error) from None
        return
    expected = times(x, told.factors[name]) if name in told.factors else x
    if not same or not torch.equal(y, expected):
        what = "the input times the report's factors" if name in told.factors else "the input's"
        raise FileError(path, f"{name!r} is not {what}")
