"""A torchrun script with plain DistributedDataParallel."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "muon_ddp.py"
LAUNCHER = Path(__file__).parents[1] / "ranks.py"


def test_example_trains_and_ranks_agree() -> None:
    """Two processes, started as a user starts them: loss falls, weights stay equal bit by bit."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc_per_node", "2", str(LAUNCHER), str(EXAMPLE)],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    # torch 2.9 lets gloo speak on the same channel, several ranks at a time.
    loss = re.search(r"^loss: (\S+) -> (\S+)$", done.stdout, re.MULTILINE)
    difference = re.search(r"^largest difference between ranks: (\S+)$", done.stdout, re.MULTILINE)
    assert loss, done.stdout
    assert difference, done.stdout
    assert float(loss[2]) < float(loss[1]) / 2
    assert float(difference[1]) == 0.0


@pytest.mark.parametrize("name", ["muon_ddp.py", "torchrun_fsdp2.py"])
def test_a_script_without_its_launcher_says_in_one_line_how_to_start_it(name: str) -> None:
    program = [sys.executable, "-W", "ignore", str(EXAMPLE.parent / name)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(rf"start it with torchrun .*\b{name}.*\n", done.stderr), done.stderr
