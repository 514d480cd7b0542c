"""Command line: ``data-prune report`` and ``select``; also ``python -m data_prune``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specgd_common.command_line import Parser, answer, parsed
from specgd_common.files import write_text

from .report.page import build_report
from .scale.streaming import select_parquet
from .score.table import ScoreTable
from .select.plan import METHODS


def _c_d(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def build_parser() -> Parser:
    """Return both commands and the options of a selection, which they share."""
    selection = Parser(add_help=False)
    selection.add_argument("scores", type=Path, help="Parquet file written by ScoreTable")
    selection.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    selection.add_argument(
        "-r", "--prune-ratio", type=float, default=0.5, help="fraction REMOVED, in [0, 1)"
    )
    selection.add_argument("--method", choices=METHODS, help="default: plausible")
    selection.add_argument("--by", help="column that ranks the examples (default: score)")
    selection.add_argument(
        "--c-d", type=_c_d, help="the paper's rule: a number, cifar10, cifar100, imagenet or auto"
    )
    selection.add_argument("--seed", type=int, default=0)
    selection.add_argument("--preset", choices=("paper",), help="the paper's rule")
    selection.add_argument(
        "--per-class", action=argparse.BooleanOptionalAction, help="every class its share"
    )
    selection.add_argument(
        "--ignore-nonfinite", action="store_true", help="accept a recording with NaN logits"
    )
    selection.add_argument("--json", action="store_true", help="settings as JSON on stdout")
    parser = Parser(prog="data-prune", description="Prune a data set by recorded scores.")
    parser.add_version()
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser(
        "report", parents=[selection], help="one HTML page about scores and selection"
    )
    report.add_argument("--title", default="Dataset pruning")
    select = commands.add_parser(
        "select", parents=[selection], help="the kept rows, Parquet to Parquet"
    )
    select.add_argument("--engine", choices=("local", "ray"), default="local")
    return parser


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Carry out one command and return what was done."""
    if os.path.lexists(args.output):
        raise FileExistsError(f"{args.output} exists and is not overwritten")
    names = ("method", "by", "c_d", "seed", "per_class", "preset", "ignore_nonfinite")
    options = {name: getattr(args, name) for name in names}
    if args.command == "select":
        return select_parquet(
            args.scores, args.output, args.prune_ratio, engine=args.engine, **options
        )
    table = ScoreTable.from_parquet(args.scores)
    write_text(args.output, build_report(table, args.prune_ratio, title=args.title, **options))
    options.pop("ignore_nonfinite")
    return dict(table.plan(args.prune_ratio, **options).settings or {})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if all went well, 2 for bad input, said in one line."""
    args = parsed(build_parser(), argv)

    def lines() -> list[str]:
        settings = run(args)
        if args.json:
            return [json.dumps(settings, indent=2)]
        kept, examples = settings["kept"], settings["examples"]
        return [f"{kept:,} of {examples:,} examples kept -> {args.output}"]

    return answer(lines)


if __name__ == "__main__":
    sys.exit(main())
