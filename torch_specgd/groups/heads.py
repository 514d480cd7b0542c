"""Which layers are a model's output: by what they are, by name, by width, and as a last guess."""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from specgd_common.head_names import HEAD, OUTER_HEAD
from specgd_common.places import (
    Place,
    is_applied,
    is_block,
    is_depthwise,
    is_embedding,
    is_linear,
    raw_weight,
    unwrapped,
    widths,
)

HEAD_CLASS = re.compile(r"\w*(Heads?|Classifier|Predictions|Unembed(ding)?)")
# Of networks whose results are pictures, sounds or noise: what stands beside their blocks.
LEAVING = re.compile(r"(final|last)_(layer|linear)|(\w+_)?proj_out(_\d+)?", re.IGNORECASE)
LEAVING_CONVOLUTION = re.compile(r"final_conv|conv_(out|final|last|post)|out_?c(onv)?")
ATTENTION = re.compile(
    r"(\w+_)?(w?qkv|q|k|query|key|queries|keys|query_key_value|c_attn)(_\w+)?", re.IGNORECASE
)
INNER = re.compile(r"(\w+_)?(q|k|v|o|qkv|query|key|gate|up|down|gate_up)(_proj)?")
# Settings that say how wide an output is.
WIDTHS = ("vocab_size", "num_labels", "n_vocab", "num_classes")


class Heads:
    """A model's output layers, found once for all of its parameters.

    Args:
        model: The whole model.
        places: Of all its parameters.
        guess: Whether the last layer is taken for the output where nothing tells it.
    """

    def __init__(
        self, model: nn.Module, places: Sequence[Sequence[Place]], guess: bool = True
    ) -> None:
        self._declared = _declared_outputs(model)
        weights = [w for m in model.modules() if (w := raw_weight(m)) is not None]
        self._matrices = [w for w in weights if w.ndim > 1]
        layers = {id(p.owner): p.owner for some in places for p in some}
        self._taken = {width[1] for m in layers.values() if (width := widths(m)) is not None}
        tables = [p.param.shape for some in places for p in some if is_embedding(p)]
        self._embeddings = {shape[0]: shape[1] for shape in tables if len(shape) == 2}
        self._tensors = len(places)
        self._small: dict[int, bool] = {}
        outer = [p for some in places for p in some if not p.in_block()]
        applied = [p for p in outer if p.param.ndim > 1 and is_applied(p.owner)]
        applied = [p for p in applied if is_linear(p.owner) or _may_end(p.owner)]
        self._guessed: set[int] = set()
        if guess and not any(self.reason(p) for p in applied):
            self._guessed = self._guesses(applied)

    def reason(self, place: Place) -> str | None:
        """Return "output head", with what made it one where that is a guess, or None."""
        if id(place.owner) in self._declared or self._by_name(place) or self._by_width(place):
            return "output head"
        if id(place.owner) in self._guessed:
            return "output head (a guess: declared last)"
        return None

    def _by_name(self, place: Place) -> bool:
        for depth, name in enumerate(place.path, 1):
            module = place.chain[depth]
            last = depth == len(place.path)
            if last and HEAD.fullmatch(name):
                return True
            # Of several networks in a list each has its own.
            if place.in_block(depth) and not _has_blocks(place.chain[depth - 1]):
                return False
            if OUTER_HEAD.fullmatch(name) and _holds_ends(module, name):
                return True
            if HEAD_CLASS.fullmatch(type(module).__name__) and self._is_small(module):
                return True
            # What has blocks of its own is a network, and the head a layer in it.
            outer = OUTER_HEAD.fullmatch(name) or self._leaves(place, depth)
            named = HEAD.fullmatch(name) or (outer and (last or not _has_blocks(module)))
            if named and (last or self._is_small(module)):
                return True
        return False

    def _leaves(self, place: Place, depth: int) -> bool:
        """Say whether a module beside a network's blocks is called as its last one, and ends it.

        A layer ends a network if it narrows, or if it is the model's last.
        """
        name, module = place.path[depth - 1], place.chain[depth]
        called = bool(LEAVING.fullmatch(name))
        if not is_linear(module):
            called = called or bool(LEAVING_CONVOLUTION.fullmatch(name))
        if not called or not _has_blocks(place.chain[depth - 1]):
            return False
        return _narrows(module) or any(raw_weight(module) is x for x in self._matrices[-1:])

    def _is_small(self, module: nn.Module) -> bool:
        """Say whether a module can be a model's end: no attention, and not most of the model."""
        known = self._small.get(id(module))
        if known is None:
            count = sum(1 for _ in module.parameters())
            known = not _attends(module) and 2 * count < max(self._tensors, 2)
            self._small[id(module)] = known
        return known

    def _by_width(self, place: Place) -> bool:
        """Say whether a layer gives a number for each word or label, which no other layer takes."""
        width = widths(place.owner) if is_linear(place.owner) else None
        if width is None or (place.in_block() and not _has_blocks(place.chain[-2])):
            return False
        outputs, inputs = width
        if outputs in self._taken:
            return False
        if any(outputs == place.setting(name) for name in WIDTHS):
            return True
        return outputs > inputs and self._embeddings.get(outputs) == inputs

    def _guesses(self, outer: Sequence[Place]) -> set[int]:
        """Return the ids of the layer that is declared last, and of those that end as it does."""
        matrices = self._matrices
        last = next((p for p in outer if raw_weight(p.owner) is matrices[-1]), None)
        if last is None or len(matrices) < 2 or _is_inner(last):
            return set()
        found = {id(last.owner)}
        for p in outer:
            outputs, _ = widths(p.owner)  # type: ignore[misc]
            beside = p.path[:-1] == last.path[:-1] or outputs == widths(last.owner)[0]  # type: ignore[index]
            if (beside and outputs not in self._taken and not _is_inner(p)) or _twins(p, last):
                found.add(id(p.owner))
        return found


def _is_inner(place: Place) -> bool:
    """Say whether a layer's or its neighbours' names put it inside of attention or an MLP."""
    if not place.path or INNER.fullmatch(place.path[-1]):
        return True
    return any(ATTENTION.fullmatch(name) for name in place.chain[-2]._modules)


def _declared_outputs(model: nn.Module) -> set[int]:
    """Return the ids of what the models of transformers call their output embeddings."""
    found = set()
    for module in model.modules():
        output: Any = getattr(module, "get_output_embeddings", None)
        if not callable(output):
            continue
        try:
            head = output()
        except (AttributeError, NotImplementedError):
            continue
        if isinstance(head, nn.Module):
            found |= {id(head), id(unwrapped(head))}
    return found


def _may_end(module: nn.Module) -> bool:
    return _narrows(module) and not is_depthwise(module)


def _narrows(module: nn.Module) -> bool:
    """Say whether a layer has fewer outputs than inputs; modules of several layers may."""
    width = widths(module)
    return width is None or width[0] < width[1]


def _holds_ends(module: nn.Module, name: str) -> bool:
    """Say whether a container holds the heads of several tasks, which may be most of a model."""
    several = isinstance(module, nn.ModuleDict) or (
        isinstance(module, nn.ModuleList) and name.endswith("s")
    )
    return several and not _attends(module)


def _attends(module: nn.Module) -> bool:
    names = (n.rpartition(".")[2] for n, _ in module.named_modules())
    attends = any(isinstance(m, nn.MultiheadAttention) for m in module.modules())
    return attends or any(ATTENTION.fullmatch(n) for n in names)


def _has_blocks(module: nn.Module) -> bool:
    return any(is_block(parent, m) for parent in module.modules() for m in parent.children())


def _twins(a: Place, b: Place) -> bool:
    """Say whether two layers have names that differ in their first words: text_head, image_head."""
    if type(a.owner) is not type(b.owner) or len(a.path) != len(b.path):
        return False
    return all(
        x == y or ("_" in x and x.rpartition("_")[2] == y.rpartition("_")[2])
        for x, y in zip(a.path, b.path, strict=True)
    )
