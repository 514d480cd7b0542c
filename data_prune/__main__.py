"""Command line: ``data-prune report``, ``select`` and ``wrong``; also ``python -m data_prune``."""

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
from specgd_common.optional import needed

from .report.page import build_report
from .report.wrong import wrong_labels
from .scale.streaming import select_parquet
from .score.keys import read_keys
from .score.parquet import read_column
from .score.table import ScoreTable
from .select.plan import METHODS


def _c_d(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def build_parser() -> Parser:
    """Return the commands; what they share is said once."""
    files = Parser(add_help=False)
    files.add_argument("scores", type=Path, help="Parquet file written by ScoreTable")
    files.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    files.add_argument("--json", action="store_true", help="settings as JSON on stdout")
    selection = Parser(add_help=False)
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
    selection.add_argument("--min-per-class", type=int, default=1, help="smallest share of a class")
    selection.add_argument("--keep", type=Path, help="list of keys that stay: .txt, .csv, .npy")
    selection.add_argument("--drop", type=Path, help="list of keys that go")
    selection.add_argument("--groups", help="column of what stays together, such as a patient")
    selection.add_argument("--classes", help="column whose values get a share each, not the label")
    selection.add_argument("--weights", help="column that multiplies the weight of the draw")
    selection.add_argument(
        "--ignore-nonfinite", action="store_true", help="accept a recording with NaN logits"
    )
    parser = Parser(prog="data-prune", description="Prune a data set by recorded scores.")
    parser.add_version()
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser(
        "report", parents=[files, selection], help="one HTML page about scores and selection"
    )
    report.add_argument("--title", default="Dataset pruning")
    report.add_argument(
        "--data", type=Path, help="folder of datasets.Dataset.save_to_disk, whose images are shown"
    )
    select = commands.add_parser(
        "select",
        parents=[files, selection],
        help="the kept rows, Parquet to Parquet; with -o .txt, .csv or .npy a list of their keys",
    )
    select.add_argument("--dropped", type=Path, help="list of the dropped keys to write as well")
    select.add_argument("--engine", choices=("local", "ray"), default="local")
    wrong = commands.add_parser(
        "wrong", parents=[files], help="labels that are likely wrong, to .csv, .txt or .npy"
    )
    wrong.add_argument(
        "--count", type=int, help="how many (default: those that a selection sets aside)"
    )
    return parser


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Carry out one command and return what was done."""
    if os.path.lexists(args.output):
        raise FileExistsError(f"{args.output} exists and is not overwritten")
    if args.command == "wrong":
        found = wrong_labels(ScoreTable.from_parquet(args.scores), args.count)
        found.write(args.output)
        return {"wrong": len(found), "merely_hard": found.merely_hard}
    names = (
        *("method", "by", "c_d", "seed", "per_class", "min_per_class", "preset"),
        *("groups", "classes", "weights", "ignore_nonfinite"),
    )
    options = {name: getattr(args, name) for name in names}
    for name in ("keep", "drop"):
        if getattr(args, name) is not None:
            options[name] = read_keys(getattr(args, name))
    if args.command == "select":
        more = {"engine": args.engine, "dropped": args.dropped}
        return select_parquet(args.scores, args.output, args.prune_ratio, **more, **options)
    for name in ("groups", "classes", "weights"):
        if options[name] is not None:
            options[name] = read_column(args.scores, options[name])
    table = ScoreTable.from_parquet(args.scores)
    data = None if args.data is None else needed("datasets", "data").load_from_disk(args.data)
    page = build_report(table, args.prune_ratio, title=args.title, data=data, **options)
    write_text(args.output, page)
    options.pop("ignore_nonfinite")
    return dict(table.plan(args.prune_ratio, **options).settings or {})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if all went well, 2 for bad input, said in one line."""
    args = parsed(build_parser(), argv)

    def lines() -> list[str]:
        settings = run(args)
        if args.json:
            return [json.dumps(settings, indent=2)]
        if args.command == "wrong":
            why = " (improbable labels still move: hard, not wrong)" * settings["merely_hard"]
            said = f"{settings['wrong']:,} labels listed{why}"
        else:
            said = f"{settings['kept']:,} of {settings['examples']:,} examples kept"
        written = (args.output, getattr(args, "dropped", None))
        return [said, *(f"wrote {path}" for path in written if path is not None)]

    return answer(lines)


if __name__ == "__main__":
    sys.exit(main())
