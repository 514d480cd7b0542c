"""What works where only torch and numpy are installed, and what an error says where more is needed.

Each test blocks the optional libraries in a process of its own.
"""

import subprocess
import sys

BLOCK = """
import sys
for name in ("datasets", "pyarrow", "tqdm", "pandas", "matplotlib", "ray"):
    sys.modules[name] = None
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCK + code],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_recording_selecting_and_loading_need_torch_and_numpy_alone():
    """A laptop without pyarrow scores, prunes, resumes and keeps storage all the same."""
    code = """
import tempfile
import torch
from torch.utils.data import DataLoader, TensorDataset
from data_prune import DualScoreSampler, DualTracker, KeyedTracker, ScoreTable, beats_random
data = TensorDataset(torch.randn(20, 3), torch.arange(20) % 2)
loader = DualScoreSampler.wrap(
    DataLoader(data, 5, shuffle=True), 0.5, score_epochs=2, window=2,
    tracker_options={"peers": ("el2n", "aum")},
)
for _ in range(3):
    for x, y in loader:
        loader.record(x[:, :2], y)
state = loader.state_dict()
loader.load_state_dict(state)
for method in ("beta", "weighted", "top", "ccs", "random"):
    assert len(loader.table.select(0.5, method=method)) == 10
assert len(loader.table.select(0.5, c_d="auto", per_class=True)) == 10
beats_random(lambda kept, held, seed: float(seed), loader.table, 0.5, repeats=2)
with tempfile.TemporaryDirectory() as folder:
    tracker = DualTracker(4, epochs=2, window=2, storage=folder + "/s")
    tracker.update_probability([0, 1, 2, 3], [0.1, 0.2, 0.3, 0.4])
    tracker.end_epoch()
    del tracker
keyed = KeyedTracker(epochs=2, window=2)
keyed.update_probability(["a", "b"], [0.1, 0.2])
keyed.end_epoch()
print(len(loader))
"""
    assert run(code) == "2"


CALLS = {
    "table.to_parquet('t.parquet')": ("pyarrow", "data"),
    "ScoreTable.from_parquet('t.parquet')": ("pyarrow", "data"),
    "tracker.to_parquet('t.parquet')": ("pyarrow", "data"),
    "select_parquet('t.parquet', 'k.parquet', 0.5)": ("pyarrow", "data"),
    "select_parquet('t.parquet', 'k.parquet', 0.5, engine='ray')": ("ray", "ray"),
    "prune_dataset(None, table, 0.5)": ("datasets", "data"),
    "build_report(table)": ("matplotlib", "plot"),
}


def test_what_is_missing_is_named_with_its_extra():
    """An error that names a module nobody asked for sends people to the wrong place."""
    code = f"""
from data_prune import DualTracker, ScoreTable, prune_dataset, select_parquet
from data_prune.report.page import build_report
tracker = DualTracker(4, epochs=2, window=2)
for _ in range(2):
    tracker.update_probability([0, 1, 2, 3], [0.1, 0.2, 0.3, 0.4])
    tracker.end_epoch()
table = tracker.table()
for call in {list(CALLS)!r}:
    try:
        eval(call)
    except ImportError as error:
        print(error)
"""
    assert run(code).splitlines() == [
        f'this call needs {package}: pip install "torch-specgd[{extra}]"'
        for package, extra in CALLS.values()
    ]


def test_command_line_says_what_is_missing_in_one_line():
    """A person at a shell must see what to install, not a traceback."""
    code = """
from data_prune.__main__ import main
sys.stderr = sys.stdout
print(main(["select", __name__, "-o", "k.parquet"]))
"""
    said, status = run(code).splitlines()
    assert (said, status) == (
        'error: this call needs pyarrow: pip install "torch-specgd[data]"',
        "2",
    )
