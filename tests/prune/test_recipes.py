"""The recipes of examples/ on one and two processes: resumed anywhere, schedules that end at zero.

Each runs in processes of its own: frameworks keep state for the whole of one.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("recipe_runs.py")
# Batches of a whole epoch and of a pruned one on a single process, by recipe.
STEPS = {"ddp": (8, 4), "accelerate": (4, 2), "trainer": (16, 8), "lightning": (4, 2)}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("recipe", STEPS)
def test_recipe(tmp_path, recipe, processes):
    """Every example once an epoch over all ranks, half of them after it, and the last rate is 0."""
    launch = [sys.executable]
    if processes > 1 and recipe != "lightning":
        port = f"--master_port={free_port()}"
        launch += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", port]
    done = subprocess.run(
        [*launch, str(SCRIPT), recipe, str(tmp_path)],
        env={**os.environ, "DEVICES": str(processes), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert len(results) == processes
    whole, pruned = (n // processes for n in STEPS[recipe])
    for result in results:
        assert result["same"], "a resumed run ends otherwise than one that nobody has stopped"
        assert result["last"] == pytest.approx(0.0, abs=1e-12)
        assert result["steps"] == 5 * whole + 2 * pruned
        assert result["kept"] == 128
        # Lightning stops before it has asked whether the last epoch has one more example.
        assert result["epoch"] == (6 if recipe == "lightning" else 7)
        coverage = result["coverage"]
        assert coverage["seen_in_every_epoch"] == 256
        assert coverage["missing_per_epoch"] == [0] * 5
        assert coverage["duplicates"] == 0
