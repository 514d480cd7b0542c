"""The command line's options."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from specgd_common.command_line import Parser

from ..direction.undisturbed import GRAD_MODES
from ..methods.perturb import PRESETS

ABOUT = {
    "inspect": "list tensors, norms and what a shrink would touch",
    "uniform": "multiply every weight by one factor",
    "perturb": "shrink and perturb",
    "fire": "Frobenius-isometry reinitialization",
    "dash": "direction-aware shrinking with saved directions or with your own model",
}


EXAMPLES = {
    "inspect": "inspect model.safetensors --json",
    "uniform": "uniform model.pt -o shrunk.pt --factor 0.3 --report report.json",
    "perturb": "perturb model.pt -o noisy.pt --preset ash --fresh new.pt --seed 0",
    "fire": "fire model.safetensors -o isometric.safetensors",
    "dash": "dash model.pt -o shrunk.pt --entry my_project:make --report report.json",
}
# What the presets of shrink and perturb mean.
_PRESETS = "; ".join(
    f"{name}: {p.shrink:g} w + {p.perturb:g} {p.noise}" for name, p in PRESETS.items()
)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help that names a default where it is a value; others are told in words."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default in (None, False, argparse.SUPPRESS) or not action.option_strings
        return action.help if plain else f"{action.help} (default: {action.default})"


def parser() -> Parser:
    """Return all options, with their defaults in the help."""
    p = Parser(
        prog="warmstart",
        description="Shrink, perturb or reinitialize a checkpoint before training goes on.",
        formatter_class=_Help,
        epilog="\n".join(["examples:", *(f"  %(prog)s {e}" for e in EXAMPLES.values())]),
    )
    p.add_version()
    commands = p.add_subparsers(dest="command", required=True)
    for name, text in ABOUT.items():
        c = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example:\n  {p.prog} {EXAMPLES[name]}",
            formatter_class=_Help,
        )
        _add_selection(c)
        if name == "inspect":
            c.add_argument("--json", action="store_true", help="print JSON, with totals")
        else:
            _add_output(c)
        if name not in ("inspect", "fire"):
            c.add_argument(
                "--bias",
                choices=("vector", "skip"),
                default="vector",
                help="shrink a bias as one unit, or leave biases alone",
            )
    uniform, perturb = commands.choices["uniform"], commands.choices["perturb"]
    uniform.add_argument("--factor", type=_number, default=0.3, help="in (0, 1]")
    perturb.add_argument("--preset", choices=tuple(PRESETS), default="dash", help=_PRESETS)
    perturb.add_argument("--shrink", type=_number, help="overrides the preset's factor")
    perturb.add_argument(
        "--perturb", type=_number, help="overrides the preset's factor on the noise"
    )
    perturb.add_argument(
        "--fresh", type=Path, help="a fresh or the initial model (ash, interpolate)"
    )
    perturb.add_argument("--seed", type=int, default=0, help="of the noise")
    commands.choices["fire"].add_argument("--strength", type=_number, default=1.0, help="in (0, 1]")
    _add_dash(commands.choices["dash"])
    return p


def _add_selection(c: argparse.ArgumentParser) -> None:
    c.add_argument("input", type=Path, metavar="IN", help=".safetensors, its index, or .pt")
    c.add_argument("--include", nargs="+", metavar="PATTERN", help="exactly these tensors")
    c.add_argument("--exclude", nargs="+", metavar="PATTERN", help="not these tensors")
    c.add_argument(
        "--transposed", nargs="+", metavar="PATTERN", help="weights stored (in, out), as GPT-2's"
    )
    c.add_argument("--key", help="where the weights lie in a .pt checkpoint: ema, or train.model")


def _add_output(c: argparse.ArgumentParser) -> None:
    c.add_argument("-o", "--output", type=Path, metavar="OUT", help="same format as IN")
    c.add_argument("--force", action="store_true", help="replace OUT if it exists")
    c.add_argument("--dry-run", action="store_true", help="print the report, write no OUT")
    c.add_argument("--report", type=Path, metavar="R.JSON", help="write the report, with factors")
    c.add_argument(
        "--undo", type=Path, metavar="R.JSON", help="divide by that report's factors instead"
    )
    c.add_argument(
        "--verify",
        type=Path,
        metavar="R.JSON",
        help="only check that OUT is IN times that report's factors",
    )
    c.add_argument(
        "--along", nargs="+", metavar="KEY", help="copies of the weights in IN that go along"
    )
    c.add_argument(
        "--reset-optimizer", action="store_true", help="empty the optimizer states in IN"
    )


def _add_dash(dash: argparse.ArgumentParser) -> None:
    dash.add_argument("--directions", type=Path, help="saved GradientDirection.state_dict()")
    dash.add_argument(
        "--entry", metavar="MODULE:FUNCTION", help="returns (model, batches[, loss_fn]); runs code"
    )
    dash.add_argument("--floor", type=_floor, default=0.3, help="in (0, 1], or auto with --entry")
    dash.add_argument(
        "--alpha", type=_number, default=0.3, help="with --entry: newest batch's weight"
    )
    dash.add_argument("--tail", type=int, help="with --entry: only the last so many batches")
    dash.add_argument(
        "--grad-mode", choices=GRAD_MODES, default="eval", help="with --entry: mode of the pass"
    )
    dash.add_argument(
        "--units",
        choices=("kernel", "filter", "row"),
        default="kernel",
        help="what has one factor: a convolution's (output, input) kernel, its filter, or a row",
    )
    dash.add_argument(
        "--zero-gradient",
        choices=("floor", "keep"),
        default="floor",
        help="what units without any gradient get: the floor, or their old values",
    )
    dash.add_argument(
        "--lora",
        choices=("factor", "product"),
        default="factor",
        help="with --entry: judge rows of an adapter's B, or of the merged B A",
    )
    dash.add_argument(
        "--reliability",
        action="store_true",
        help="with --entry: report how well even and odd batches agree",
    )
    dash.add_argument(
        "--recalibrate-norm",
        type=int,
        default=0,
        metavar="N",
        help="with --entry: renew BatchNorm statistics on N batches",
    )


def changed_from_defaults(args: argparse.Namespace, but: set[str]) -> list[str]:
    """Return the options of a command that were given other values than their defaults."""
    p = parser()
    commands = next(a for a in p._actions if isinstance(a, argparse._SubParsersAction))
    actions = commands.choices[args.command]._actions
    return [
        a.option_strings[-1]
        for a in actions
        if a.option_strings and a.dest not in {*but, "help"} and getattr(args, a.dest) != a.default
    ]


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text}")
    return value


def _floor(text: str) -> float | str:
    return text if text == "auto" else _number(text)
