"""Why a parameter is AdamW's: the rules, in the order in which they are asked."""

import re
from collections.abc import Sequence

from torch import nn

from specgd_common.lora_names import lora_role
from specgd_common.places import (
    RECURRENT,
    Place,
    experts_in_rows,
    has_class,
    is_applied,
    is_convolution,
    is_depthwise,
    is_embedding,
    is_router,
)

from .heads import Heads

POSITION = re.compile(
    r"pos_embed(ding)?s?|position(al)?_embed(ding)?s?|wpe|relative_position_bias_table|rel_pos\w*"
    r"|relative_pos_embeddings?",
    re.IGNORECASE,
)
TOKEN = re.compile(r"((cls|mask|dist)_token|(register|query)_tokens?)", re.IGNORECASE)
# Decay rates and the like of Mamba and RWKV: entrywise, though some are stored as matrices.
STATE = re.compile(r"A_logs?|dt_bias|time_(decay|first|faaaa)")
EXPERTS = re.compile(r"expert|moe", re.IGNORECASE)
ROUTER_CLASS = re.compile(r"\w*(Router|Gate|Gating)")
# One matrix for each of q, k, v and the output, stored (d_model, heads, d_head) or by head.
HEADED = re.compile(r"(w_?)?[qkvor](_(proj|kernel|weight|proj_weight))?", re.IGNORECASE)


def why_adamw(places: Sequence[Place], heads: Heads) -> str | None:
    """Return the reason against Muon, or None."""
    for rule in (*WHAT_IS_NO_LAYER, heads.reason, *WHAT_A_LAYER_IS_FOR):
        for place in places:
            reason = rule(place)
            if reason is not None:
                tied = len(places) > 1 and reason == "embedding"
                return "embedding, tied" if tied else reason
    return None


def _vector(place: Place) -> str | None:
    if place.param.ndim < 2:
        return "vector" if place.param.ndim else "scalar"
    return None


def _embedding(place: Place) -> str | None:
    return "embedding" if is_embedding(place) else None


def _norm(place: Place) -> str | None:
    if is_applied(place.owner):
        return None
    return "norm" if "norm" in type(place.owner).__name__.lower() else None


def _bias(place: Place) -> str | None:
    # Of several experts, one row each.
    return "bias" if place.own_name.lower().endswith("bias") else None


def _token(place: Place) -> str | None:
    """Tell positions, also where a linear layer keeps them; tokens and the like only where bare."""
    name = "positional or token parameter"
    if any(POSITION.fullmatch(part) for part in (place.own_name, *place.path[-1:])):
        return name
    if place.own_name == "weight" or is_layer(place):
        return None
    if STATE.fullmatch(place.own_name):
        return "state space parameter"
    return name if TOKEN.fullmatch(place.own_name) else None


def _router(place: Place) -> str | None:
    if ROUTER_CLASS.fullmatch(type(place.owner).__name__):
        return "router"
    for depth, name in enumerate(place.path, 1):
        if is_router(name) and (name.lower() != "gate" or _is_gate(place, depth)):
            return "router"
    return None


def _is_gate(place: Place, depth: int) -> bool:
    """Say whether a "gate" chooses: it has few outputs, or stands beside experts."""
    beside = any("expert" in name for name in place.chain[depth - 1]._modules)
    return beside or 2 * place.param.shape[0] <= place.param.shape[-1]


def _depthwise(place: Place) -> str | None:
    return "depthwise convolution" if is_depthwise(place.owner) else None


def _single(place: Place) -> str | None:
    p = place.param
    if p.numel() == max(p.shape):
        return "a single row or column"
    rows, columns = p.shape[0], p.shape[-1]
    if p.numel() // max(rows, 1) == 1 or (p.ndim == 2 and columns == 1):
        return "a single row or column"
    return None


def _unknown(place: Place) -> str | None:
    known = is_layer(place) or is_stack(place) or is_headed(place) or lora_role(place.name)
    return None if known else "unknown parameter"


WHAT_IS_NO_LAYER = (_vector, _embedding, _norm, _bias, _token)
WHAT_A_LAYER_IS_FOR = (_router, _depthwise, _single, _unknown)


def is_layer(place: Place) -> bool:
    """Say whether a parameter is the weight of a layer that is known to apply matrices."""
    owner, name = place.owner, place.own_name
    if is_applied(owner) or isinstance(owner, RECURRENT):
        return name.startswith("weight")
    return isinstance(owner, nn.MultiheadAttention) or (
        "attention" in type(owner).__name__.lower() and name.endswith("proj_weight")
    )


def is_stack(place: Place) -> bool:
    """Say whether a parameter holds the matrices of experts."""
    if place.param.ndim not in (2, 3):
        return False
    names = (type(place.owner).__name__, place.own_name, *place.path[-1:])
    named = any(EXPERTS.search(name) for name in names)
    return named and (place.param.ndim == 3 or experts_in_rows(place) > 1)


def is_headed(place: Place) -> bool:
    """Say whether a parameter is attention's q, k, v or output in three dimensions."""
    if place.param.ndim != 3 or not HEADED.fullmatch(place.own_name):
        return False
    return "attention" in type(place.owner).__name__.lower()


def view_of(place: Place) -> str:
    """Return how a parameter is seen as matrices, a kind of ``MATRIX_VIEWS``."""
    p = place.param
    if is_convolution(place.owner) and p.ndim == 3:
        return "flatten"
    if has_class(place.owner, "Conv1D") and p.ndim == 2:
        return "transposed"  # transformers' GPT-2 layers store (in, out)
    if is_headed(place) and p.shape[0] >= max(p.shape[1:]):
        return "flatten"  # (d_model, heads, d_head) is one matrix
    return "auto"
