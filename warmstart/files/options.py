"""The command line's options."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from specgd_common.command_line import Parser

from ..direction.undisturbed import GRAD_MODES
from ..methods.perturb import PRESETS

ABOUT = {
    "inspect": "list tensors, norms and what a shrink would touch",
    "uniform": "multiply every weight by one factor",
    "perturb": "shrink every weight and add noise",
    "fire": "replace every matrix by its nearest isometry (Frobenius-isometry reinitialization)",
    "dash": "direction-aware shrinking with saved directions or with your own model",
    "head": "draw the output layers anew and keep the rest",
}


EXAMPLES = {
    "inspect": "inspect model.safetensors --json",
    "uniform": "uniform model.pt -o shrunk.pt --factor 0.3 --report report.json",
    "perturb": "perturb model.pt -o noisy.pt --preset ash --fresh new.pt --seed 0",
    "fire": "fire model.safetensors -o isometric.safetensors",
    "dash": "dash model.pt -o shrunk.pt --entry my_project:make --report report.json",
    "head": "head model.pt -o new_head.pt --layers classifier",
    "compare": "compare model.pt --entry my_project:parts --methods none dash uniform",
}
UNDO = "uniform shrunk.pt -o back.pt --undo report.json"
# What the presets of shrink and perturb mean.
_PRESETS = "; ".join(
    f"{name}: {p.shrink:g} w + {p.perturb:g} {p.noise}" for name, p in PRESETS.items()
)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help that names a default where it is a value; others are told in words."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.help is None or "default" in action.help
        nothing = any(action.default is x for x in (None, False, argparse.SUPPRESS))
        plain = nothing or not action.option_strings
        plain = plain or told
        return action.help if plain else f"{action.help} (default: {action.default})"


def parser() -> Parser:
    """Return all options, with their defaults in the help."""
    p = Parser(
        prog="warmstart",
        description="Shrink, perturb or reinitialize a checkpoint before training goes on.",
        formatter_class=_Help,
        epilog="\n".join(["examples:", *(f"  %(prog)s {e}" for e in (*EXAMPLES.values(), UNDO))]),
    )
    p.add_version()
    commands = p.add_subparsers(dest="command", required=True)
    for name, text in ABOUT.items():
        c = add_command(commands, name, text)
        _add_selection(c)
        if name == "head":  # which has --layers
            c.set_defaults(include=None, exclude=None)
        else:
            _add_patterns(c)
        if name == "inspect":
            c.add_argument("--json", action="store_true", help="print JSON, with totals")
        else:
            _add_output(c)
        if name not in ("inspect", "fire", "head"):
            c.add_argument(
                "--bias",
                choices=("vector", "skip"),
                default="vector",
                help="shrink a bias as one unit, or leave biases alone",
            )
    uniform, perturb = commands.choices["uniform"], commands.choices["perturb"]
    uniform.add_argument(
        "--factor", type=number, default=0.3, help="what weights are multiplied by, in (0, 1]"
    )
    perturb.add_argument("--preset", choices=tuple(PRESETS), default="dash", help=_PRESETS)
    perturb.add_argument(
        "--shrink", type=number, help="factor of the weights (default: the preset's)"
    )
    perturb.add_argument(
        "--perturb", type=number, help="factor of the noise (default: the preset's)"
    )
    perturb.add_argument(
        "--fresh",
        type=Path,
        metavar="FILE",
        help="a newly built model's weights (ash) or the initial ones (interpolate); the other "
        "presets need none",
    )
    perturb.add_argument("--seed", type=int, default=0, help="of the noise")
    commands.choices["fire"].add_argument(
        "--strength",
        type=number,
        default=1.0,
        help="share of the isometry in the new weight, in (0, 1]",
    )
    commands.choices["fire"].add_argument(
        "--heads",
        type=int,
        metavar="N",
        help="attention heads, for layers that store them one after the other (default: what the "
        "config.json beside IN says)",
    )
    _add_head(commands.choices["head"])
    _add_dash(commands.choices["dash"])
    return p


def commands_of(p: Parser) -> Any:
    """Return the object that holds a parser's commands."""
    return next(a for a in p._actions if isinstance(a, argparse._SubParsersAction))


def add_command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    """Add one command with its example."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example:\n  warmstart {EXAMPLES[name]}",
        formatter_class=_Help,
    )
    return command


def _add_selection(c: argparse.ArgumentParser) -> None:
    c.add_argument(
        "input",
        type=Path,
        metavar="IN",
        help="checkpoint: .safetensors, *.safetensors.index.json, .pt, .pth, .bin or .ckpt",
    )
    c.add_argument(
        "--transposed",
        nargs="+",
        metavar="PATTERN",
        help="weights stored (in, out), as GPT-2's (default: told by the biases beside them)",
    )
    c.add_argument(
        "--key",
        help="where the weights lie in a .pt checkpoint: ema, or train.model; keys may have dots "
        "of their own (default: under the usual names, or wherever the only ones lie)",
    )


def _add_patterns(c: argparse.ArgumentParser) -> None:
    c.add_argument(
        "--include",
        nargs="+",
        metavar="PATTERN",
        help='exactly these tensors, "fc*.weight" say (default: weights of layers and their '
        "biases; inspect shows which)",
    )
    c.add_argument(
        "--exclude", nargs="+", metavar="PATTERN", help="not these tensors (default: none)"
    )


def _add_output(c: argparse.ArgumentParser) -> None:
    c.add_argument(
        "-o", "--output", type=Path, metavar="OUT", help="file to write, same format as IN"
    )
    c.add_argument("--force", action="store_true", help="replace OUT and R.JSON if they exist")
    c.add_argument("--dry-run", action="store_true", help="print the report, write no OUT")
    c.add_argument(
        "--report",
        type=Path,
        metavar="R.JSON",
        help="also write the report as JSON, with the factors that --undo needs (default: it is "
        "only printed)",
    )
    c.add_argument(
        "--undo", type=Path, metavar="R.JSON", help="divide by that report's factors instead"
    )
    c.add_argument(
        "--verify",
        type=Path,
        metavar="R.JSON",
        help="only check that OUT is IN as that report tells, tensor by tensor",
    )
    c.add_argument(
        "--along",
        nargs="+",
        metavar="KEY",
        help="copies of the weights in IN that go along (default: none)",
    )
    c.add_argument(
        "--reset-optimizer", action="store_true", help="empty the optimizer states in IN"
    )


def _add_head(head: argparse.ArgumentParser) -> None:
    head.add_argument(
        "--layers",
        nargs="+",
        metavar="NAME",
        help="modules to draw anew; with --entry also a number, so many of the last (default: "
        "those that are called as heads are, lm_head or classifier; with --entry the last one)",
    )
    head.add_argument(
        "--fresh",
        type=Path,
        metavar="FILE",
        help="a newly built model's weights (default: torch's initialization of linear layers and "
        "convolutions)",
    )
    _add_entry(head)
    head.add_argument("--seed", type=int, default=0, help="of the draw")


def _add_entry(c: argparse.ArgumentParser) -> None:
    c.add_argument(
        "--entry",
        metavar="MODULE:FUNCTION",
        help="your function that returns (model, batches) or (model, batches, loss_fn); its code "
        "runs",
    )


def _add_dash(dash: argparse.ArgumentParser) -> None:
    dash.add_argument(
        "--directions", type=Path, metavar="FILE", help="saved GradientDirection.state_dict()"
    )
    _add_entry(dash)
    dash.add_argument(
        "--floor",
        type=_floor,
        default=0.3,
        help="smallest factor of a unit, in (0, 1]; auto, with --entry, looks at normalization "
        "and depth",
    )
    dash.add_argument(
        "--alpha",
        type=number,
        default=0.3,
        help="with --entry: weight of the newest batch in the moving average, in (0, 1]",
    )
    dash.add_argument(
        "--tail", type=int, help="with --entry: only the last so many batches (default: all)"
    )
    dash.add_argument(
        "--grad-mode",
        choices=GRAD_MODES,
        default="eval",
        help="with --entry: mode of the model during the pass",
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
        help="with --entry: renew BatchNorm statistics on N batches (default: 0, they stay)",
    )


def changed_from_defaults(args: argparse.Namespace, but: set[str]) -> list[str]:
    """Return the options of a command that were given other values than their defaults."""
    actions = commands_of(parser()).choices[args.command]._actions
    return [
        a.option_strings[-1]
        for a in actions
        if a.option_strings and a.dest not in {*but, "help"} and getattr(args, a.dest) != a.default
    ]


def number(text: str) -> float:
    """Return a finite number, for argparse."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text}")
    return value


def _floor(text: str) -> float | str:
    return text if text == "auto" else number(text)
