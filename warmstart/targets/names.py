"""What a name and a shape tell of a tensor in a state dict, where no module is at hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .parameters import BESIDE_ORIGINAL

Shapes = Mapping[str, tuple[int, ...]]

_BUFFERS = re.compile(
    r"running_(mean|var)|num_batches_tracked|position_ids|(original_)?inv_freq|masked_bias"
    r"|relative_position_index|_[uv]|weight_u|base|pe"
)
_NORM = re.compile(r"(^|_)(layer|batch|group|instance|rms)?norm(\d|_|$)|^(ln|bn)(\d|_|$)", re.I)
_EMBEDDING = re.compile(
    r"(\w+_)?emb(ed(ding)?s?)?|embed_(tokens|positions|in)|wte|wpe|shared|relative_attention_bias",
    re.I,
)
_PARAMETRIZED = re.compile(r"(?:(.*)\.)?parametrizations\.([^.]+)\.original(\d?)")
_RECURRENT = re.compile(r"(weight_(?:ih|hh|hr)|bias_(?:ih|hh))(_l\d+(?:_reverse)?)?")


@dataclass(frozen=True)
class Told:
    """What the names of a state dict tell of one tensor.

    Attributes:
        module: Name of the module that uses it.
        attribute: Its name there, looked through parametrizations.
        role: ``"weight"``, ``"bias"``, ``"normalization"``, ``"buffer"`` or ``"raw"``.
        partner: For the magnitude of a weight normalization, the name of its direction.
        reason: Why it must stay as it is, or the empty string.
    """

    module: str
    attribute: str
    role: str
    partner: str = ""
    reason: str = ""

    @property
    def is_embedding(self) -> bool:
        """Whether the module is called as embeddings are."""
        return bool(_EMBEDDING.fullmatch(self.module.rpartition(".")[2]))


class Names:
    """All names and shapes of a state dict, of which each tensor's neighbours are asked."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        # Weights by the names that their modules use, with the shapes that they have there.
        self.weights: dict[str, tuple[int, ...]] = {}
        for name, shape in shapes.items():
            module, attribute, slot = self._looked_through(name)
            if slot in ("", "1", "v"):
                self.weights[_joined(module, attribute)] = shape
        self.flipped = self._stored_in_out()

    def told(self, name: str) -> Told:
        """Return what the names tell of one tensor."""
        module, attribute, slot = self._looked_through(name)
        if slot == "buffer":
            return Told(module, attribute, "buffer")
        if slot in ("0", "g") and (partner := self._direction(name)):
            return Told(module, attribute, "weight", partner=partner)
        if slot in ("1", "v") and self._direction(self._magnitude(name)):
            why = "direction of weight normalization (its magnitude is shrunk instead)"
            return Told(module, attribute, "weight", reason=why)
        if slot in ("0", "1"):
            why = "parametrization with several originals"
            return Told(module, attribute, "raw", reason=why)
        if slot in ("g", "v"):
            attribute = name.rpartition(".")[2]
        return Told(module, attribute, self._role(module, attribute, self.shapes[name]))

    def _looked_through(self, name: str) -> tuple[str, str, str]:
        """Return module, attribute, and which of several tensors makes the attribute."""
        found = _PARAMETRIZED.fullmatch(name)
        if found:
            return found[1] or "", found[2], found[3]
        module, _, leaf = name.rpartition(".")
        base, _, slot = leaf.rpartition("_")
        original = _joined(module, f"{base}_orig")
        if slot == "orig" and any(
            _joined(module, base + b) in self.shapes for b in BESIDE_ORIGINAL
        ):
            return module, base, ""
        if slot in ("mask", "u", "v") and original in self.shapes:
            return module, leaf, "buffer"
        return (module, base, slot) if slot in ("g", "v") and base else (module, leaf, "")

    def _role(self, module: str, attribute: str, shape: tuple[int, ...]) -> str:
        if _BUFFERS.fullmatch(attribute):
            return "buffer"
        recurrent = _RECURRENT.fullmatch(attribute)
        if attribute.endswith("weight") or (recurrent and attribute.startswith("weight")):
            beside = self.shapes.get(_joined(module, f"{attribute[:-6]}bias"), ())
            norm = len(shape) < 2 or beside == shape or _NORM.search(module.rpartition(".")[2])
            return "normalization" if norm else "weight"
        if len(shape) != 1 or not (attribute.endswith("bias") or recurrent):
            return "raw"
        if attribute == "in_proj_bias" or recurrent:
            return "bias"
        weight = _joined(module, f"{attribute[:-4]}weight")
        of_matrix = len(self.weights.get(weight, ())) >= 2
        if weight in self.weights and not of_matrix:
            return "normalization"
        normed = _NORM.search(module.rpartition(".")[2])
        return "normalization" if normed else "bias" if of_matrix else "raw"

    def _direction(self, magnitude: str) -> str:
        """Return the name of the direction that belongs to a weight normalization's magnitude."""
        new_style = magnitude.endswith("original0")
        v = f"{magnitude[:-1]}1" if new_style else f"{magnitude[:-2]}_v"
        g, shape = self.shapes.get(magnitude), self.shapes.get(v)
        if g is None or shape is None or len(shape) < 2:
            return ""
        kept = [n for n in g if n != 1]
        fits = g == () or (
            len(g) == len(shape) and all(a in (1, b) for a, b in zip(g, shape, strict=True))
        )
        return v if fits and len(kept) <= 1 else ""

    @staticmethod
    def _magnitude(direction: str) -> str:
        return f"{direction[:-1]}0" if direction.endswith("1") else f"{direction[:-2]}_g"

    def _stored_in_out(self) -> set[str]:
        """Return weights whose biases tell that their outputs are counted by dimension 1.

        Square ones go with weights of the same name: GPT-2's c_proj is square in attention and
        not in the feed-forward layer.
        """
        found, square = [], []
        for name, shape in self.weights.items():
            module, _, attribute = name.rpartition(".")
            if len(shape) < 2 or not attribute.endswith("weight"):
                continue
            bias = self.shapes.get(_joined(module, f"{attribute[:-6]}bias"), ())
            outputs = bias[0] if len(bias) == 1 else shape[0]
            if outputs != shape[0] and outputs % shape[1] == 0:
                found.append(name)
            elif shape[0] == shape[1]:
                square.append(name)
        like = {self._kind(n) for n in found}
        return {*found, *(n for n in square if self._kind(n) in like)}

    def _kind(self, name: str) -> tuple[str, int]:
        return ".".join(name.split(".")[-2:]), len(self.weights[name])


def _joined(module: str, attribute: str) -> str:
    return f"{module}.{attribute}" if module else attribute
