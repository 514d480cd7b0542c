"""Command line: ``warmstart inspect|uniform|perturb|fire|dash IN -o OUT``."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence

from .files.commands import run
from .files.options import parser
from .files.with_model import EntryError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 2 with one line on standard error otherwise."""
    try:
        args = parser().parse_args(argv)
    except SystemExit:  # after the help, or one line of refusal
        _say([])
        raise
    try:
        lines = run(args)
    except EntryError as error:
        traceback.print_exception(error.__cause__)
        return _refuse(error)
    except KeyboardInterrupt:
        _refuse("interrupted")
        return 130
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _refuse(f"{where}{error.strerror or error}")
    except KeyError as error:
        return _refuse(error.args[0] if error.args else error)
    except (ValueError, TypeError, ImportError, RuntimeError, MemoryError) as error:
        return _refuse(str(error) or type(error).__name__)
    return _say(lines)


def _say(lines: Sequence[str]) -> int:
    """Print what a command says; a reader that has gone is no error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        for line in lines:
            print(_printable(line, keep="\n"))
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered must not fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        return _refuse(f"standard output: {error.strerror or error}")
    return 0


def _refuse(error: object) -> int:
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
    print(f"error: {_printable(' '.join(str(error).split()))}", file=sys.stderr)
    return 2


def _printable(text: str, keep: str = "") -> str:
    """Return a text in which nothing steers the terminal: names in files may be anything."""
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


if __name__ == "__main__":
    sys.exit(main())
