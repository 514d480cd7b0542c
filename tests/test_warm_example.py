"""The example on real data runs end to end: a user who copies it gets a verdict and a report."""

import sys
from pathlib import Path

import pytest

from warmstart.trial import METHODS

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))


def test_warm_resume_on_digits(capsys: pytest.CaptureFixture[str]) -> None:
    """compare answers on scikit-learn's digits, the shrink is reported, plasticity is watched."""
    pytest.importorskip("sklearn")
    import warm_resume

    warm_resume.main()
    out = capsys.readouterr().out
    verdict = next(line for line in out.splitlines() if line.startswith("use: "))
    assert any(f"use: {m} (" in verdict for m in METHODS)
    assert "dash_shrink(" in out
    assert "epoch 4 layer" in out
