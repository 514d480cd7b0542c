"""The command line with the user's model: a function builds it, a file fills and empties it."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..direction.norms import batch_norms
from ..direction.undisturbed import Loss
from ..methods.dash import dash_shrink
from ..methods.head_reset import head_reset
from ..shrink.report import ShrinkReport
from ..targets.names import Names
from ..targets.parameters import memory_key
from .nested import names_in_file

_MOMENTS = ("mean", "var")


class EntryError(Exception):
    """The user's own code failed; its traceback is the cause's."""


def build(entry: str) -> tuple[nn.Module, Iterable[Any], Loss]:
    """Call ``module:function``, which returns a model, batches and (optionally) a loss function.

    Raises:
        ValueError: If the text names no function, or it returns something else.
        EntryError: If the function fails.
    """
    built = call(entry)
    if not isinstance(built, tuple) or len(built) not in (2, 3):
        raise ValueError(
            f"{entry} must return (model, batches) or (model, batches, loss_fn), "
            f"got {type(built).__name__}"
        )
    model, batches, loss_fn = (*built, cross_entropy)[:3]
    if not isinstance(model, nn.Module):
        raise ValueError(f"{entry} returned a {type(model).__name__} where a model is expected")
    return model, batches, loss_fn


def call(entry: str) -> Any:
    """Return what ``module:function`` returns.

    Raises:
        ValueError: If the text names no function.
        EntryError: If the function fails.
    """
    module, _, name = entry.partition(":")
    if not module or not name:
        raise ValueError(f"--entry takes module:function, got {entry!r}")
    try:
        holder = importlib.import_module(module)
        function = getattr(holder, name, None)
        built = function() if callable(function) else None
    except ModuleNotFoundError as error:
        if error.name is not None and module.startswith(error.name):
            raise ValueError(f"--entry {entry}: {error}; is its folder on PYTHONPATH?") from None
        raise EntryError(f"--entry {entry} failed") from error
    except Exception as error:
        raise EntryError(f"--entry {entry} failed") from error
    if not callable(function):
        raise ValueError(f"{module} has no function {name!r}")
    return built


def change_with_model(
    state: Mapping[str, Any], entry: str, command: str, **options: Any
) -> tuple[dict[str, Tensor], ShrinkReport]:
    """Run ``dash_shrink`` or ``head_reset`` on a checkpoint; return changed tensors and report.

    Args:
        state: All tensors of the checkpoint; not changed.
        entry: See ``build``.
        command: ``"dash"`` or ``"head"``, which draws from the entry's freshly built model.
        **options: Of the function.

    Raises:
        ValueError: If the checkpoint does not fit the model.
    """
    model, batches, loss_fn = build(entry)
    fresh = {n: x.clone() for n, x in model.state_dict().items()} if command == "head" else {}
    told, own = Names({n: tuple(x.shape) for n, x in _tensors(state).items()}), model.state_dict()
    in_file = names_in_file(state, own)
    # Buffers that older versions of a library saved, such as position_ids.
    legacy = [
        n
        for n in set(state) - set(in_file.values())
        if n in told.shapes and told.told(n).role == "buffer"
    ]
    back = {v: k for k, v in in_file.items()}
    try:
        model.load_state_dict({back.get(n, n): x for n, x in state.items() if n not in legacy})
    except RuntimeError as error:
        raise ValueError(f"the checkpoint does not fit the model of {entry}: {error}") from error
    try:
        if command == "head":
            report = head_reset(model, fresh=fresh, **options)
        else:
            report = dash_shrink(model, batches, loss_fn, **options)
    except Exception as error:
        if raised_here(error):
            raise
        raise EntryError(f"the model of --entry {entry} failed on its batches") from error
    # The state dicts' functions name their reports so, and --undo looks for this name.
    report.method = command
    new = _renamed(report, model.state_dict(), state, in_file)
    if options.get("recalibrate_norm"):
        values = model.state_dict()
        statistics = [f"{n}.running_{x}".lstrip(".") for n in batch_norms(model) for x in _MOMENTS]
        new.update({in_file[s]: values[s].to(state[in_file[s]].dtype) for s in statistics})
        report.notes.append("running statistics were renewed; an undo leaves them so")
    if any(k != v for k, v in in_file.items()):
        report.notes.append(
            "the file's names and the model's differ by a prefix, which was followed"
        )
    if legacy:
        report.notes.append(
            f"buffers that the model does not have: {', '.join(sorted(legacy)[:4])}"
        )
    return new, report


def _renamed(
    report: ShrinkReport,
    values: Mapping[str, Tensor],
    state: Mapping[str, Any],
    in_file: Mapping[str, str],
) -> dict[str, Tensor]:
    """Give a report the file's names; return the new values by them, in the file's dtypes."""
    new: dict[str, Tensor] = {}
    cast: dict[object, Tensor] = {}
    factors, report.factors = report.factors, None if report.factors is None else {}
    for row in report.rows:
        names = (row.name, *row.aliases)
        for name in names:
            saved = state.get(in_file.get(name, name))
            if saved is not None:
                # Tied tensors stay tied, also where the file has another dtype than the model.
                key = (memory_key(values[name]), saved.dtype)
                new[in_file[name]] = cast.setdefault(key, values[name].to(saved.dtype))
                # A file may hold tied tensors twice; each of them must be found by --undo.
                if factors is not None and report.factors is not None:
                    report.factors[in_file[name]] = factors[row.name]
        row.name, *aliases = (in_file.get(n, n) for n in names)
        row.aliases = tuple(aliases)
    return new


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {n: x for n, x in state.items() if isinstance(x, Tensor)}


def raised_here(error: BaseException) -> bool:
    """Say whether an error was raised by this part itself, and not by the user's code or torch."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return Path(frame.f_code.co_filename).is_relative_to(Path(__file__).parents[1])
