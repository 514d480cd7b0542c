"""Which units feed which weights: found by following tensors through one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_LAYERS = frozenset(("linear", "conv1d", "conv2d", "conv3d", "addmm"))
_NORMS = frozenset(("batch_norm", "layer_norm", "group_norm", "rms_norm", "instance_norm"))
# Also what `Diagnostics` reads.
ACTIVATIONS = frozenset(
    (
        "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "selu_",
        "celu", "gelu", "silu", "mish", "hardswish", "softplus", "tanh", "tanh_", "sigmoid",
        "sigmoid_", "hardtanh", "prelu"
    )
)  # fmt: skip
# What leaves a unit a unit: its entries change together, whatever the others do.
_PASS = (ACTIVATIONS - {"prelu"}) | frozenset(
    (
        "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "contiguous", "clone",
        "to", "float", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d",
        "avg_pool3d", "boolean_dispatch", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
        "adaptive_avg_pool3d", "_max_pool1d", "_max_pool2d", "_max_pool3d"
    )
)  # fmt: skip
# Formulas of activations are made of these; names without underscores, as x + y has no fixed one.
_ELEMENTWISE = frozenset(
    (
        "add", "radd", "sub", "rsub", "mul", "rmul", "div", "rdiv", "truediv", "rtruediv", "pow",
        "square", "sqrt", "exp", "erf", "neg", "abs", "clamp"
    )
)  # fmt: skip
_FLAT = frozenset(("flatten", "view", "reshape"))


@dataclass(eq=False)
class Units:
    """The hidden units between some weights and those that read them.

    Attributes:
        sources: Names of weights that make the units, one output each: one, or gate and up.
        biases: Names of their biases.
        norms: Names of modules with a normalization in between.
        readers: Names of weights that read the units, and how many inputs each unit has there.
        in_out: Those of both that are stored (in, out), as transformers' Conv1D does.
        activation: The last activation of the pass, ``(batch, units, ...)`` or ``(..., units)``.
        channel: The dimension of ``activation`` that counts the units; -1 is the last.
        leaks: Whether anything else reads them, so that they cannot be changed alone.
    """

    sources: list[str]
    biases: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    readers: dict[str, int] = field(default_factory=dict)
    in_out: set[str] = field(default_factory=set)
    activation: Tensor | None = None
    channel: int = -1
    leaks: bool = False

    @property
    def usable(self) -> bool:
        """Whether they can be changed alone."""
        return bool(self.readers) and self.activation is not None and not self.leaks

    def outputs(self, weight: Tensor, name: str) -> Tensor:
        """Return a view of a source or bias whose first dimension counts the units."""
        return weight.movedim(1, 0) if name in self.in_out else weight

    def inputs(self, weight: Tensor, name: str) -> Tensor:
        """Return a view of a reader whose first dimension counts its inputs."""
        return weight if name in self.in_out else weight.movedim(1, 0)


class Calls(TorchFunctionMode):
    """Hand every call of a torch function to ``see(name, args, kwargs, output)`` afterwards."""

    def __init__(self, see: Callable[[str, Any, Any, Any], None]) -> None:
        super().__init__()
        self.see = see

    def __torch_function__(
        self,
        function: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        self.see(getattr(function, "__name__", ""), args, kwargs or {}, output)
        return output


class Follow:
    """Follow hidden units from the layer that makes them to the layers that read them.

    Anything that mixes units or reads them in another way, a residual sum say, marks them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.found: list[Units] = []
        names = list(model.named_parameters(remove_duplicate=False))
        self._names = {id(p): n for n, p in reversed(names)}
        tied = [id(p) for _, p in names]
        self._tied = {i for i in tied if tied.count(i) > 1}
        self._norms = {id(p): n.rpartition(".")[0] for n, p in [*names, *model.named_buffers()]}
        # id of a tensor -> (the tensor, kept alive so that its id stays its own; units; columns)
        self._tracked: dict[int, tuple[Tensor, Units, int]] = {}
        self._used: set[str] = set()

    def see(self, name: str, args: Any, kwargs: Any, output: Any) -> None:
        """Take note of a call of a torch function."""
        if not isinstance(output, Tensor):
            self._leak(output, args, kwargs)
            return
        given = self._tracked.get(id(args[0])) if args else None
        if name in _LAYERS:
            self._layer(name, args, kwargs, output)
        elif given is not None and (name in _PASS or name in _NORMS):
            self._pass(name, args, kwargs, output, given)
        elif given is not None and name in _FLAT and (grown := self._grown(*given[:2], output)):
            self._tracked[id(output)] = (output, given[1], given[2] * grown)
        elif not self._formula(name.strip("_"), args, kwargs, output):
            self._leak(output, args, kwargs)

    def _layer(self, name: str, args: Any, kwargs: Any, output: Tensor) -> None:
        # addmm(bias, x, weight), with a weight that is stored (in, out)
        in_out = name == "addmm"
        order = ("bias", "input", "weight") if in_out else ("input", "weight", "bias")
        told = {**dict(zip(order, args, strict=False)), **kwargs}
        weight: Any = told.get("weight")
        bias = told.get("bias")
        own = self._names.get(id(weight), "")
        groups = kwargs.get("groups", args[6] if len(args) > 6 else 1) if "conv" in name else 1
        usable = bool(own) and groups == 1 and id(weight) not in self._tied
        if own in self._used:  # a layer that runs twice has two kinds of readers
            usable = False
            for u in self.found:
                u.leaks |= own in u.sources or own in u.readers
        given = self._tracked.get(id(told.get("input")))
        if given is not None:
            _, units, columns = given
            if usable and weight.shape[0 if in_out else 1] % columns == 0:
                units.readers[own] = columns
                units.in_out |= {own} if in_out else set()
            else:
                units.leaks = True
        if not usable:
            return
        self._used.add(own)
        units = Units([own], [self._names[id(bias)]] if id(bias) in self._names else [])
        units.in_out = {own} if in_out else set()
        units.channel = output.ndim - 1 - int(name[4]) if "conv" in name else -1
        self.found.append(units)
        self._tracked[id(output)] = (output, units, 1)

    def _pass(self, name: str, args: Any, kwargs: Any, output: Tensor, given: Any) -> None:
        _, units, columns = given
        if name in _NORMS:
            tensors = [a for a in (*args[1:], *kwargs.values()) if isinstance(a, Tensor)]
            units.norms += sorted({self._norms[id(a)] for a in tensors if id(a) in self._norms})
        if name in ACTIVATIONS:
            units.activation = output
        self._tracked[id(output)] = (output, units, columns)

    @staticmethod
    def _grown(x: Tensor, units: Units, output: Tensor) -> int:
        """Return how many columns a unit has for one before; 0 where units are mixed.

        Positions of channels become columns, channel by channel; or leading dimensions change.
        """
        if units.channel == -1:
            return int(output.ndim > 0 and x.shape[-1] == output.shape[-1])
        flat = x.ndim > 2 and output.ndim == 2 and output.shape[0] == x.shape[0]
        return output.shape[1] // x.shape[1] if flat and units.channel == 1 else 0

    def _formula(self, name: str, args: Any, kwargs: Any, output: Tensor) -> bool:
        """Pass on what a formula makes of the same units alone and of numbers, or join a gate."""
        if name not in _ELEMENTWISE:
            return False
        if name == "mul" and self._gate(args, output):
            return True
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.ndim]
        known = [self._tracked.get(id(a)) for a in tensors]
        first = known[0] if known else None
        if first is None or any(k is None or k[1:] != first[1:] for k in known):
            return False
        if any(a.shape != output.shape for a in tensors):
            return False
        first[1].activation = output
        self._tracked[id(output)] = (output, *first[1:])
        return True

    def _gate(self, args: Any, output: Tensor) -> bool:
        """Join an activated gate and what it is multiplied by: their rows make the same units."""
        both = [self._tracked[id(a)] for a in args[:2] if id(a) in self._tracked]
        if len(both) < 2:
            return False
        (_, one, m), (_, other, n) = both
        if one is other or m != 1 or n != 1 or args[0].shape != args[1].shape:
            return False
        if one.readers or other.readers or one.channel != other.channel:
            return False
        joined = Units(
            one.sources + other.sources,
            one.biases + other.biases,
            one.norms + other.norms,
            activation=output,
            channel=one.channel,
            in_out=one.in_out | other.in_out,
            leaks=one.leaks or other.leaks,
        )
        self.found = [u for u in self.found if u is not one and u is not other] + [joined]
        self._tracked[id(output)] = (output, joined, 1)
        for a in args[:2]:
            self._tracked[id(a)] = (a, joined, 1)
        return True

    def _leak(self, output: Any, args: Any, kwargs: Any) -> None:
        """Mark units that something reads of which nothing is known; shapes tell nothing."""
        flat = output if isinstance(output, (tuple, list)) else (output,)
        if not any(isinstance(x, Tensor) for x in flat):
            return
        for a in (*args, *kwargs.values()):
            for x in a if isinstance(a, (tuple, list)) else (a,):
                if isinstance(x, Tensor) and id(x) in self._tracked:
                    self._tracked[id(x)][1].leaks = True


def follow_units(model: nn.Module, run: Callable[[], Any]) -> tuple[list[Units], Any]:
    """Return the hidden units of a model with their activations in one pass, and its result.

    Args:
        model: The module whose parameters are asked for.
        run: Runs the forward pass.
    """
    follow = Follow(model)
    with Calls(follow.see):
        result = run()
    return follow.found, result
