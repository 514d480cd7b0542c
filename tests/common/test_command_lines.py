"""Both commands say which release they are of; the wheel's test asks the installed scripts."""

import subprocess
import sys
import warnings
from importlib import import_module
from importlib.metadata import version

import pytest

from specgd_common.command_line import answer

COMMANDS = ("data-prune", "warmstart")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_tells_its_version(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What a bug report needs: the command's name as typed and the release."""
    main = import_module(f"{command.replace('-', '_')}.__main__").main
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"{command} {version('torch-specgd')}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_module_runs_as_its_command(command: str) -> None:
    """`python -m` is the same program, for those whose PATH lacks the scripts."""
    call = [sys.executable, "-m", command.replace("-", "_"), "--help"]
    shown = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    assert shown.startswith(f"usage: {command} ")


@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_parsed_is_one_line(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log shows the reason, not half a page of usage."""
    with pytest.raises(SystemExit) as done:
        import_module(f"{command.replace('-', '_')}.__main__").main(["--no-such-option"])
    assert done.value.code == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith("error: ")


def test_warnings_errors_and_results_go_their_own_ways(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Results can be piped; what went wrong is one line, and cannot steer a terminal."""

    def work() -> list[str]:
        warnings.warn("two\nlines", stacklevel=1)
        return ["kept"]

    def fail() -> list[str]:
        raise ValueError("a name \x1b[2J\nwith more")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert answer(work) == 0
    assert capsys.readouterr() == ("kept\n", "warning: two lines\n")
    assert answer(fail) == 2
    assert capsys.readouterr() == ("", "error: a name \\x1b[2J with more\n")
