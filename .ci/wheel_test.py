"""Run in an environment that has only the wheel, from a directory that has no checkout."""

import importlib.util
import os
import subprocess
import sys
import zipfile

wheel = sys.argv[1]
packages = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
packages = {name for name in packages if not name.endswith(".dist-info")}
assert packages == {"torch_specgd", "data_prune", "warmstart", "specgd_common"}, packages
assert os.path.getsize(wheel) < 600_000, f"{os.path.getsize(wheel)} bytes"
# vLLM, SGLang and Unsloth probe for this name and would take ours for another library.
assert importlib.util.find_spec("triton_kernels") is None

sys.modules["triton"] = None  # type: ignore[assignment]  # as on macOS and Windows

import torch  # noqa: E402

import torch_specgd  # noqa: E402
from data_prune import DualScoreSampler, DualTracker  # noqa: E402
from warmstart import dash_shrink  # noqa: E402

assert "site-packages" in torch_specgd.__file__, torch_specgd.__file__
for part in ("torch_specgd", "torch_specgd.triton_kernels", "data_prune", "warmstart"):
    spec = importlib.util.find_spec(part)
    assert spec is not None, part
    assert spec.origin is not None, part
    assert os.path.exists(os.path.join(os.path.dirname(spec.origin), "py.typed")), part

for command in ("data-prune", "warmstart"):
    script = os.path.join(os.path.dirname(sys.executable), command)
    told = subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
    assert told == f"{command} {torch_specgd.__version__}\n", told

model = torch.nn.Linear(4, 3)
x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
optimizer = torch_specgd.Muon(model.parameters(), lr=0.02)
tracker = DualTracker(6, epochs=3, window=2)
for _ in range(3):
    logits = model(x)
    tracker.update(torch.arange(6), logits, y)
    tracker.end_epoch()
    torch.nn.functional.cross_entropy(logits, y).backward()
    optimizer.step()
assert len(tracker.table().select(0.5)) == 3
assert len(DualScoreSampler(range(6), 0.5, table=tracker.table())) == 3
dash_shrink(model, [(x, y)])
assert all(p.isfinite().all() for p in model.parameters())
print(f"wheel works: {os.path.basename(wheel)}, {os.path.getsize(wheel)} bytes")

# A plain install brings torch and numpy: what needs more says which extra brings it.
for name in ("datasets", "pyarrow", "tqdm", "safetensors", "matplotlib"):
    assert importlib.util.find_spec(name) is None, f"a plain install brought {name}"
refused = ""
try:
    tracker.table().to_parquet("scores.parquet")
except ImportError as error:
    refused = str(error)
assert "torch-specgd[data]" in refused, refused
