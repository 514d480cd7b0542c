"""One argument sends an optimizer's and a tracker's numbers to any logger."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from torch_specgd import Muon, SpectrumTracker


def train(log: Any, steps: int = 3) -> dict[str, list[tuple[int, float]]]:
    """Train with both kinds of numbers logged; return what a logger should hold."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    model.register_parameter("experts", nn.Parameter(torch.randn(2, 3, 3)))
    optimizer = Muon(model, lr=0.02)
    measured = optimizer.statistics(log=log)
    tracker = SpectrumTracker(model, every=2, log=log)
    wanted: dict[str, list[tuple[int, float]]] = {}
    for i in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        tracker.update(i)
        for key, value in measured.items():
            wanted.setdefault(f"optimizer/{key}", []).append((i, value))
    for record in tracker.records:
        place = f"spectrum/{record['name'].replace('[', '.').replace(']', '')}"
        wanted.setdefault(f"{place}/sigma_max", []).append(
            (record["step"], record["singular_values"][0])
        )
    return wanted


def check(got: dict[str, list[tuple[int, float]]], wanted: dict[str, Any]) -> None:
    assert "spectrum/experts.1/sigma_max" in wanted
    assert wanted.keys() <= got.keys()
    for key, points in wanted.items():
        assert [i for i, _ in got[key]] == [i for i, _ in points], key
        for (_, x), (_, y) in zip(got[key], points, strict=True):
            assert math.isclose(x, y, rel_tol=1e-5, abs_tol=1e-12), key


def test_tensorboard_files_hold_every_number(tmp_path: Path) -> None:
    """What a SummaryWriter wrote, read back from its event file by TensorBoard itself."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        wanted = train(writer)
    events = EventAccumulator(str(tmp_path)).Reload()
    got = {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    check(got, wanted)


def test_a_logger_of_lightning_holds_every_number(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    wanted = train(logger)
    logger.save()
    got: dict[str, list[tuple[int, float]]] = {}
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        for row in csv.DictReader(file):
            for key, value in row.items():
                if value and key != "step":
                    got.setdefault(key, []).append((int(row["step"]), float(value)))
    check(got, wanted)


def wandb_run(got: dict[str, Any]) -> Any:
    """`wandb` and its runs: log(data, step=None, commit=None)."""

    def log(data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        for key, value in data.items():
            got.setdefault(key, []).append((step, value))

    return SimpleNamespace(log=log)


def mlflow_module(got: dict[str, Any]) -> Any:
    """`mlflow`: log_metrics(metrics, step=None, ...), and names of few characters."""

    def log_metrics(metrics: dict[str, float], step: int | None = None, **_: Any) -> None:
        for key, value in metrics.items():
            assert all(c.isalnum() or c in "_-. :/" for c in key), key
            got.setdefault(key, []).append((step, value))

    return SimpleNamespace(log_metrics=log_metrics)


def function(got: dict[str, Any]) -> Any:
    return wandb_run(got).log


@pytest.mark.parametrize("make", [wandb_run, mlflow_module, function])
def test_other_loggers_take_the_same(make: Callable[[dict[str, Any]], Any]) -> None:
    """Each by the signature that its documentation gives."""
    got: dict[str, Any] = {}
    check(got, train(make(got)))
