"""``warmstart compare``: warm starts side by side on the user's own data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from specgd_common.files import replacing

from ..files.commands import read_whole
from ..files.nested import names_in_file
from ..files.options import add_command, number
from ..files.read import FileError
from ..files.with_model import EntryError, call, raised_here
from ..files.write import make_folder
from .compare import Comparison, Run, compare
from .runs import ABOUT, METHODS

# What an entry's tuple holds, in this order; the last two may be left out.
_PARTS = ("model_fn", "old_data", "new_data", "test_data", "loss_fn")
_MORE = ("optimizer_fn",)
_ENTRY = (
    f"your function that returns ({', '.join(_PARTS[:3])}), with {_PARTS[3]} and {_PARTS[4]} "
    f"behind if you like, or a dictionary of these and {_MORE[0]}; its code runs"
)


def add_compare(commands: Any) -> None:
    """Add the command and its options."""
    c = add_command(
        commands,
        "compare",
        "train on from a checkpoint after each method, and say which one to use",
    )
    meanings = (f"  {name}: {ABOUT[name]}" for name in METHODS)
    c.epilog = "\n".join([c.epilog or "", "", "methods:", *meanings])
    c.add_argument("input", type=Path, metavar="IN", help="the converged model's checkpoint")
    c.add_argument("--key", help="where the weights lie in it, see inspect --help")
    c.add_argument("--entry", metavar="MODULE:FUNCTION", required=True, help=_ENTRY)
    c.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        default=list(METHODS),
        help="see below (default: all)",
    )
    c.add_argument(
        "--target", type=number, default=0.999, help="train accuracy at which a run is done"
    )
    c.add_argument("--max-epochs", type=int, default=30, help="epochs of a run at most")
    c.add_argument(
        "--seeds", type=int, nargs="+", metavar="N", default=[0, 1],
        help="one run for each method and seed (default: 0 1)",
    )  # fmt: skip
    c.add_argument(
        "--margin", type=number, default=0.5, help="percent points that you do not care about"
    )
    c.add_argument("--report", type=Path, metavar="R.JSON", help="also write every run as JSON")
    c.add_argument("--force", action="store_true", help="replace R.JSON if it exists")


def run_compare(args: argparse.Namespace) -> list[str]:
    """Compare as asked; return what is printed. Finished runs go to standard error."""
    if args.report is None:
        return [str(_compared(args))]
    if args.report.exists() and not args.force:
        raise FileError(args.report, "exists; --force replaces it")
    make_folder(args.report)
    # Opened before hours of training, not behind them.
    with replacing(args.report) as file:
        result = _compared(args)
        file.write((result.to_json() + "\n").encode())
    return [str(result), f"wrote {args.report}"]


def _compared(args: argparse.Namespace) -> Comparison:
    parts = _parts(args.entry)
    total = len(args.methods) * len(args.seeds)
    done: list[Run] = []

    def progress(run: Run) -> None:
        done.append(run)
        print(
            f"{len(done)} of {total}: {run.method}, seed {run.seed}: {run.accuracy:.2f} % in "
            f"{run.steps} steps",
            file=sys.stderr,
        )

    options = {k: getattr(args, k) for k in ("target", "max_epochs", "seeds", "margin", "methods")}
    model_fn, old, new = (parts.pop(k) for k in _PARTS[:3])
    try:
        state = _fitting(read_whole(args.input, args.key), model_fn(), args.entry)
        return compare(model_fn, state, old, new, progress=progress, **parts, **options)
    except Exception as error:
        if raised_here(error):
            raise
        raise EntryError(f"the parts of --entry {args.entry} failed") from error


def _fitting(state: Mapping[str, Any], model: nn.Module, entry: str) -> dict[str, Any]:
    """Return a checkpoint by the names of a model.

    Raises:
        ValueError: If it does not fit.
    """
    in_file = names_in_file(state, model.state_dict())
    own = {n: state[f] for n, f in in_file.items() if f in state}
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint does not fit the model of {entry}: {error}") from error
    return own


def _parts(entry: str) -> dict[str, Any]:
    """Return what the user's function gives, by the names of ``compare``'s arguments.

    Raises:
        ValueError: If it returns something else.
    """
    built = call(entry)
    known = {*_PARTS, *_MORE}
    parts: dict[str, Any] = {}
    if isinstance(built, tuple) and 3 <= len(built) <= len(_PARTS):
        parts = dict(zip(_PARTS, built, strict=False))
    elif isinstance(built, Mapping) and set(_PARTS[:3]) <= set(built) <= known:
        parts = dict(built)
    if not callable(parts.get("model_fn")):
        raise ValueError(
            f"{entry} must return ({', '.join(_PARTS[:3])}[, {_PARTS[3]}[, {_PARTS[4]}]]) or a "
            f"dictionary of these and {_MORE[0]}, got {type(built).__name__}; model_fn() must "
            "build a model"
        )
    return parts
