"""Weights that hold several matrices: where the known ones are cut."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

CutAlong = tuple[int, tuple[int, ...]]

# Concatenated q, k, v; gate and up. Interleaved layouts (GPT-NeoX's and BLOOM's query_key_value,
# and those of the classes below) are left whole: a cut into thirds would mix heads.
QKV_NAMES = ("c_attn", "qkv", "qkv_proj", "wqkv", "in_proj", "to_qkv")
GATE_UP_NAMES = ("gate_up_proj", "w12", "gate_up")
GATES: dict[type, int] = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}
INTERLEAVED = ("CodeGen", "DisentangledSelfAttention", "GptOss", "InternLM2", "MiniMaxLightning")


def detect_split(model: nn.Module, name: str, owner: nn.Module, p: Tensor) -> CutAlong | None:
    """Finds how a known fused projection is cut.

    Args:
        model: The whole model, whose ``config`` tells numbers of heads.
        name: The parameter's name.
        owner: The module that holds it.
        p: The parameter, of two or more dimensions.

    Returns:
        (dim, sizes), or None for a parameter that is one matrix or whose cut is not known.
    """
    if isinstance(owner, nn.MultiheadAttention) and name.endswith("in_proj_weight"):
        return 0, (owner.embed_dim,) * 3
    path, _, own_name = name.rpartition(".")
    gates = next((n for t, n in GATES.items() if isinstance(owner, t)), None)
    if gates and own_name.startswith(("weight_ih", "weight_hh")):
        return 0, (p.shape[0] // gates,) * gates
    outer, _, module = path.rpartition(".")
    holder = model.get_submodule(outer)
    if any(type(m).__name__.startswith(INTERLEAVED) for m in (owner, holder)):
        return None
    if p.ndim == 3 and own_name in GATE_UP_NAMES:
        return _stacked_gate_up(owner, p)
    module = module.lower()
    dim = 1 if type(owner).__name__ == "Conv1D" else 0
    outputs, inputs = p.shape[dim], p.shape[1 - dim] if p.ndim == 2 else -1
    if p.ndim == 2 and module in QKV_NAMES:
        if hasattr(holder, "A_log"):
            return None  # a state space model's input projection has the name of attention's
        if outputs == 3 * inputs:
            return dim, (inputs,) * 3
        sizes = _grouped_heads(model, outputs)
        return None if sizes is None else (dim, sizes)
    if p.ndim == 2 and module in GATE_UP_NAMES and outputs % 2 == 0:
        return dim, (outputs // 2,) * 2
    return None


def split_by_name(
    name: str, shape: Sequence[int], *, stored_in_out: bool = False
) -> CutAlong | None:
    """Tell how a weight is cut of which only the name and the shape are known, as in a file.

    Args:
        name: The parameter's full name, such as ``h.0.attn.c_attn.weight``.
        shape: Its shape.
        stored_in_out: Whether the last two dimensions are (in, out), as in transformers' Conv1D.

    Returns:
        (dim, sizes) with dim counted from the front, or None for one matrix or an unknown cut.

    Example:
        >>> split_by_name("h.0.attn.qkv.weight", (24, 8))
        (0, (8, 8, 8))
        >>> split_by_name("h.0.attn.c_attn.weight", (8, 24), stored_in_out=True)
        (1, (8, 8, 8))
        >>> split_by_name("h.0.mlp.fc.weight", (24, 8)) is None
        True
    """
    *path, own_name = name.lower().split(".")
    module = path[-1] if path else ""
    if len(shape) < 2 or own_name.endswith("bias"):
        return None
    outputs, inputs = (shape[-1], shape[-2]) if stored_in_out else (shape[-2], shape[-1])
    dim = len(shape) - (1 if stored_in_out else 2)
    parts = 0
    if len(shape) == 2 and own_name.startswith("weight_hh"):
        parts = outputs // inputs if outputs in (3 * inputs, 4 * inputs) else 0
    elif len(shape) == 2 and (module in QKV_NAMES or own_name == "in_proj_weight"):
        parts = 3 if outputs == 3 * inputs else 0
    elif module in GATE_UP_NAMES or own_name in GATE_UP_NAMES:
        parts = 0 if outputs % 2 else 2
    return (dim, (outputs // parts,) * parts) if parts else None


def _grouped_heads(model: nn.Module, outputs: int) -> tuple[int, int, int] | None:
    """Sizes of q, k and v under grouped-query attention, from the model's configuration."""
    config: Any = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    kv_heads = getattr(config, "num_key_value_heads", None)
    if not heads or not kv_heads or outputs % (heads + 2 * kv_heads):
        return None
    width = outputs // (heads + 2 * kv_heads)
    hidden = getattr(config, "hidden_size", None)
    known = getattr(config, "head_dim", None) or (hidden // heads if hidden else width)
    if width != known:
        return None
    return heads * width, kv_heads * width, kv_heads * width


def stacked_transposed(owner: nn.Module, p: Tensor) -> bool:
    """Whether a stack of experts is stored (experts, in, out), told by its down projection."""
    up, down = getattr(owner, "gate_up_proj", None), getattr(owner, "down_proj", None)
    if not (isinstance(up, Tensor) and isinstance(down, Tensor) and (p is up or p is down)):
        return False
    return up.ndim == down.ndim == 3 and up.shape[1:] == (down.shape[2], 2 * down.shape[1])


def _stacked_gate_up(owner: nn.Module, p: Tensor) -> CutAlong | None:
    dim = 2 if stacked_transposed(owner, p) else 1
    return None if p.shape[dim] % 2 else (dim, (p.shape[dim] // 2,) * 2)
