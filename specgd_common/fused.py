"""Names of weights that hold several matrices, and where a name and a shape alone say to cut."""

from collections.abc import Sequence

from torch import nn

CutAlong = tuple[int, tuple[int, ...]]

# Concatenated q, k, v; k, v; gate and up. Names of the layer, in lower case.
QKV_NAMES = ("c_attn", "qkv", "qkv_proj", "wqkv", "in_proj", "to_qkv", "att_proj", "w_pack")
KEY_VALUE_NAMES = ("kv", "kv_proj", "to_kv", "wkv", "key_value")
GATE_UP_NAMES = ("gate_up_proj", "w12", "gate_up", "proj_up_gate_z", "weights_in")
GATES: dict[type, int] = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}


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
