"""Weights that hold several matrices, told by names and shapes alone: files have no modules."""

import re
from collections.abc import Mapping, Sequence

from .cuts import Cut, Interleaved
from .fused import GATE_UP_NAMES, OUTPUT, QKV, QUERY

Shapes = Mapping[str, Sequence[int]]
# Layers of Bloom, GPT-NeoX, Persimmon and DeBERTa: q, k and v of one head after those of another.
_BY_HEAD = re.compile(r"(.*\.)?(query_key_value|attention\.self\.in_proj)")
# CodeGen cuts its heads into four runs, whatever their number.
_IN_FOUR_RUNS = re.compile(r"(.*\.)?h\.\d+\.attn\.qkv_proj")


def split_by_name(
    name: str,
    shape: Sequence[int],
    *,
    stored_in_out: bool = False,
    shapes: Shapes | None = None,
    heads: int | None = None,
) -> Cut | None:
    """Tell how a weight is cut of which only the name and the shape are known, as in a file.

    Args:
        name: The parameter's full name, such as ``h.0.attn.c_attn.weight``.
        shape: Its shape.
        stored_in_out: Whether the last two dimensions are (in, out), as in transformers' Conv1D.
        shapes: Of every tensor of the file: the layer that takes attention's outputs tells how
            many rows are queries.
        heads: Number of attention heads, for layers that store them one after the other.

    Returns:
        A cut with dim counted from the front, or None for one matrix or an unknown cut.

    Example:
        >>> split_by_name("h.0.attn.qkv.weight", (24, 8))
        (0, (8, 8, 8))
        >>> split_by_name("h.0.attn.c_attn.weight", (8, 24), stored_in_out=True)
        (1, (8, 8, 8))
        >>> split_by_name("h.0.attn.query_key_value.weight", (24, 8), heads=2)
        (0, (4, 4, 4), 2)
        >>> split_by_name("h.0.mlp.fc.weight", (24, 8)) is None
        True
    """
    *path, own_name = name.lower().split(".")
    module = path[-1] if path else ""
    if len(shape) < 2 or own_name.endswith("bias"):
        return None
    outputs, inputs = (shape[-1], shape[-2]) if stored_in_out else (shape[-2], shape[-1])
    dim = len(shape) - (1 if stored_in_out else 2)
    if module in GATE_UP_NAMES or own_name in GATE_UP_NAMES:
        return None if outputs % 2 else (dim, (outputs // 2,) * 2)
    if len(shape) != 2:
        return None
    if own_name.startswith("weight_hh"):
        gates = outputs // inputs if outputs in (3 * inputs, 4 * inputs) else 0
        return (dim, (inputs,) * gates) if gates else None
    if stored_by_head(name, shape):
        fits = heads and not outputs % (3 * heads)
        return Interleaved(heads, (outputs // 3 // heads,) * 3, dim) if heads and fits else None
    holder = name.rpartition(".")[0].rpartition(".")[0]
    four = _IN_FOUR_RUNS.fullmatch(".".join(path)) and f"{holder}.out_proj.weight" in (shapes or {})
    if four and outputs == 3 * inputs and not outputs % 12:
        return Interleaved(4, (outputs // 12,) * 3, dim)
    fused = QKV.fullmatch(module) or module == "query_key_value"
    if not fused and own_name != "in_proj_weight":
        return None
    if outputs == 3 * inputs:
        return dim, (inputs,) * 3
    return _by_neighbours(holder, outputs, stored_in_out, shapes or {}, dim)


def stored_by_head(name: str, shape: Sequence[int]) -> bool:
    """Say whether a weight holds q, k and v of one head after those of another."""
    layer = name.lower().rpartition(".")[0]
    return len(shape) == 2 and shape[0] == 3 * shape[1] and bool(_BY_HEAD.fullmatch(layer))


def _by_neighbours(
    holder: str, outputs: int, stored_in_out: bool, shapes: Shapes, dim: int
) -> Cut | None:
    """Cut by the layer that takes attention's outputs: as wide as the queries are."""
    beside = {
        name.split(".")[-2].lower(): shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and name.rpartition(".")[0].rpartition(".")[0] == holder
    }
    takers = [x for n, x in beside.items() if OUTPUT.fullmatch(n) and len(x) == 2]
    if len(takers) != 1:
        return None
    width = takers[0][0 if stored_in_out else 1]
    rest, odd = divmod(outputs - width, 2)
    if any(QUERY.fullmatch(n) for n in beside):
        return (dim, (width, width)) if outputs == 2 * width else None
    return None if odd or rest <= 0 else (dim, (width, rest, rest))
