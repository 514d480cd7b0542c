"""Which algorithm a parameter gets, and which matrices it consists of."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

MATRIX_VIEWS = ("auto", "flatten", "batch")


def describe(param: Tensor, name: str | None = None) -> str:
    """Names a parameter in an error message: its name where known, and its shape."""
    shape = tuple(param.shape)
    return f"parameter {name!r} of shape {shape}" if name else f"a parameter of shape {shape}"


def uses_muon(param: Tensor, use_muon: bool | None, name: str | None = None) -> bool:
    """Says whether Muon orthogonalizes this parameter; AdamW takes the others.

    Args:
        param: The parameter.
        use_muon: The group's choice; None decides by shape: two or more dimensions.
        name: The parameter's name, for the error message.

    Returns:
        True for Muon, False for AdamW.

    Raises:
        ValueError: If Muon is asked for and the parameter is no matrix.
    """
    if use_muon is None:
        return param.ndim >= 2
    if use_muon and param.ndim < 2:
        raise ValueError(
            f"use_muon=True needs parameters of two or more dimensions, but the group has "
            f"{describe(param, name)}; leave use_muon=None to send such parameters to AdamW"
        )
    return use_muon


def as_matrices(x: Tensor, view: str) -> Tensor:
    """Views a tensor as the batch of matrices that it means.

    Args:
        x: Tensor of two or more dimensions.
        view: "auto": 2-D is one matrix, 3-D is a batch (expert stacks), 4-D and higher are
            convolutions, flattened to (out, rest). "flatten": always (out, rest), which is right
            for Conv1d weights. "batch": the last two dimensions, whatever stands before them.

    Returns:
        (B, m, n), a view where the strides allow it.
    """
    if view == "flatten" or (view == "auto" and x.ndim != 3):
        return x.reshape(1, x.shape[0], -1)
    return x.reshape(-1, x.shape[-2], x.shape[-1])


def matrix_shape(param: Tensor, view: str) -> tuple[int, int]:
    """Shape (m, n) of the logical matrix, which learning-rate scales are computed from."""
    if view == "flatten" or (view == "auto" and param.ndim != 3):
        return param.shape[0], param.numel() // max(param.shape[0], 1)
    return param.shape[-2], param.shape[-1]


def names_of(group: Mapping[str, Any]) -> list[str | None]:
    """Names of a group's parameters where the user passed named_parameters(), else Nones."""
    names = group.get("param_names")
    return list(names) if names is not None else [None] * len(group["params"])
