"""Attention cut head by head: each head's query, key, value and output is a matrix of its own."""

import re

from torch import nn

from specgd_common.cuts import Cut, unpacked
from specgd_common.fused import HEADS, OUTPUT, PAIR, QKV
from specgd_common.places import Layer, Place, has_class, is_linear, layers_of

WIDTHS = ("head_dim", "attention_head_size", "d_kv", "d_head", "dim_head", "key_value_proj_dim")
QUERY = re.compile(r"(to_|w|linear_)?(q|query|queries)(_(proj|lin|linear|head))?", re.IGNORECASE)
KEY_VALUE = re.compile(
    r"(to_|w|linear_)?(k|v|key|value|keys|values)(_(proj|lin|linear|head))?", re.IGNORECASE
)


def head_cut(place: Place, cut: Cut | None) -> Cut | None:
    """Return how a weight of attention is cut head by head; any other weight's own cut.

    Queries, keys and values are cut along their outputs, the projection after attention along its
    inputs. Where several heads share keys and values (GQA, MQA), these are cut into fewer.

    Args:
        place: Of the parameter.
        cut: How it is cut without regard to heads.
    """
    if isinstance(place.owner, nn.MultiheadAttention):
        return _runs(cut, 0, place.param.shape[0], place.owner.head_dim)
    if not is_linear(place.owner) or place.param.ndim != 2 or not place.path:
        return cut
    outputs = int(has_class(place.owner, "Conv1D"))
    name = place.module.lower()
    if name == "kv_b_proj" and cut is not None:  # of each head the part for keys, then for values
        dim, sizes, repeats = unpacked(cut)
        return dim, sizes * repeats
    siblings = layers_of(place.holder)
    if _is_fused(name) or QUERY.fullmatch(name) or KEY_VALUE.fullmatch(name):
        dim = outputs
    elif OUTPUT.fullmatch(name) and any(_asks(x) for x in siblings):
        dim = 1 - outputs
    else:
        return cut
    return _runs(cut, dim, place.param.shape[dim], _width(place, siblings))


def _runs(cut: Cut | None, dim: int, length: int, width: int | None) -> Cut | None:
    """Return the heads of a width along a dimension, where a known cut's parts consist of such."""
    sizes = () if cut is None else unpacked(cut)[1]
    if not width or length <= width or any(n % width for n in (length, *sizes)):
        return cut
    return dim, (width,) * (length // width)


def _width(place: Place, siblings: list[Layer]) -> int | None:
    """Return the rows of one head, from the module, its config, or the number of heads."""
    width, heads = place.setting(*WIDTHS), place.setting(*HEADS)
    if width or not heads:
        return width
    queries = [x.outputs for x in siblings if QUERY.fullmatch(x.name.lower())]
    queries += [x.inputs for x in siblings if OUTPUT.fullmatch(x.name.lower())]
    return queries[0] // heads if queries and queries[0] % heads == 0 else None


def _asks(layer: Layer) -> bool:
    name = layer.name.lower()
    return bool(QUERY.fullmatch(name)) or _is_fused(name)


def _is_fused(name: str) -> bool:
    return bool(QKV.fullmatch(name) or PAIR.fullmatch(name)) or name == "query_key_value"
