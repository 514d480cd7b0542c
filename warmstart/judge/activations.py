"""Activations of a model while it runs: of modules, by their class, and of functional calls."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..methods.hidden_units import ACTIVATIONS, Calls

# torch's own classes and transformers' (GELUActivation, NewGELUActivation, SiLUActivation, ...).
_CLASS = re.compile(r"(re|ge|si|e|se|ce)lu|mish|swish|tanh|sigmoid|softplus|activation", re.I)


def is_activation(module: nn.Module) -> bool:
    """Say whether a module is an activation, told by its class."""
    return bool(_CLASS.search(type(module).__name__)) and not any(module.children())


class ActivationWatch:
    """Hand every activation of a model's forward passes to a function, with its name.

    Modules go by their names, functional calls by the module that makes them and their own names
    (``layer1.relu``; the second such call in one pass is ``layer1.relu:2``).

    Args:
        model: Any module; hooks are on it between ``start`` and ``stop``.
        wanted: Which names are handed over; None: activations of all names, but no other modules.
        take: ``take(name, activation)``.
    """

    def __init__(
        self,
        model: nn.Module,
        wanted: Callable[[str], bool] | None,
        take: Callable[[str, Tensor], None],
    ) -> None:
        self.model, self.wanted, self.take = model, wanted, take
        self.passes = 0
        self._handles: list[Any] = []
        self._inside: list[tuple[str, nn.Module]] = []
        self._calls: dict[str, int] = {}
        self._mode: Calls | None = None

    def start(self) -> None:
        """Put hooks on every module."""
        for name, module in self.model.named_modules():
            self._handles += [
                module.register_forward_pre_hook(self._before(name)),
                module.register_forward_hook(self._after(name), always_call=True),
            ]

    def stop(self) -> None:
        """Remove them."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._inside = [], []

    def __bool__(self) -> bool:
        return bool(self._handles)

    def _before(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if not self._inside:
                self.passes += 1
                self._calls = {}
                self._mode = Calls(self._see)
                self._mode.__enter__()
            self._inside.append((name, module))

        return hook

    def _after(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._inside:
                self._inside.pop()
            if not self._inside and self._mode is not None:
                self._mode.__exit__(None, None, None)
                self._mode = None
            if self.wanted is not None or is_activation(module):
                self._hand(name, output)

        return hook

    def _see(self, function: str, args: Any, kwargs: Any, output: Any) -> None:
        """Note a functional activation, unless an activation module calls it."""
        if function not in ACTIVATIONS or not self._inside or is_activation(self._inside[-1][1]):
            return
        name = f"{self._inside[-1][0]}.{function.rstrip('_')}".lstrip(".")
        self._calls[name] = count = self._calls.get(name, 0) + 1
        self._hand(name if count == 1 else f"{name}:{count}", output)

    def _hand(self, name: str, output: Any) -> None:
        x = output[0] if isinstance(output, tuple) and output else output
        readable = isinstance(x, Tensor) and x.ndim >= 2 and x.numel()
        if readable and (self.wanted is None or self.wanted(name)):
            self.take(name, x.detach())
