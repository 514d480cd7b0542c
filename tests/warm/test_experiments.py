"""The experiments run, and the process behind the paper's theory keeps its ordering."""

import contextlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from warm.checkpoints import net
from warmstart.__main__ import main

sys.path.append(str(Path(__file__).resolve().parents[2] / "experiments"))

import bed
import warm_bed
import warm_chunks
import warm_features
import warm_mechanism
import warm_real_files


def test_feature_process_ordering() -> None:
    """Warm starts stop learning features; keeping features and forgetting noise does not."""
    rows = warm_features.run(experiments=10, seeds=2)
    warm_features.check(rows, seeds=2)
    assert "experiment" in warm_features.table(rows)


def test_feature_process_against_a_plain_loop() -> None:
    """The incremental counts equal counting everything anew after each feature."""
    rng = np.random.default_rng(0)
    p = np.sort(rng.uniform(0, 0.2, (2, 50)), 1)
    y = rng.integers(2, size=800)
    x = rng.random((800, 50)) < p[y]
    learned, active = np.zeros((2, 50), bool), np.ones(800, bool)
    slow, on = learned.copy(), active.copy()
    warm_features.train(x, y, learned, active)
    while True:
        counts = {(c, k): int((on & (y == c) & x[:, k]).sum()) for c in (0, 1) for k in range(50)}
        best = max((q for q in counts if not slow[q]), key=lambda q: counts[q])
        if counts[best] < warm_features.GAMMA:
            break
        slow[best] = True
        on &= (x & slow[y]).sum(1) < warm_features.TAU
    assert (learned == slow).all()
    assert not active.any()


def test_bed_is_the_same_every_time() -> None:
    """A distortion drawn anew each time would be augmentation, and hide the gap."""
    images = torch.randn(6, 28, 28, generator=torch.Generator().manual_seed(0))
    a = warm_bed.distort(images, torch.Generator().manual_seed(1))
    b = warm_bed.distort(images, torch.Generator().manual_seed(1))
    assert a.shape == (6, 1, 14, 14)
    assert torch.equal(a, b)
    parameters = sum(p.numel() for p in warm_bed.conv_net(norm=True).parameters())
    assert parameters == 20_278


@pytest.mark.parametrize("method", warm_chunks.METHODS | warm_chunks.TRIED)
def test_every_method_runs_on_random_data(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tiny chunks per method, appended and read back as the summary does."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(80, 1, 14, 14, generator=g), torch.randint(10, (80,), generator=g)
    floor = 1.0 if method in warm_chunks.NO_FLOOR else 0.3
    rows = list(
        warm_chunks.run(
            method, "norm4", 0.01, floor, 0, 2, (x, y, x, y), chunk_size=40, max_epochs=1
        )
    )
    path = tmp_path / "runs.csv"
    warm_chunks.append(path, [{"purpose": "grid", **row} for row in rows], warm_chunks.FIELDS)
    read = warm_chunks.read(path)
    assert [r["chunk"] for r in read] == ["1", "2"]
    assert warm_chunks.key(read[0]) == ("grid", "norm4", "0.01", method, str(floor), "0")
    monkeypatch.setattr(bed, "FIGURES", tmp_path)
    warm_chunks.summary(path, "figure")
    assert all((tmp_path / f"figure.{kind}").stat().st_size > 1000 for kind in ("png", "svg"))


@pytest.mark.parametrize("net", warm_mechanism.NETS)
def test_mechanism_runs_on_random_data(
    net: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every method from the same memorized labels; read back as the summary does."""
    g = torch.Generator().manual_seed(0)
    data = torch.randn(80, 1, 14, 14, generator=g), torch.randint(10, (80,), generator=g)
    rows = list(warm_mechanism.run(net, 0, data, examples=40, max_epochs=1))
    first = [r for r in rows if r["step"] == 0]
    assert len(first) == len(warm_mechanism.METHODS)
    path = tmp_path / "runs.csv"
    for _ in range(2):
        warm_mechanism.append(path, rows)
    monkeypatch.setattr(bed, "FIGURES", tmp_path)
    warm_mechanism.summary(path, "figure")
    assert capsys.readouterr().out.count("| DASH | ") == 1
    assert all((tmp_path / f"figure.{kind}").stat().st_size > 1000 for kind in ("png", "svg"))


def test_labels_are_wrong_as_often_as_said() -> None:
    """A fifth, and none of them by chance the true one."""
    y = torch.arange(5000) % 10
    given, wrong = warm_mechanism.noisy(y, torch.Generator().manual_seed(0))
    assert torch.equal(given != y, wrong)
    assert abs(float(wrong.float().mean()) - warm_mechanism.WRONG) < 0.02


def in_process(*arguments: object) -> tuple[int, str, str]:
    """The command without a process of its own."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(a) for a in arguments])
    return status, out.getvalue(), err.getvalue()


def test_real_files_on_a_wheel_of_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint passes every command; a program is refused in one line."""
    torch.save(net().state_dict(), tmp_path / "weights.pt")
    (tmp_path / "program.jit").write_bytes(b"PK not really")
    with zipfile.ZipFile(tmp_path / "made-1.0-py3-none-any.whl", "w") as z:
        for name in ("weights.pt", "program.jit"):
            z.write(tmp_path / name, f"made/{name}")
    monkeypatch.setattr(warm_real_files, "warmstart", in_process)
    rows = ["--csv", str(tmp_path / "rows.csv")]
    monkeypatch.setattr(sys, "argv", ["warm_real_files.py", str(tmp_path), *rows])
    warm_real_files.main()
    said = capsys.readouterr().out
    assert "made: program.jit | refused: " in said
    assert "made: weights.pt | 252 in 9 | 4 | 2 | 235 of 243 | " in said
    assert (tmp_path / "rows.csv").read_text().count("made: ") == 2
