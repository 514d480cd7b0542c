"""How a command speaks: results on standard output, errors and warnings in one line each."""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """A parser whose refusals are one line, and which tells the version."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")

    def add_version(self) -> None:
        """Add ``--version``."""
        told = f"{self.prog} {version('torch-specgd')}"
        self.add_argument("--version", action="version", version=told)


def parsed(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments, or exit after the help or one line of refusal.

    Args:
        parser: Of the whole command.
        argv: Arguments; None takes the process's own.

    Raises:
        SystemExit: After ``--help`` and ``--version`` with 0, for what cannot be parsed with 2.
    """
    try:
        return parser.parse_args(argv)
    except SystemExit:
        say([])
        raise
    except BrokenPipeError:  # Python 3.10's argparse lets it through, later ones do not
        say([])
        raise SystemExit(0) from None


def answer(work: Callable[[], Sequence[str]]) -> int:
    """Do the work and print its lines.

    Args:
        work: Returns the lines; its warnings and errors become one line each.

    Returns:
        The exit status: 0, 2 for an error, 130 when interrupted.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            lines = work()
    except KeyboardInterrupt:
        refuse("interrupted")
        return 130
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return refuse(f"{where}{error.strerror or error}")
    except KeyError as error:
        return refuse(error.args[0] if error.args else error)
    except (ValueError, TypeError, ImportError, RuntimeError, MemoryError) as error:
        return refuse(str(error) or type(error).__name__)
    return say(lines)


def say(lines: Sequence[str]) -> int:
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
        return refuse(f"standard output: {error.strerror or error}")
    return 0


def refuse(error: object) -> int:
    """Print one line on standard error; return the exit status."""
    return _note("error", error)


def _show_warning(message: Warning | str, *_: Any) -> None:
    _note("warning", message)


def _note(kind: str, text: object) -> int:
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
    print(f"{kind}: {_printable(' '.join(str(text).split()))}", file=sys.stderr)
    return 2


def _printable(text: str, keep: str = "") -> str:
    """Return a text in which nothing steers the terminal: names in files may be anything."""
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)
