"""What hyper-parameters and optimizer state may be: the same for constructors and checkpoints."""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from specgd_common.tensors import is_dtensor

from .groups.matrix_view import describe
from .triton_kernels import resolve_schedule
from .triton_kernels.schedule.named import is_triple

Check = Callable[[str, Any], None]
_LARGEST = torch.finfo(torch.float32).max
ADAMW = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state, of which no part is of use alone
PRECONDITION = "precondition_"  # what names of a preconditioner's state begin with


def check_settings(group: Mapping[str, Any], checks: Mapping[str, Check]) -> None:
    """Raise unless every hyper-parameter of a group can be used.

    Args:
        group: A parameter group, or the defaults of one.
        checks: A check by the name of each hyper-parameter.

    Raises:
        ValueError: On a value out of range.
        TypeError: On a value of the wrong kind.
    """
    for name, check in checks.items():
        check(name, group[name])


def in_plain_tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the list types of config libraries (Hydra's) as tuples.

    Checkpoints hold the settings: whoever loads one may not have that library.

    Args:
        settings: A parameter group, whose parameters are left as they are, or defaults.

    Example:
        >>> from collections import UserList
        >>> in_plain_tuples({"lr": 0.1, "adamw_betas": UserList([0.9, 0.95])})
        {'lr': 0.1, 'adamw_betas': (0.9, 0.95)}
    """
    ours = ("params", "param_names")
    return {k: v if k in ours else _in_plain_tuples(v) for k, v in settings.items()}


def _in_plain_tuples(value: Any) -> Any:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes, list, tuple)):
        return value
    return tuple(map(_in_plain_tuples, value))


def number(low: float = 0.0, below: float = math.inf, *, none: bool = False) -> Check:
    """Check for a finite number in [low, below); tensors have one element.

    Args:
        low: Least value.
        below: What the value stays below.
        none: Whether None will do too.

    Example:
        >>> number(below=1.0)("momentum", 2.0)
        Traceback (most recent call last):
        ...
        ValueError: momentum must be a number in [0, 1), got 2.0
    """
    wanted = "a finite number of at least" if below == math.inf else "a number in"
    wanted += f" {low:g}" if below == math.inf else f" [{low:g}, {below:g})"
    wanted = f"None or {wanted}" if none else wanted

    def check(name: str, value: Any) -> None:
        if value is None and none:
            return
        if isinstance(value, Tensor):
            if value.numel() != 1 or value.is_complex() or value.dtype == torch.bool:
                raise ValueError(
                    f"Tensor {name} must be 1-element and real, got {value.numel()} elements of "
                    f"{value.dtype}"
                )
            value = float(value)
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{name} must be {wanted}, got {value!r} of {type(value).__name__}")
        if not low <= float(value) < below or float(value) > _LARGEST:
            raise ValueError(f"{name} must be {wanted}, got {value}")

    return check


def integer(low: int, high: int | None = None) -> Check:
    """Check for an integer in [low, high].

    Args:
        low: Least value.
        high: Largest value, or None.
    """

    def check(name: str, value: Any) -> None:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < low or (high is not None and value > high):
            wanted = f"from {low} to {high}" if high is not None else f"of at least {low}"
            raise ValueError(f"{name} must be an integer {wanted}, got {value!r}")

    return check


def flag(*, none: bool = False) -> Check:
    """Check for True or False: of a command line's strings "False" would count as true.

    Args:
        none: Whether None will do too.
    """

    def check(name: str, value: Any) -> None:
        if not (isinstance(value, int) and value in (0, 1)) and not (none and value is None):
            choices = "True, False or None" if none else "True or False"
            raise TypeError(f"{name} must be {choices}, got {value!r}")

    return check


def sharing(name: str, value: Any) -> None:
    """Check for a ``share_work``: True, False, or "zeros"."""
    if not isinstance(value, bool) and not (isinstance(value, str) and value == "zeros"):
        raise TypeError(f"{name} must be True, False or 'zeros', got {value!r}")


def one_of(*choices: Any, function: str = "") -> Check:
    """Check for one of some values.

    Args:
        choices: The values.
        function: What a function in their place maps, for the message; "": none will do.
    """

    def check(name: str, value: Any) -> None:
        if function and callable(value) and not isinstance(value, type):
            return
        # By kind as well: 1 equals True, and a tensor equals nothing that can be asked for.
        if not any(type(value) is type(x) and value == x for x in choices):
            more = f" or a function of {function}" if function else ""
            raise ValueError(f"{name} must be one of {choices}{more}, got {value!r}")

    return check


def pair(each: Check) -> Check:
    """Check for a tuple or list of two.

    Args:
        each: Check of either.
    """

    def check(name: str, value: Any) -> None:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise ValueError(f"{name} must be two numbers, got {value!r}")
        for i, x in enumerate(value):
            each(f"{name}[{i}]", x)

    return check


def check_schedule(coefficients: Any, steps: int | None = None) -> None:
    """Raise unless ``ns_coefficients`` is "auto" or what the engine can resolve.

    Args:
        coefficients: The setting.
        steps: How often a triple is applied.
    """
    if isinstance(coefficients, str) and coefficients == "auto":
        return
    try:
        # Named schedules and lists have a length of their own.
        resolve_schedule(coefficients, steps if is_triple(coefficients) else None)
    except TypeError as error:
        raise TypeError(f"ns_coefficients cannot be used: {error}") from None


def _shown(value: Any) -> str:
    """Return the beginning of a value's text, in one line: an array's has many."""
    return " ".join(f"{value!r:.80}".split())


def state_fault(p: Tensor, key: str, value: Any, shape: torch.Size) -> str:
    """Say what is wrong with an entry of a parameter's state; "" if it can be used.

    Args:
        p: The parameter.
        key: Name of the entry.
        value: The entry.
        shape: What its shape must be; () for a count of steps, which may be a plain number.
    """
    count = len(shape) == 0
    if count and isinstance(value, (int, float)) and not isinstance(value, bool):
        good = math.isfinite(value) and value >= 0
        return "" if good else f"{key} must be finite and at least 0, got {value}"
    if not isinstance(value, Tensor):
        return f"{key} must be a tensor, got {_shown(value)}"
    codes = key == "momentum_codes" and value.dtype in (torch.int8, torch.uint8)
    if not (value.is_floating_point() or codes) and not (
        count and value.dtype in (torch.int64, torch.int32)
    ):
        return f"{key} must be a floating-point tensor, got {value.dtype}"
    if value.is_meta and not p.is_meta:
        return f"{key} must have data, got a tensor on the meta device"
    if (value.dtype.itemsize < 2 and not codes) or value.layout != torch.strided:
        return f"{key} must be dense and of 16 bits or more, got {value.dtype}, {value.layout}"
    if count:
        return "" if value.numel() == 1 else f"{key} must be one number, got {value.numel()}"
    if value.shape != shape:
        return f"{key} must have shape {tuple(shape)}, got {tuple(value.shape)}"
    if is_dtensor(value) != is_dtensor(p):
        kinds = ["a DTensor" if is_dtensor(x) else "a plain tensor" for x in (p, value)]
        return f"{key} must be {kinds[0]} as its parameter is, got {kinds[1]}"
    # A mean over neurons lies as its reduction left it.
    reduced = shape != p.shape or key == "neuron_second_moment"
    if reduced or not (is_dtensor(p) and is_dtensor(value)):
        return ""
    same = tuple(value.placements) == tuple(p.placements)
    return "" if same else f"{key} must lie as {p.placements} say, got {value.placements}"


def check_state(
    p: Tensor, name: str | None, state: Any, shapes: Mapping[str, torch.Size], owner: str
) -> None:
    """Raise ValueError unless a parameter's state out of a checkpoint can be used.

    Args:
        p: The parameter.
        name: Its name, for the message.
        state: Its entries.
        shapes: Shape of each entry that the optimizer knows.
        owner: The optimizer's class.
    """
    of = f"the state of {describe(p, name)}"
    if not isinstance(state, Mapping):
        raise ValueError(f"{of} must be a dict, got {_shown(state)}")
    for key, value in state.items():
        # A preconditioner that was replaced since has left its own, of whatever shape.
        left = str(key).startswith(PRECONDITION)
        if key not in shapes and not (left and isinstance(value, Tensor)):
            raise ValueError(f"{of} has {key!r}, which {owner} does not know: {[*shapes]}")
        shape = shapes.get(key, getattr(value, "shape", torch.Size()))
        if fault := state_fault(p, key, value, shape):
            raise ValueError(f"{of} cannot be used: {fault}")
    missing = [key for key in ADAMW if key not in state]
    if missing and any(key in state for key in ADAMW):
        raise ValueError(f"{of} misses {', '.join(map(repr, missing))}")


def check_form(loaded: Any, groups: Sequence[Mapping[str, Any]], owner: str) -> None:
    """Raise ValueError unless a state dict has the groups and parameters of an optimizer.

    Args:
        loaded: The state dict.
        groups: The optimizer's groups.
        owner: The optimizer's class.
    """
    missing = [key for key in ("state", "param_groups") if key not in loaded]
    if missing:
        raise ValueError(f"the state dict of {owner} misses {', '.join(map(repr, missing))}")
    state, saved = loaded["state"], loaded["param_groups"]
    if not isinstance(state, Mapping):
        raise ValueError(f"state must be a dict, got {_shown(state)}")
    if not isinstance(saved, (list, tuple)) or not all(
        isinstance(g, Mapping) and isinstance(g.get("params"), (list, tuple)) for g in saved
    ):
        raise ValueError(f"param_groups must be a list of dicts with 'params', got {_shown(saved)}")
    for g in saved:
        names = g.get("param_names")
        if names is not None and not (
            isinstance(names, (list, tuple)) and len(names) == len(g["params"])
        ):
            raise ValueError(f"param_names must be a name for each parameter, got {_shown(names)}")
    counts = [[len(g["params"]) for g in some] for some in (groups, saved)]
    if len(counts[0]) != len(counts[1]):
        raise ValueError(
            f"the state dict has a different number of parameter groups: {len(counts[1])}, where "
            f"{owner} has {len(counts[0])}; build it with the groups of that run before loading"
        )
    if counts[0] != counts[1]:
        raise ValueError(
            f"the state dict's groups have {counts[1]} parameters, where {owner}'s have "
            f"{counts[0]}; build it with the groups of that run before loading"
        )
    ids = [i for g in saved for i in g["params"]]
    if not all(isinstance(i, (int, str)) for i in ids) or len(set(ids)) != len(ids):
        raise ValueError("params of the state dict's groups must be different numbers or names")
    unknown = [key for key in state if key not in ids]
    if unknown:
        raise ValueError(f"the state dict has state of unknown parameters: {_shown(unknown[:5])}")


def by_name(
    saved: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Bring a checkpoint's parameters in an optimizer's order, where both sides have names.

    Args:
        saved: Groups of the checkpoint.
        groups: Groups of the optimizer.

    Returns:
        The saved groups, with "params" in the optimizer's order.

    Raises:
        ValueError: If the names differ.
    """
    result = [dict(group) for group in saved]
    if not all(g.get("param_names") for g in (*saved, *groups) if len(g["params"])):
        return result
    theirs = [name for g in saved for name in g.get("param_names") or []]
    ids = dict(zip(theirs, (i for g in saved for i in g["params"]), strict=False))
    ours = [name for g in groups for name in g.get("param_names") or []]
    if len(ids) != len(theirs) or ids.keys() != set(ours):
        only = [sorted(map(str, a))[:3] for a in (ids.keys() - set(ours), set(ours) - ids.keys())]
        raise ValueError(
            f"the state dict and the optimizer have different parameters: only there {only[0]}, "
            f"only here {only[1]}; without 'param_names' they are taken by position"
        )
    for group, own in zip(result, groups, strict=True):
        names = own.get("param_names") or []
        group.update(params=[ids[name] for name in names], param_names=list(names))
    return result
