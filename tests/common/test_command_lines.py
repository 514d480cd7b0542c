"""Both commands say which release they are of; the wheel's test asks the installed scripts."""

import subprocess
import sys
from importlib import import_module
from importlib.metadata import version

import pytest

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
