"""Command line: ``python -m warmstart inspect|uniform|perturb|fire|dash IN -o OUT``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from .direction.undisturbed import GRAD_MODES
from .files.formats import INDEX, atomic, index_dimensions, read, read_whole, transform
from .files.state_dicts import (
    fire_state_dict,
    perturb_state_dict,
    shrink_state_dict,
    undo_state_dict,
    uniform_state_dict,
)
from .files.with_model import shrink_with_model
from .methods.perturb import PRESETS
from .shrink.report import FORMAT, ShrinkReport
from .targets.find import check_patterns
from .targets.state_targets import state_targets


def parser() -> argparse.ArgumentParser:
    """All options, with their defaults in the help."""
    p = argparse.ArgumentParser(
        prog="python -m warmstart",
        description="Shrink, perturb or reinitialize a checkpoint before training goes on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    commands = p.add_subparsers(dest="command", required=True)
    about = {
        "inspect": "list tensors, norms and what a shrink would touch",
        "uniform": "multiply every weight by one factor",
        "perturb": "shrink and perturb",
        "fire": "Frobenius-isometry reinitialization",
        "dash": "direction-aware shrinking with saved directions or with your own model",
    }
    for name, text in about.items():
        c = commands.add_parser(
            name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        c.add_argument("input", type=Path, metavar="IN", help=".safetensors, its index, or .pt")
        c.add_argument("--include", nargs="+", metavar="PATTERN", help="exactly these tensors")
        c.add_argument("--exclude", nargs="+", metavar="PATTERN", help="not these tensors")
        c.add_argument(
            "--transposed",
            nargs="+",
            metavar="PATTERN",
            help="weights stored (in, out), as GPT-2's",
        )
        c.add_argument("--key", help="where the weights lie in a .pt checkpoint")
        if name == "inspect":
            continue
        c.add_argument("-o", "--output", type=Path, metavar="OUT", help="same format as IN")
        c.add_argument("--force", action="store_true", help="replace OUT if it exists")
        c.add_argument("--dry-run", action="store_true", help="print the report, write nothing")
        c.add_argument(
            "--report", type=Path, metavar="R.JSON", help="write the report, with factors"
        )
        c.add_argument(
            "--undo", type=Path, metavar="R.JSON", help="divide by that report's factors instead"
        )
        if name != "fire":
            c.add_argument("--bias", choices=("vector", "skip"), default="vector")
    uniform, perturb = commands.choices["uniform"], commands.choices["perturb"]
    fire, dash = commands.choices["fire"], commands.choices["dash"]
    uniform.add_argument("--factor", type=float, default=0.3, help="in (0, 1]")
    perturb.add_argument("--preset", choices=tuple(PRESETS), default="dash")
    perturb.add_argument("--shrink", type=float, help="overrides the preset's factor")
    perturb.add_argument("--perturb", type=float, help="overrides the preset's factor on the noise")
    perturb.add_argument(
        "--fresh", type=Path, help="a fresh or the initial model (ash, interpolate)"
    )
    perturb.add_argument("--seed", type=int, default=0)
    fire.add_argument("--strength", type=float, default=1.0, help="in (0, 1]")
    dash.add_argument("--directions", type=Path, help="saved GradientDirection.state_dict()")
    dash.add_argument(
        "--entry", metavar="MODULE:FUNCTION", help="returns (model, batches[, loss_fn]); runs code"
    )
    dash.add_argument("--floor", type=_floor, default=0.3, help="in (0, 1], or auto with --entry")
    dash.add_argument(
        "--alpha", type=float, default=0.3, help="with --entry: newest batch's weight"
    )
    dash.add_argument("--tail", type=int, help="with --entry: only the last so many batches")
    dash.add_argument(
        "--grad-mode", choices=GRAD_MODES, default="eval", help="with --entry: mode of the pass"
    )
    dash.add_argument("--units", choices=("kernel", "filter", "row"), default="kernel")
    dash.add_argument("--zero-gradient", choices=("floor", "keep"), default="floor")
    return p


def _floor(text: str) -> float | str:
    return text if text == "auto" else float(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 2 with one line on standard error otherwise."""
    args = parser().parse_args(argv)
    sharded = args.input.name.endswith(INDEX)
    try:
        args.elsewhere = index_dimensions(args.input) if sharded and args.input.exists() else None
        if args.command == "inspect":
            transform(args.input, None, partial(_inspect, args=args), key=args.key)
        else:
            _change(args)
    except (ValueError, TypeError, KeyError, OSError, ImportError, UnpicklingError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"error: {text}", file=sys.stderr)
        return 2
    return 0


def _inspect(state: Mapping[str, Any], args: argparse.Namespace) -> tuple[Mapping[str, Any], None]:
    targets, skipped = state_targets(
        state,
        include=args.include,
        exclude=args.exclude,
        transposed=args.transposed,
        strict=False,
        elsewhere=args.elsewhere,
    )
    chosen = {n: t for t in targets for n in (t.name, *t.aliases)}
    reasons = {s.name: s.reason for s in skipped}
    for name, x in state.items():
        if not hasattr(x, "shape"):
            continue
        norm = f"{float(x.double().norm()):.4g}" if x.is_floating_point() else "-"
        t = chosen.get(name)
        what = reasons.get(name, "") if t is None else f"shrunk per {t.unit}"
        if t is not None and t.name != name:
            what += f" (tied to {t.name})"
        print(
            f"{name}  {tuple(x.shape)}  {str(x.dtype).removeprefix('torch.')}  |w| {norm}  {what}"
        )
    return state, None


def _change(args: argparse.Namespace) -> None:
    if args.output is None and not args.dry_run:
        raise ValueError("-o OUT is missing (or --dry-run)")
    if args.report is not None and args.report.exists() and not args.force:
        raise FileExistsError(f"{args.report} exists; --force replaces it")
    if args.elsewhere is not None:
        patterns = {k: getattr(args, k) for k in ("include", "exclude", "transposed")}
        check_patterns(list(args.elsewhere), **patterns)
    edit = _editor(args)
    reports = transform(
        args.input,
        None if args.dry_run else args.output,
        edit,
        key=args.key,
        force=args.force,
        note=partial(_provenance, args=args),
    )
    if args.undo:
        print(f"undone: {args.undo}")
        return
    # With a model, one call has shrunk all shards.
    report = reports[0] if getattr(args, "entry", None) else _merged(reports)
    report.applied = not args.dry_run
    print(report)
    if args.report is not None:
        with atomic(args.report) as temporary:
            report.to_json(temporary, factors=True)


def _editor(args: argparse.Namespace) -> Callable[[Mapping[str, Any]], tuple[Any, Any]]:
    """State dict of one file -> new state dict and report."""
    if args.undo:
        return partial(_undo, args=args)
    if not getattr(args, "entry", None):
        return partial(_edit, args=args)
    if args.directions is not None or args.transposed is not None:
        raise ValueError("--entry measures directions and knows the layers: leave out the others")
    if not args.input.exists():
        raise FileNotFoundError(f"{args.input} does not exist")
    names = ("floor", "alpha", "tail", "grad_mode", "units", "zero_gradient", "bias")
    options = {k: getattr(args, k) for k in (*names, "include", "exclude")}
    state = read_whole(args.input, args.key)
    new, report = shrink_with_model(state, args.entry, **options)
    return lambda part: (type(part)((k, new.get(k, v)) for k, v in part.items()), report)  # type: ignore[call-arg]


def _edit(
    state: Mapping[str, Any], args: argparse.Namespace
) -> tuple[Mapping[str, Any], ShrinkReport]:
    """The state dict of one file under the chosen command."""
    sharded = args.input.name.endswith(INDEX)
    selection = {
        "include": args.include,
        "exclude": args.exclude,
        "transposed": args.transposed,
        "strict": not sharded,
        "elsewhere": args.elsewhere,
    }
    if args.command == "fire":
        return fire_state_dict(state, args.strength, **selection)
    selection["bias"] = args.bias
    if args.command == "uniform":
        return uniform_state_dict(state, args.factor, **selection)
    if args.command == "perturb":
        return perturb_state_dict(
            state,
            args.preset,
            shrink=args.shrink,
            perturb=args.perturb,
            fresh=None if args.fresh is None else read(args.fresh).tensors,
            seed=args.seed,
            **selection,
        )
    if args.directions is None:
        raise ValueError(
            "dash needs --directions: torch.save(GradientDirection(...).state_dict(), FILE), or "
            "--entry module:function"
        )
    saved = _load_directions(args.directions)
    if sharded:  # a shard has some of the tensors
        saved = {
            **saved,
            "directions": {n: d for n, d in saved["directions"].items() if n in state},
        }
    return shrink_state_dict(
        state,
        saved,
        floor=args.floor,
        units=args.units,
        zero_gradient=args.zero_gradient,
        **selection,
    )


def _load_directions(path: Path) -> dict[str, Any]:
    checkpoint = read(path, "directions" if path.suffix != ".safetensors" else None)
    rest = checkpoint.rest[0] if checkpoint.rest else {}
    return {**rest, "directions": checkpoint.tensors}


def _undo(
    state: Mapping[str, Any], args: argparse.Namespace
) -> tuple[Mapping[str, Any], ShrinkReport | None]:
    report = json.loads(args.undo.read_text(encoding="utf-8"))
    if report.get("format") != FORMAT:
        raise ValueError(f"{args.undo} is not a report of this program")
    if report["method"].removesuffix("_shrink") != args.command:
        raise ValueError(f"{args.undo} reports {report['method']!r}, not {args.command!r}")
    if args.input.name.endswith(INDEX) and report.get("factors"):
        report["factors"] = {n: f for n, f in report["factors"].items() if n in state}
        if not report["factors"]:
            return state, None
    return undo_state_dict(state, report), None


def _provenance(report: ShrinkReport | None, args: argparse.Namespace) -> dict[str, str]:
    """What was done, kept in the file's metadata; an older entry would describe other weights."""
    if args.undo:
        done = {"method": "undo", "undone": args.command}
    elif report is None:
        return {}
    else:
        done = {"method": report.method, **report.to_dict()["settings"]}
    return {"warmstart": json.dumps(done)}


def _merged(reports: list[ShrinkReport]) -> ShrinkReport:
    """One report for all shards."""
    first = reports[0]
    for other in reports[1:]:
        first.rows += other.rows
        first.skipped += other.skipped
        if first.factors is not None and other.factors is not None:
            first.factors.update(other.factors)
    return first


if __name__ == "__main__":
    sys.exit(main())
