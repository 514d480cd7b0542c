"""Weights that hold several matrices: where those are cut whose layout is known."""

import re

from torch import Tensor, nn

from .cuts import Cut, Interleaved
from .places import (
    Layer,
    Place,
    experts_in_rows,
    has_class,
    is_convolution,
    is_depthwise,
    is_router,
    layers_of,
    place_of,
)

# Concatenated q, k, v; two of them; gate and up. Names of the layer, in lower case.
QKV = re.compile(
    r"(?!in_proj_)(\w+_)?w?qkv(_(proj|lin|linear))?|c_attn|in_proj(_weight)?|att_proj|w_pack"
)
PAIR = re.compile(r"(\w+_)?w?(kv|qk)(_(proj|lin|linear))?|key_value")
GATE_UP_NAMES = ("gate_up_proj", "w12", "gate_up", "proj_up_gate_z", "weights_in")
GATES: dict[type, int] = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}
HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "heads")
KV_HEADS = (
    "num_key_value_heads", "num_kv_heads", "kv_n_heads", "n_kv_heads", "multi_query_group_num",
)  # fmt: skip
OUTPUT = re.compile(
    r"(\w+_)?(o|out|wo|dense|output)(_(proj|lin|projection))?|c_proj|proj(ect(ion)?)?"
)
# Modules that are one layer, of which half of the outputs gates the other half.
GATED_CLASS = re.compile(r"\w*(GEGLU|SwiGLU|ReGLU|GLU)")
QUERY = re.compile(r"(to_|c_|w)?(q|query|queries)(_(proj|attn|lin|linear))?")
# Attention of these classes stores q, k and v of one head after those of another.
BY_HEAD = ("Bloom", "GPTNeoX", "Persimmon", "MiniMaxLightning", "DisentangledSelf")
BY_GROUP = ("InternLM2",)
# Gate and up of these experts and mixers alternate row by row.
BY_ROW = ("GptOss", "ZambaMamba")


def fused_cut(place: Place) -> Cut | None:
    """Return how a known fused weight is cut.

    Args:
        place: Of a parameter of two or more dimensions.

    Returns:
        A cut, or None for a parameter that is one matrix or whose layout is not known.
    """
    owner, p = place.owner, place.param
    if isinstance(owner, nn.MultiheadAttention):
        return (0, (owner.embed_dim,) * 3) if place.own_name == "in_proj_weight" else None
    gates = next((n for kind, n in GATES.items() if isinstance(owner, kind)), 0)
    if gates:
        of_gates = place.own_name.startswith(("weight_ih", "weight_hh"))
        return (0, (p.shape[0] // gates,) * gates) if of_gates else None
    experts = experts_in_rows(place)
    if experts:
        return 0, (p.shape[0] // experts,) * experts
    if p.ndim == 3 and place.own_name != "weight":
        return _gate_up_of_stacks(place)
    return _cut_of_layer(place)


def fused_cut_of(model: nn.Module, name: str) -> Cut | None:
    """Return how a parameter of a model is cut, see ``fused_cut``.

    Args:
        model: The whole model.
        name: The parameter's name in it.
    """
    return fused_cut(place_of(model, name))


def stored_in_out(place: Place) -> bool:
    """Say whether a stack of experts is stored (experts, in, out), told by its partner."""
    partner = _stacked_partner(place)
    p = place.param
    if partner is None:
        return False
    up, down = (p, partner) if p[0].numel() > partner[0].numel() else (partner, p)
    return up.shape[2] == 2 * down.shape[1] and up.shape[1] == down.shape[2]


def _stacked_partner(place: Place) -> Tensor | None:
    if place.param.ndim != 3:
        return None
    stacks = [x for x in place.owner._parameters.values() if x is not None and x.ndim == 3]
    others = [x for x in stacks if x is not place.param]
    return others[0] if len(stacks) == 2 else None


def _gate_up_of_stacks(place: Place) -> Cut | None:
    p, partner = place.param, _stacked_partner(place)
    if partner is not None and p[0].numel() != 2 * partner[0].numel():
        return None
    if partner is None and place.own_name not in GATE_UP_NAMES:
        return None
    dim = 2 if stored_in_out(place) else 1
    if partner is not None and p.shape[dim] != 2 * partner.shape[3 - dim]:
        return None
    return _halves(place, dim)


def _halves(place: Place, dim: int) -> Cut | None:
    length = place.param.shape[dim]
    if length % 2:
        return None
    if _is_of(place, BY_ROW):
        return Interleaved(length // 2, (1, 1), dim)
    return dim, (length // 2,) * 2


def _is_of(place: Place, classes: tuple[str, ...]) -> bool:
    """Say whether a weight's layer or its holder is of a class whose name starts so."""
    kinds = [*type(place.owner).__mro__, *type(place.holder).__mro__]
    return any(kind.__name__.startswith(classes) for kind in kinds)


def _cut_of_layer(place: Place) -> Cut | None:
    """Return the cut of a linear layer or convolution, along its outputs."""
    if not place.path or not place.own_name.startswith("weight"):
        return None
    p, name = place.param, place.module.lower()
    dim = p.ndim - 2 if p.ndim == 3 and not is_convolution(place.owner) else 0
    if has_class(place.owner, "Conv1D"):
        dim = 1
    siblings = layers_of(place.holder)
    here = next((x for x in siblings if x.name == place.module), None)
    if here is None or p.shape[dim] != here.outputs:
        return None
    others = [x for x in siblings if x is not here]
    sizes: tuple[int, ...] | None
    declared = getattr(place.holder, "in_split", None)  # timm's attention and MLP side by side
    if name == "in_proj" and declared is not None:
        return (dim, tuple(declared)) if sum(declared) == here.outputs else None
    if _head_widths(place) is not None:
        return _by_head_widths(place, here, name, dim)
    if name in DELTA_NETS:
        return DELTA_NETS[name](place)
    if name == "in_proj" and hasattr(place.holder, "A_log"):
        return _state_space(place, here, others)
    if QKV.fullmatch(name) or name == "query_key_value":
        return _query_key_value(place, here, others, dim)
    if PAIR.fullmatch(name):
        sizes = _pair(place, here)
        return None if sizes is None else (dim, sizes)
    if name == "kv_a_proj_with_mqa":
        rank, rope = place.setting("kv_lora_rank"), place.setting("qk_rope_head_dim")
        fits = rank and rope and rank + rope == here.outputs
        return (dim, (rank, rope)) if fits else None
    if name == "kv_b_proj":
        return _by_head(place, here, ("qk_nope_head_dim", "v_head_dim"))
    if name == "q_proj" and any(
        x.name == "o_proj" and 2 * x.inputs == here.outputs for x in others
    ):
        width = place.setting("head_dim")  # the query and its gate
        return Interleaved(here.outputs // 2 // width, (width, width), dim) if width else None
    gated = GATED_CLASS.fullmatch(type(place.holder).__name__) and not others
    if name in GATE_UP_NAMES or gated or _is_gated(place, here, siblings):
        return _halves(place, dim)
    return None


def _is_gated(place: Place, here: Layer, siblings: list[Layer]) -> bool:
    """Say whether a layer gives twice what the next takes, which leads back to its own inputs."""
    if isinstance(place.holder, (nn.ModuleList, nn.ModuleDict)):
        return False
    mixing = [x for x in siblings if not is_depthwise(x.module) and not is_router(x.name)]
    if len(mixing) != 2 or mixing[0] is not here:
        return False
    return here.outputs == 2 * mixing[1].inputs and here.inputs == mixing[1].outputs


def _query_key_value(place: Place, here: Layer, others: list[Layer], dim: int) -> Cut | None:
    own = vars(place.holder)
    if all(own.get(key) for key in ("dim_qk", "dim_v", "num_heads")):  # a lambda layer: one key
        rows = own["num_heads"] * own["dim_qk"], own["dim_qk"], own["dim_v"]
        return (dim, rows) if sum(rows) == here.outputs else None
    if place.module == "to_qkv" and here.outputs == 5 * here.inputs:
        return dim, (here.inputs,) * 5  # differential attention has two queries and two keys
    width = _query_width(place, here, others)
    if width is None:
        return None
    if here.outputs == 2 * width + 1:
        return dim, (1, width, width)  # separable self-attention
    if any(QUERY.fullmatch(x.name.lower()) for x in others):
        return (dim, (width, width)) if here.outputs == 2 * width else None
    rest, odd = divmod(here.outputs - width, 2)
    if not 0 < rest <= width or odd:
        return None
    heads = place.setting(*HEADS) or 0
    if _is_of(place, ("CodeGen",)):
        return Interleaved(4, (width // 4,) * 3, dim)
    grouped = bool(getattr(place.holder, "new_decoder_architecture", False))
    if grouped or _is_of(place, BY_GROUP):
        groups = place.setting(*KV_HEADS) or heads
        fits = groups and not width % groups and not rest % groups
        sizes = (width // groups, *(rest // groups,) * 2) if fits else ()
        return Interleaved(groups, sizes, dim) if fits else None
    one_key = getattr(place.holder, "multi_query", None)
    by_head = place.module == "query_key_value" or one_key is False or _is_of(place, BY_HEAD)
    by_head = by_head or getattr(place.holder, "head_first", False) is True
    if by_head and rest == width and not one_key:
        return Interleaved(heads, (width // heads,) * 3, dim) if heads else None
    return dim, (width, rest, rest)


def _query_width(place: Place, here: Layer, others: list[Layer]) -> int | None:
    """Return the rows of q: what attention's output projection takes, or numbers of heads tell."""
    heads, kv_heads = place.setting(*HEADS), place.setting(*KV_HEADS)
    if heads and not kv_heads and here.outputs == 3 * heads * (place.setting("head_dim") or 0):
        return here.outputs // 3
    takers = [x for x in others if OUTPUT.fullmatch(x.name.lower())]
    # Keys and values are no wider than queries.
    if len(takers) == 1 and takers[0].inputs < here.outputs <= 3 * takers[0].inputs:
        return takers[0].inputs
    if here.outputs == 3 * here.inputs:
        return here.inputs
    if not heads or not kv_heads or here.outputs % (heads + 2 * kv_heads):
        return None
    width = here.outputs // (heads + 2 * kv_heads)
    hidden = place.setting("hidden_size")
    known = place.setting("head_dim") or (hidden // heads if hidden else width)
    return heads * width if width == known else None


def _pair(place: Place, here: Layer) -> tuple[int, int] | None:
    if here.outputs % 2:
        return None
    half = here.outputs // 2
    if "qk" in here.name.lower() and half != here.inputs:
        return None  # one projection that is query and key: Reformer's, gated attention units'
    heads, width = place.setting(*KV_HEADS), place.setting("head_dim")
    known = place.setting("kv_projection_size") or (heads * width if heads and width else half)
    return (half, half) if half == known else None


def _by_head(place: Place, here: Layer, names: tuple[str, ...]) -> Cut | None:
    sizes = [place.setting(name) for name in names]
    if not all(sizes) or here.outputs % sum(sizes):
        return None
    return Interleaved(here.outputs // sum(sizes), sizes)


def _head_widths(place: Place) -> tuple[int, int] | None:
    """Return the rows of a head's keys and values where a module says that they differ."""
    own = vars(place.holder)
    key, ratio = own.get("key_dim"), own.get("attention_ratio")
    if key and ratio:  # LeViT in transformers
        return key, ratio * key
    # LeViT in timm, HaloNets, SHViT.
    for names in (("key_dim", "val_dim"), ("dim_head_qk", "dim_head_v"), ("qk_dim", "pdim")):
        if all(own.get(name) for name in names):
            return own[names[0]], own[names[1]]
    return None


def _by_head_widths(place: Place, here: Layer, name: str, dim: int) -> Cut | None:
    """Cut keys and values, and queries before them, of one head together or one after another."""
    widths = _head_widths(place)
    kinds = {"queries_keys_values": 2, "qkv": 2, "keys_values": 1, "kv": 1}.get(name, 0)
    if widths is None or not kinds:
        return None
    sizes = (*(widths[0],) * kinds, widths[1])
    heads, odd = divmod(here.outputs, sum(sizes))
    if odd or heads < 1:
        return None
    if hasattr(place.holder, "dim_head_qk") and kinds == 2:  # a bottleneck's attention
        return dim, tuple(heads * n for n in sizes)
    return Interleaved(heads, sizes, dim)


def _state_space(place: Place, here: Layer, others: list[Layer]) -> Cut | None:
    """Cut Mamba's input and gate; in Mamba 2 also B, C and the step sizes."""
    inner = next((x.inputs for x in others if x.name == "out_proj"), 0)
    if here.outputs == 2 * inner:
        return _halves(place, 0)
    states = (place.setting("n_groups") or 0) * (place.setting("ssm_state_size") or 0)
    sizes = (inner, inner, states, states, here.outputs - 2 * inner - 2 * states)
    heads = getattr(place.holder, "num_heads", None)
    return (0, sizes) if states and inner and sizes[-1] == heads else None


def _delta_net(place: Place, kinds: str) -> Cut | None:
    """Cut a gated delta net: q, k, v, the gate z, decay rates b and a, of one key head together."""
    names = ("num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim")
    k_heads, v_heads, k_dim, v_dim = (getattr(place.holder, name, 0) for name in names)
    if not (k_heads and v_heads) or v_heads % k_heads:
        return None
    each = v_heads // k_heads
    per_head = {"q": k_dim, "k": k_dim, "v": each * v_dim, "z": each * v_dim, "b": each, "a": each}
    sizes = tuple(per_head[kind] for kind in kinds)
    if place.param.shape[0] != k_heads * sum(sizes):
        return None
    if kinds == "qkv":  # in the order of q, k and v, not of heads
        return 0, tuple(k_heads * n for n in sizes)
    return Interleaved(k_heads, sizes)


DELTA_NETS = {
    "in_proj_qkvz": lambda place: _delta_net(place, "qkvz"),
    "in_proj_ba": lambda place: _delta_net(place, "ba"),
    "in_proj_qkv": lambda place: _delta_net(place, "qkv"),
}
