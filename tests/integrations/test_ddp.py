"""A torchrun script with plain DistributedDataParallel."""

import subprocess
import sys
from pathlib import Path

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
    # torch 2.9 lets gloo speak on the same channel.
    loss, difference = (x for x in done.stdout.splitlines() if not x.startswith("[Gloo]"))
    first, last = map(float, loss.removeprefix("loss: ").split(" -> "))
    assert last < first / 2
    assert float(difference.removeprefix("largest difference between ranks: ")) == 0.0
