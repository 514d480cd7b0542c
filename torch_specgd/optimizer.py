"""What all our optimizers share: validation, checkpoints, and one batch per matrix shape."""

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from .distributed.layout import check_layout
from .groups.matrix_view import describe, names_of

# Stands in a checkpoint where a setting was a function: code is not data.
CALLABLE = "<callable>"


def check_non_negative(**values: Any) -> None:
    """Raises ValueError unless every value is finite and at least zero; tensors have one element.

    Args:
        **values: Hyper-parameters by name, floats or one-element tensors.
    """
    for name, value in values.items():
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(
                    f"Tensor {name} must be 1-element, but has {value.numel()} elements"
                )
            value = float(value)
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number, but is a {type(value).__name__}: {value!r}")
        if not (float(value) >= 0.0 and math.isfinite(value)):
            raise ValueError(f"{name} must be finite and at least 0, but is {value}")


class SpectralOptimizer(Optimizer):
    """Base of Muon and SpecGD: the contract of torch.optim, without an algorithm."""

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._check_group(defaults)
        super().__init__(params, defaults)

    @abstractmethod
    def _check_group(self, group: Mapping[str, Any]) -> None:
        """Raises unless every hyper-parameter of the group can be used."""

    @abstractmethod
    def _check_parameter(self, p: Tensor, name: str | None, group: Mapping[str, Any]) -> None:
        """Raises unless the parameter can be optimized by this group."""

    @abstractmethod
    def _update_group(self, group: dict[str, Any]) -> None:
        """Steps the parameters of one group that have a gradient."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; missing hyper-parameters take the constructor's values.

        Args:
            param_group: A dict with "params" and any of the constructor's arguments.

        Raises:
            ValueError: As the constructor; the optimizer is then as it was.
            TypeError: Likewise.
        """
        self._check_group({**self.defaults, **param_group})
        self._warn_of_typing_errors(param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for p, name in zip(group["params"], names_of(group), strict=True):
                if not p.dtype.is_floating_point or p.dtype.itemsize < 2:
                    raise TypeError(
                        f"{type(self).__name__} needs real floating-point parameters of 16 bits "
                        f"or more, but {describe(p, name)} is {p.dtype}"
                    )
                check_layout(p, name)
                self._check_parameter(p, name, group)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _warn_of_typing_errors(self, param_group: Mapping[str, Any]) -> None:
        # Other keys are the user's own, as with every optimizer of torch.
        for key in param_group.keys() - self.defaults.keys() - {"params", "param_names"}:
            meant = get_close_matches(key, self.defaults, n=1, cutoff=0.85)
            if meant:
                warnings.warn(
                    f"{type(self).__name__} does not know the group key {key!r} and ignores it: "
                    f"was {meant[0]!r} meant?",
                    stacklevel=4,
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one step.

        Args:
            closure: Re-evaluates the model and returns the loss; runs with gradients enabled.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: On sparse or complex gradients, before any parameter is changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_gradients()
        for group in self.param_groups:
            self._update_group(group)
        return loss

    def _check_gradients(self) -> None:
        for group in self.param_groups:
            for i, p in enumerate(group["params"]):
                g = p.grad
                if g is None or (g.layout == torch.strided and not g.is_complex()):
                    continue
                kind = "sparse" if g.layout != torch.strided else "complex"
                raise RuntimeError(
                    f"{type(self).__name__} does not support {kind} gradients, "
                    f"but {describe(p, names_of(group)[i])} has one"
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Fills what an older checkpoint, or one of torch.optim.Muon, does not have.
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                if key != "differentiable":  # the base class's own, which no fresh group has
                    group.setdefault(key, value)
        for values in self.state.values():
            # Older and foreign checkpoints count steps in plain numbers; torch's AdamW does not.
            if "step" in values and not isinstance(values["step"], Tensor):
                values["step"] = torch.tensor(float(values["step"]), dtype=torch.float32)

    def state_dict(self) -> dict[str, Any]:
        """Returns state and groups as plain data; functions among the settings are left out."""
        saved = super().state_dict()
        for group in saved["param_groups"]:
            for key in [key for key, value in group.items() if callable(value)]:
                group[key] = CALLABLE
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a checkpoint of this optimizer or, for matrices, of torch.optim.Muon.

        Unlike the base class, state keeps the dtype that it was saved with (float32 state of
        bfloat16 parameters stays float32), and no tensor is shared with ``state_dict``.

        Args:
            state_dict: What ``state_dict()`` returned. The name is part of the contract:
                torch.distributed.checkpoint passes it by keyword.

        Raises:
            ValueError: If the groups do not have the parameters that this optimizer has.
        """
        seen: list[dict[str, Any]] = []

        def last_look(_: Optimizer, loaded: dict[str, Any]) -> None:
            # Last in line, so it sees what the user's own hooks made of the state dict.
            seen.append({**loaded, "param_groups": self._with_functions(loaded["param_groups"])})

        hook = self.register_load_state_dict_pre_hook(last_look)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        for group, loaded in zip(self.param_groups, seen[0]["param_groups"], strict=True):
            group.update({key: loaded[key] for key in loaded if callable(loaded[key])})
        ids: Iterable[Any] = (i for group in seen[0]["param_groups"] for i in group["params"])
        params = (p for group in self.param_groups for p in group["params"])
        for saved_id, p in zip(ids, params, strict=True):
            for key, value in seen[0]["state"].get(saved_id, {}).items():
                if isinstance(value, Tensor):
                    device = self.state[p][key].device
                    self.state[p][key] = value.detach().clone().to(device)

    def _with_functions(self, saved: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Saved groups, with this optimizer's own functions where the checkpoint had some."""
        result = [dict(group) for group in saved]
        for own, group in zip(self.param_groups, result, strict=False):
            for key in [k for k, v in group.items() if isinstance(v, str) and v == CALLABLE]:
                if not callable(own.get(key)):
                    raise ValueError(
                        f"{key} was a function or a Schedule when this checkpoint was written, and "
                        f"those are not saved: give the optimizer its own before loading"
                    )
                group[key] = own[key]
        return result
