"""What a parameter is, and over which of its dimensions one unit extends."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .entries import Entry

UNIT_NAMES = ("kernel", "filter", "row")

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TABLE = (nn.Embedding, nn.EmbeddingBag)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def role_of(entry: Entry) -> str:
    """What a parameter is: conv, conv_transpose, matrix, transposed, bias or raw."""
    owner, attribute = entry.owner, entry.attribute
    if isinstance(owner, nn.MultiheadAttention):
        if attribute == "in_proj_bias":
            return "bias"
        return "matrix" if attribute.endswith("proj_weight") else "raw"
    if isinstance(owner, _RECURRENT):
        return "matrix" if attribute.startswith("weight") else "bias"
    # transformers' Conv1D is a linear layer whose weight is stored (in, out).
    transposed = type(owner).__name__ == "Conv1D" and hasattr(owner, "nf")
    if not (transposed or isinstance(owner, (nn.Linear, *_CONV, *_CONV_TRANSPOSE, *_TABLE))):
        return "raw"
    if attribute == "bias":
        return "bias"
    if attribute != "weight":
        return "raw"
    if transposed:
        return "transposed"
    if isinstance(owner, _CONV_TRANSPOSE):
        return "conv_transpose"
    return "conv" if isinstance(owner, _CONV) else "matrix"


def default_dims(
    entry: Entry, units: str
) -> tuple[str, tuple[int, ...], tuple[int, tuple[int, ...]] | None]:
    """Unit name, dimensions of one unit, and the split that they count on."""
    p, role = entry.parameter, role_of(entry)
    if entry.partner is not None:
        # The magnitude has one entry per unit; each entry is its own unit, whatever `units` says.
        return "weight-norm magnitude", (), None
    if role == "bias" or p.ndim <= 1:
        return "vector", tuple(range(p.ndim)), None
    if role == "raw":
        return "last axis", (p.ndim - 1,), None
    if units == "row":
        return "row", tuple(range(1, p.ndim)), None
    if role == "transposed":
        return "column", (0,), None
    if role == "matrix" or p.ndim == 2:
        return "row", tuple(range(1, p.ndim)), None
    if units == "kernel":
        return "kernel", tuple(range(2, p.ndim)), None
    if role == "conv":
        return "filter", tuple(range(1, p.ndim)), None
    groups = int(getattr(entry.owner, "groups", 1))
    if groups == 1:
        return "filter", (0, *range(2, p.ndim)), None
    # Grouped transposed convolutions store (in, out / groups, ...): an output is (group, column).
    split = (0, (groups, p.shape[0] // groups))
    return "filter", (1, *range(3, p.ndim + 1)), split


def checked_dims(entry: Entry, dims: Sequence[int]) -> tuple[int, ...]:
    """A callable's answer as sorted, non-negative dimensions."""
    n = entry.parameter.ndim
    if any(not isinstance(d, int) or not -n <= d < n for d in dims):
        raise ValueError(f"units returned {dims!r} for {entry.name} with {n} dimensions")
    return tuple(sorted({d % n for d in dims}))
