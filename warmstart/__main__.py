"""Command line: ``warmstart inspect|uniform|perturb|fire|dash|head IN -o OUT``, ``compare IN``."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from specgd_common.command_line import answer, parsed, refuse

from .files.commands import run
from .files.options import commands_of, parser
from .files.with_model import EntryError
from .judge.command import add_compare, run_compare


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 2 with one line on standard error otherwise."""
    every = parser()
    add_compare(commands_of(every))
    args = parsed(every, argv)
    try:
        return answer(lambda: run_compare(args) if args.command == "compare" else run(args))
    except EntryError as error:
        traceback.print_exception(error.__cause__)
        return refuse(error)


if __name__ == "__main__":
    sys.exit(main())
