"""What all our optimizers share: validation, checkpoints, and one batch per matrix shape."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from .checks import (
    PRECONDITION,
    Check,
    by_name,
    check_form,
    check_settings,
    check_state,
    in_plain_tuples,
    integer,
    state_fault,
)
from .distributed.agreement import partly_missing
from .distributed.layout import check_layout
from .groups.matrix_view import describe, names_of
from .telemetry import Clock, StepStatistics
from .triton_kernels.kernels.owned import capturing

# Stands in a checkpoint where a setting was a function: code is not data.
CALLABLE = "<callable>"


class SpectralOptimizer(Optimizer):
    """Base of Muon and SpecGD: the contract of torch.optim, without an algorithm."""

    CHECKS: ClassVar[Mapping[str, Check]] = {}
    _clock: Clock | None = None  # there in a step that is measured
    _statistics: StepStatistics | None = None

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        defaults = in_plain_tuples(defaults)
        self._check_group(defaults)
        super().__init__(params, defaults)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        """Raise unless every hyper-parameter of the group can be used."""
        check_settings(group, self.CHECKS)

    def _own_words(self, group: Any) -> Any:
        """Return a group, of a user or a checkpoint, in this optimizer's names."""
        return group

    @abstractmethod
    def _state_shapes(
        self, p: Tensor, group: Mapping[str, Any], state: Any
    ) -> dict[str, torch.Size]:
        """Return the shape of each entry that a parameter's state may have; () for a count."""

    @abstractmethod
    def _check_parameter(self, p: Tensor, name: str | None, group: Mapping[str, Any]) -> None:
        """Raise unless the parameter can be optimized by this group."""

    @abstractmethod
    def _update_group(self, group: dict[str, Any]) -> None:
        """Step the parameters of one group that have a gradient."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; missing hyper-parameters take the constructor's values.

        Args:
            param_group: A dict with "params" and any of the constructor's arguments.

        Raises:
            ValueError: As the constructor; the optimizer is then as it was.
            TypeError: Likewise.
        """
        # torch completes the dict that it gets: a list of groups may be used for another optimizer.
        param_group = in_plain_tuples(dict(param_group))
        self._check_group({**self.defaults, **param_group})
        self._warn_of_typing_errors(param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_parameters(group, group)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _check_parameters(self, group: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Raise unless these settings can optimize the group's parameters."""
        for p, name in zip(group["params"], names_of(group), strict=True):
            if not p.dtype.is_floating_point or p.dtype.itemsize < 2:
                raise TypeError(
                    f"{type(self).__name__} needs real floating-point parameters of 16 bits or "
                    f"more, but {describe(p, name)} is {p.dtype}"
                )
            check_layout(p, name)
            self._check_parameter(p, name, settings)

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

    def _check_before_making(self, what: str, device: torch.device) -> None:
        """Raise if what a step makes once would be made anew in each replay of a CUDA graph."""
        if capturing(device):
            raise RuntimeError(
                f"{what} must be there before a CUDA graph is captured, got none: take a step first"
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one step.

        Args:
            closure: Re-evaluates the model and returns the loss; runs with gradients enabled.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: On sparse or complex gradients, before any parameter is changed.
        """
        if torch.compiler.is_compiling() and self._stays_uncompiled():
            return torch.compiler.disable(self.step)(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_step()
        for group in self.param_groups:
            self._update_group(group)
        return loss

    def _stays_uncompiled(self) -> bool:
        """Say whether steps differ from each other, so that each would be compiled anew."""
        return False

    @abstractmethod
    def _algorithm(self, p: Tensor, group: Mapping[str, Any]) -> str:
        """Return what steps a parameter of the group."""

    def statistics(
        self, every: int | None = None, *, log: Any = None, next_step: int = 0
    ) -> StepStatistics:
        """Measure steps from here on; return the dict that holds the last measured one's numbers.

        Ask before the steps, with ``every`` or ``log`` as you like; without arguments the dict that
        was asked for is returned again. A measured step copies the trained weights, takes three
        sums over them and, on a GPU, waits for its orthogonalizations. The other steps count one
        up. What was never asked for costs nothing.

        Args:
            every: Measure steps whose number is a multiple of it (default 1).
            log: Where each measured step's numbers are sent, under "optimizer/": TensorBoard's
                ``SummaryWriter``, ``wandb`` or one of its runs, ``mlflow``, a logger of Lightning,
                an ``Accelerator``, or a function of (dict, step). On several ranks each asks, and
                one logs.
            next_step: Number of the next step (default 0), of a run that was resumed for example.

        Returns:
            A dict of numbers, see :class:`~torch_specgd.telemetry.StepStatistics`: norm of the
            update, its root mean square by group, its share by algorithm, its cosine with the
            weights, milliseconds of orthogonalization. ``stop()`` ends the measuring, as does the
            end of a ``with`` block.

        Raises:
            ValueError: If ``every`` is below 1.
            TypeError: If ``log`` is nothing of that kind.

        Example:
            >>> from torch_specgd import Muon
            >>> w = torch.nn.Parameter(torch.eye(2))
            >>> optimizer = Muon([w], lr=0.5, weight_decay=0.0)
            >>> statistics = optimizer.statistics()
            >>> w.grad = torch.eye(2)
            >>> optimizer.step()
            >>> round(statistics["update_norm"], 1), round(statistics["cosine"], 2)
            (0.7, -1.0)
        """
        if self._statistics is not None and every is None and log is None:
            return self._statistics
        integer(1)("every", 1 if every is None else every)
        integer(0)("next_step", next_step)
        made = StepStatistics(self, 1 if every is None else every, log, next_step)
        if self._statistics is not None:
            self._statistics.stop()
        self._statistics = made
        return made

    def _check_step(self) -> None:
        """Raise unless every gradient, and state that was replaced, fits its parameter."""
        if any(group["share_work"] for group in self.param_groups):
            self._agree_on_gradients()
        no_shape = torch.Size()
        for group in self.param_groups:
            for i, p in enumerate(group["params"]):
                g = p.grad
                if g is None:
                    continue
                shape = p.shape
                if g.layout != torch.strided or g.is_complex() or g.shape != shape:
                    self._refuse_gradient(p, names_of(group)[i])
                shapes = None
                for key, x in self.state.get(p, {}).items():
                    # Nearly always nothing; looked at more closely, all else may be right as well.
                    wanted = no_shape if key == "step" else shape
                    if type(x) is not Tensor or x.shape != wanted or not x.is_floating_point():
                        shapes = shapes or self._state_shapes(p, group, self.state[p])
                        # A preconditioner's own of another shape starts anew.
                        known = None if key.startswith(PRECONDITION) else shapes.get(key)
                        fault = "" if known is None else state_fault(p, key, x, known)
                        if fault:
                            raise RuntimeError(
                                f"{describe(p, names_of(group)[i])} cannot be stepped: {fault}; if "
                                f"its data were replaced, delete the optimizer's state of it"
                            )

    def _agree_on_gradients(self) -> None:
        """Raise on all ranks, or take zeros on all, where only some of them have a gradient."""
        shared = [group for group in self.param_groups if group["share_work"]]
        missing = set(partly_missing([p for group in shared for p in group["params"]]))
        names = []
        for group in shared if missing else ():
            for p, name in zip(group["params"], names_of(group), strict=True):
                if p in missing and group["share_work"] == "zeros":
                    p.grad = torch.zeros_like(p)
                elif p in missing:
                    names.append(describe(p, name))
        if names:
            raise RuntimeError(
                f"share_work needs a gradient on all ranks or on none, but only some have one of "
                f"{', '.join(names[:5])}; share_work='zeros' takes zeros for it"
            )

    def _refuse_gradient(self, p: Tensor, name: str | None) -> None:
        g = p.grad
        assert g is not None
        if g.layout == torch.strided and not g.is_complex():
            raise RuntimeError(f"{describe(p, name)} has a gradient of shape {tuple(g.shape)}")
        kind = "sparse" if g.layout != torch.strided else "complex"
        raise RuntimeError(
            f"{type(self).__name__} does not support {kind} gradients, "
            f"but {describe(p, name)} has one"
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
            if "step" in values:
                values["step"] = torch.as_tensor(values["step"], dtype=torch.float32).reshape(())

    def state_dict(self) -> dict[str, Any]:
        """Return state and groups as plain data; functions among the settings are left out."""
        saved = super().state_dict()
        for group in saved["param_groups"]:
            for key in [key for key, value in group.items() if callable(value)]:
                group[key] = CALLABLE
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this optimizer or, for matrices, of torch.optim.Muon.

        Unlike the base class, state keeps the dtype that it was saved with (float32 state of
        bfloat16 parameters stays float32), and no tensor is shared with ``state_dict``.

        Args:
            state_dict: What ``state_dict()`` returned. The name is part of the contract:
                torch.distributed.checkpoint passes it by keyword.

        Where both sides have names (``named_parameters()``), state goes by name and not by
        position. Everything is checked before anything is changed.

        Raises:
            ValueError: If the groups do not have the parameters that this optimizer has, or state
                or a setting cannot be used.
            TypeError: If a setting is of the wrong kind.
        """
        seen: list[dict[str, Any]] = []

        def last_look(_: Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
            # Last in line, so it sees what the user's own hooks made of the state dict.
            seen.append(self._checked(loaded))
            return seen[0]

        hook = self.register_load_state_dict_pre_hook(last_look)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        for group, loaded in zip(self.param_groups, seen[0]["param_groups"], strict=True):
            group.update({key: loaded[key] for key in loaded if callable(loaded[key])})
            for saved_id, p in zip(loaded["params"], group["params"], strict=True):
                for key, value in seen[0]["state"].get(saved_id, {}).items():
                    if isinstance(value, Tensor):
                        own = self.state[p][key]
                        dtype = own.dtype if key == "step" else value.dtype
                        self.state[p][key] = value.detach().to(own.device, dtype, copy=True)

    def _checked(self, loaded: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state dict that is to be loaded, once it is known to fit."""
        check_form(loaded, self.param_groups, type(self).__name__)
        saved_groups = [self._own_words(group) for group in loaded["param_groups"]]
        groups = self._with_functions(by_name(saved_groups, self.param_groups))
        for i, (own, saved) in enumerate(zip(self.param_groups, groups, strict=True)):
            needed = ("lr", "weight_decay", "momentum")[
                : 2 if saved.get("use_muon") is False else 3
            ]
            missing = [key for key in needed if key not in saved]
            if missing:
                raise ValueError(
                    f"group {i} of the state dict has no {', '.join(map(repr, missing))}: "
                    f"it is not {type(self).__name__}'s"
                )
            settings = {**self.defaults, **saved}
            self._check_group(settings)
            self._check_parameters(own, settings)
            for saved_id, p, name in zip(
                saved["params"], own["params"], names_of(own), strict=True
            ):
                state = loaded["state"].get(saved_id, {})
                shapes = self._state_shapes(p, settings, state)
                check_state(p, name, state, shapes, type(self).__name__)
        return {**loaded, "param_groups": groups}

    def _with_functions(self, saved: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return saved groups, with this optimizer's functions where the checkpoint had some."""
        result = [dict(group) for group in saved]
        for own, group in zip(self.param_groups, result, strict=True):
            for key in [k for k, v in group.items() if isinstance(v, str) and v == CALLABLE]:
                if not callable(own.get(key)):
                    raise ValueError(
                        f"{key} was a function or a Schedule when this checkpoint was written, and "
                        f"those are not saved: give the optimizer its own before loading"
                    )
                group[key] = own[key]
        return result
