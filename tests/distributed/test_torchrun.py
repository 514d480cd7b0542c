"""The FSDP2 example, started as a user starts it."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "torchrun_fsdp2.py"
LAUNCHER = Path(__file__).parents[1] / "ranks.py"


def losses(ranks: int, *arguments: str) -> list[float]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc_per_node", str(ranks), str(LAUNCHER), str(EXAMPLE), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [float(x) for x in re.findall(r"\d+\.\d+", done.stdout)]


def test_example_saves_on_two_ranks_and_goes_on_with_one(tmp_path: Path) -> None:
    """The commands of its docstring: loss falls, and goes on falling from the checkpoint."""
    first, last, _ = losses(2, "--save", str(tmp_path / "checkpoint"))
    assert last < first / 3
    resumed, end, _ = losses(1, "--load", str(tmp_path / "checkpoint"))
    assert resumed < 1.5 * last
    assert end < resumed
