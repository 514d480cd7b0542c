"""Command line: ``warmstart inspect|uniform|perturb|fire|dash IN -o OUT``."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from specgd_common.command_line import answer, parsed, refuse

from .files.commands import run
from .files.options import parser
from .files.with_model import EntryError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 2 with one line on standard error otherwise."""
    args = parsed(parser(), argv)
    try:
        return answer(lambda: run(args))
    except EntryError as error:
        traceback.print_exception(error.__cause__)
        return refuse(error)


if __name__ == "__main__":
    sys.exit(main())
