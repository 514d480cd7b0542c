"""compare, L2 towards init, learning-rate advice: answers on the user's own data."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from warmstart import compare, l2_init_penalty, rewarm_advice
from warmstart.judge.compare import METHODS, Comparison, Run, verdict


def make() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def batches(n: int, seed: int) -> list:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 16, 4, generator=g)
    return [(b, (b[:, 0] > 0).long()) for b in x]


def test_compare_runs_every_method_and_answers(tmp_path) -> None:
    """All methods on one checkpoint, which is not changed; table, JSON and a verdict come out."""
    model = make()
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    seen: list = []
    result = compare(
        make, model, batches(4, 0), batches(5, 1), seeds=(0,), max_epochs=3, progress=seen.append
    )
    assert [r.method for r in result.runs] == list(METHODS)
    assert seen == result.runs
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert result.best in METHODS
    text = str(result)
    assert all(m in text for m in METHODS)
    assert f"use: {result.best}" in text
    assert "cost (s)" in text
    result.to_json(tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())["best"] == result.best
    assert torch.equal(random, torch.get_rng_state())


def test_compare_takes_own_methods_and_files(tmp_path) -> None:
    """A user's own idea runs beside the built-in ones; checkpoints come from files."""
    path = tmp_path / "model.pt"
    torch.save(make().state_dict(), path)
    touched: list = []

    def mine(model, data, setting) -> None:
        touched.append(len(data))

    result = compare(
        make, path, batches(2, 0), batches(5, 1), methods={"mine": mine}, seeds=(0, 1), max_epochs=1
    )
    assert touched == [6, 6]  # two old batches and four of five new ones; the fifth is the test
    assert result.best == "mine"


def run(method: str, accuracy: float, steps: int, converged: bool = True) -> list[Run]:
    return [
        Run(method, s, accuracy + d, 100.0, steps, converged, 0.0, 1.0)
        for s, d in enumerate((-0.1, 0.1))
    ]


@pytest.mark.parametrize(
    ("runs", "best"),
    [
        # nothing gained: just train on
        (run("none", 80.0, 100) + run("cold", 80.2, 400) + run("dash", 80.1, 200), "none"),
        # the gap is real, and dash closes it more cheaply than cold
        (run("none", 70.0, 100) + run("cold", 80.0, 400) + run("dash", 79.9, 200), "dash"),
        # a method that did not converge loses against one that did
        (run("none", 80.0, 50, False) + run("cold", 80.0, 400) + run("dash", 79.8, 200), "dash"),
        # two seeds of dash happen to agree: the others tell how far seeds lie apart
        (
            [Run("none", s, 80.0 + d, 100.0, 100, True, 0.0, 1.0) for s, d in enumerate((-1, 1))]
            + [Run("dash", s, 81.0, 100.0, 200, True, 0.0, 1.0) for s in (0, 1)],
            "none",
        ),
        # none happens to scatter more than the others, and is worse all the same
        (
            [Run("none", s, 78.0 + d, 100.0, 100, True, 0.0, 1.0) for s, d in enumerate((-1, 1))]
            + run("cold", 80.0, 400)
            + run("uniform", 80.0, 300)
            + run("dash", 80.0, 200),
            "dash",
        ),
        # all runs end at the limit of steps
        (run("none", 80.0, 100, False) + run("dash", 80.1, 100, False), "dash"),
        # direction is worse than the control
        (run("uniform", 80.0, 200) + run("dash", 78.0, 100), "uniform"),
    ],
)
def test_verdict(runs: list[Run], best: str) -> None:
    """The cheapest method within the noise of the best, and "none" when nothing helps."""
    result = Comparison(runs, methods=list(dict.fromkeys(r.method for r in runs)))
    assert verdict(result, 0.5)[0] == best


@pytest.mark.parametrize(
    ("keywords", "match"),
    [
        ({"methods": ["dsah"]}, r"unknown methods \['dsah'\]"),
        ({"methods": []}, "methods is empty"),
        ({"target": 1.5}, r"target must be in \(0, 1\], got 1.5"),
        ({"seeds": ()}, "seeds not empty"),
        ({"max_epochs": 0}, "max_epochs must be >= 1"),
        ({"test_data": []}, "empty data"),
    ],
)
def test_compare_refuses(keywords: dict, match: str) -> None:
    """Before an hour of training, not after it."""
    with pytest.raises(ValueError, match=match):
        compare(make, make(), batches(2, 0), batches(2, 1), **keywords)


def test_l2_init_penalty_is_the_squared_distance() -> None:
    """The published baseline squares a sum of norms by mistake; this is sum of |w - w0|^2."""
    model = make()
    initial = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5)
    penalty = l2_init_penalty(model, initial, 0.1)
    count = sum(p.numel() for p in model.parameters())
    assert float(penalty.detach()) == pytest.approx(0.1 * 0.25 * count)
    penalty.backward()
    torch.testing.assert_close(model[0].weight.grad, torch.full((8, 4), 0.1))
    assert initial[0].weight.grad is None
    only = l2_init_penalty(model, initial.state_dict(), 1.0, include="0.weight")
    assert float(only.detach()) == pytest.approx(0.25 * 32)
    with pytest.raises(ValueError, match="coefficient must be finite and >= 0"):
        l2_init_penalty(model, initial, -1.0)
    with pytest.raises(ValueError, match="no value for parameter"):
        l2_init_penalty(model, {})


def test_rewarm_advice_is_the_square_of_the_growth() -> None:
    """Weights three times longer train nine times more slowly under SGD, three times under Adam."""
    model = make()
    start = copy.deepcopy(model)
    with torch.no_grad():
        model[0].weight.mul_(3.0)
    example = torch.randn(8, 4)
    advice = rewarm_advice(model, 0.1, fresh=start, example=example)
    assert list(advice.growth) == ["0.weight"]  # the head has no normalization behind it
    assert advice.multiplier == pytest.approx(9.0, rel=1e-5)
    assert advice.lr == pytest.approx(0.9, rel=1e-5)
    assert "x9" in str(advice)
    adaptive = rewarm_advice(model, 0.1, fresh=start, example=example, adaptive=True)
    assert adaptive.multiplier == pytest.approx(3.0, rel=1e-5)
    assert rewarm_advice(start, 0.1, fresh=start).multiplier == 1.0
    assert "keep lr" in str(rewarm_advice(start, 0.1, fresh=start))
    with pytest.raises(ValueError, match="lr must be positive"):
        rewarm_advice(model, 0.0)
    with pytest.raises(ValueError, match="no weight with a normalization"):
        rewarm_advice(nn.Linear(4, 2), 0.1, example=example)


def test_the_example_compares_on_real_data() -> None:
    """examples/warm_resume.py, as a reader runs it: a verdict, a report, plasticity."""
    pytest.importorskip("sklearn")
    example = Path(__file__).parents[2] / "examples" / "warm_resume.py"
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    table = {line.split()[0]: float(line.split()[1]) for line in lines[1 : 1 + len(METHODS)]}
    assert list(table) == list(METHODS)
    (answer,) = (line.split()[1] for line in lines if line.startswith("use: "))
    # Chance is 10 %. The answer is within the margin (half a point) of the best.
    assert min(table.values()) > 80.0
    assert table[answer] >= max(table.values()) - 0.51  # printed with two digits
    assert ["7.weight", "row", "10"] in [line.split()[:3] for line in lines]
    assert any(line.startswith("epoch 4 layer 5:") for line in lines)
