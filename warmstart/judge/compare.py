"""Which warm start to use, answered on the user's own data."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from specgd_common.files import write_text

from ..direction.undisturbed import Loss
from ..files.read import read
from .runs import METHODS, Method, Setting, accuracy, fit


@dataclass
class Run:
    """One method, one seed.

    Attributes:
        method: Its name.
        seed: Of batch order and noise.
        accuracy: On the test data, percent, at the end.
        train_accuracy: Of the last epoch, percent.
        steps: Optimizer steps until the target, or all that were allowed.
        converged: Whether the target was reached.
        intervention_seconds: What the method itself cost.
        seconds: In total.
    """

    method: str
    seed: int
    accuracy: float
    train_accuracy: float
    steps: int
    converged: bool
    intervention_seconds: float
    seconds: float


@dataclass
class Comparison:
    """All runs, the verdict, and a table.

    Attributes:
        runs: Every run.
        best: The method to use; ``"none"`` means: just train on.
        reason: Why, in words.
    """

    runs: list[Run]
    best: str = ""
    reason: str = ""
    methods: list[str] = field(default_factory=list)

    def mean(self, method: str, column: str) -> float:
        """Return the mean of a column over a method's seeds."""
        return fmean(float(getattr(r, column)) for r in self.runs if r.method == method)

    def error(self, method: str) -> float:
        """Return the standard error of the accuracy; infinite with one seed."""
        values = [r.accuracy for r in self.runs if r.method == method]
        return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf

    def __str__(self) -> str:
        rows = [("method", "accuracy", "steps", "done", "cost (s)", "total (s)")]
        for m in self.methods:
            error = self.error(m)
            spread = f" +- {error:.2f}" if math.isfinite(error) else ""
            rows.append(
                (
                    m,
                    f"{self.mean(m, 'accuracy'):.2f}{spread}",
                    f"{self.mean(m, 'steps'):.0f}",
                    f"{self.mean(m, 'converged'):.0%}",
                    f"{self.mean(m, 'intervention_seconds'):.2f}",
                    f"{self.mean(m, 'seconds'):.2f}",
                )
            )
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        lines = []
        for name, *cells in rows:
            right = [c.rjust(w) for c, w in zip(cells, widths[1:], strict=True)]
            lines.append("  ".join([name.ljust(widths[0]), *right]))
        return "\n".join([*lines, f"use: {self.best} ({self.reason})"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"best": self.best, "reason": self.reason, "runs": [asdict(r) for r in self.runs]}

    def to_json(self, path: str | Path | None = None) -> str:
        """Return JSON text, also written to ``path`` if one is given."""
        text = json.dumps(self.to_dict(), indent=2)
        if path is not None:
            write_text(path, text + "\n")
        return text


def compare(
    model_fn: Callable[[], nn.Module],
    checkpoint: nn.Module | Mapping[str, Tensor] | str | Path,
    old_data: Iterable[Any],
    new_data: Iterable[Any],
    *,
    methods: Sequence[str] | Mapping[str, Method] = tuple(METHODS),
    test_data: Iterable[Any] | None = None,
    loss_fn: Loss = cross_entropy,
    optimizer_fn: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
    target: float = 0.999,
    max_epochs: int = 30,
    seeds: Sequence[int] = (0, 1),
    margin: float = 0.5,
    progress: Callable[[Run], None] | None = None,
) -> Comparison:
    """Run warm starts side by side on old plus new data, and say which one to use.

    Every method starts from the checkpoint, is applied once, and trains on the union with a fresh
    optimizer until the epoch's train accuracy reaches ``target``. The verdict is the cheapest
    method (fewest steps, of as many steps the most accurate) whose accuracy is within the noise of
    the best: ``margin``, or two standard errors of a difference if that is more. The spread over
    seeds is taken of all methods together: of one alone two seeds tell little. It may be
    ``"none"``.

    Args:
        model_fn: Builds a freshly initialized model.
        checkpoint: The converged model: a module, a state dict or a file.
        old_data: Batches ``(input, target)`` that the checkpoint was trained on.
        new_data: Batches that have arrived.
        methods: Names from ``METHODS``, or name -> ``method(model, batches, setting)`` that changes
            the model in place or returns another one.
        test_data: Batches to judge on; None holds out every fifth batch of ``new_data``.
        loss_fn: ``loss_fn(output, target)``.
        optimizer_fn: Parameters -> optimizer; default SGD at 0.01 with momentum 0.9.
        target: Train accuracy in (0, 1] at which a run is done.
        max_epochs: Epochs at most.
        seeds: One run per method and seed.
        margin: Accuracy difference, in percent points, that you do not care about.
        progress: Called after each run.

    Returns:
        A ``Comparison``; print it.

    Raises:
        ValueError: For unknown methods, empty data, or values out of range.

    Example:
        >>> import torch
        >>> from warmstart import compare
        >>> make = lambda: torch.nn.Linear(2, 2)
        >>> x = torch.randn(64, 2)
        >>> batches = [(b, (b[:, 0] > 0).long()) for b in x.split(8)]
        >>> result = compare(make, make(), batches[:4], batches[4:], methods=["none", "cold"])
        >>> result.best in ("none", "cold")
        True
    """
    chosen = _chosen(methods)
    if not 0.0 < target <= 1.0:
        raise ValueError(f"target must be in (0, 1], got {target}")
    if max_epochs < 1 or not seeds:
        raise ValueError(f"max_epochs must be >= 1 and seeds not empty, got {max_epochs}, {seeds}")
    old, new = list(old_data), list(new_data)
    test = list(test_data) if test_data is not None else new[::5]
    if test_data is None:
        new = [b for i, b in enumerate(new) if i % 5]
    if not old or not new or not test:
        raise ValueError(f"empty data: {len(old)} old, {len(new)} new, {len(test)} test batches")
    for batch in (old[0], new[0], test[0]):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TypeError(f"batches must be (input, target) pairs, got {type(batch).__name__}")
    state = _state(checkpoint)
    make = optimizer_fn or (lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9))
    result = Comparison([], methods=list(chosen))
    for seed in seeds:
        for name, method in chosen.items():
            # Repeatable (dropout, initialization), and the caller's random state stays.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                setting = Setting(model_fn, loss_fn, seed)
                model = model_fn()
                model.load_state_dict(state)
                start = time.perf_counter()
                model = method(model, [*old, *new], setting) or model
                cost = time.perf_counter() - start
                optimizer = make(model.parameters())
                for group in optimizer.param_groups:
                    group["lr"] *= setting.lr_multiplier
                steps, train = fit(model, optimizer, old + new, loss_fn, target, max_epochs, seed)
            total = time.perf_counter() - start
            run = Run(
                name, seed, accuracy(model, test), 100 * train, steps, train >= target, cost, total
            )
            result.runs.append(run)
            if progress is not None:
                progress(run)
    result.best, result.reason = verdict(result, margin)
    return result


def verdict(result: Comparison, margin: float) -> tuple[str, str]:
    """Return the cheapest method whose accuracy is within the noise of the best, and why."""
    mean = {m: result.mean(m, "accuracy") for m in result.methods}
    top = max(mean, key=lambda m: mean[m])
    noise = max(margin, 2 * _error_of_difference(result))
    good = [m for m in result.methods if mean[m] >= mean[top] - noise]
    done = [m for m in good if result.mean(m, "converged") == 1.0] or good
    best = min(
        done,
        key=lambda m: (result.mean(m, "steps"), -mean[m], result.mean(m, "intervention_seconds")),
    )
    reason = f"{mean[best]:.2f} % in {result.mean(best, 'steps'):.0f} steps"
    if best != top:
        reason += f"; {top} has {mean[top]:.2f} % in {result.mean(top, 'steps'):.0f}"
    return best, f"{reason}; differences up to {noise:.2f} points are taken for noise"


def _error_of_difference(result: Comparison) -> float:
    """Return the standard error of a difference of two means, from the spread of all methods."""
    groups = [[r.accuracy for r in result.runs if r.method == m] for m in result.methods]
    freedom = sum(len(g) - 1 for g in groups)
    if not freedom:
        return 0.0
    squares = sum((a - fmean(g)) ** 2 for g in groups for a in g)
    return math.sqrt(2 * squares / freedom / min(map(len, groups)))


def _chosen(methods: Sequence[str] | Mapping[str, Method]) -> dict[str, Method]:
    if isinstance(methods, Mapping):
        chosen = dict(methods)
    else:
        unknown = [m for m in methods if m not in METHODS]
        if unknown:
            raise ValueError(f"unknown methods {unknown}; there are {tuple(METHODS)}")
        chosen = {m: METHODS[m] for m in methods}
    if not chosen:
        raise ValueError("methods is empty")
    return chosen


def _state(checkpoint: nn.Module | Mapping[str, Tensor] | str | Path) -> Mapping[str, Tensor]:
    if isinstance(checkpoint, (str, Path)):
        return read(Path(checkpoint)).tensors
    if isinstance(checkpoint, nn.Module):
        checkpoint = checkpoint.state_dict()
    return copy.deepcopy(dict(checkpoint))
