"""Recordings, tables and loaders for the fault tests."""

import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from data_prune import DualScoreSampler, DualTracker, KeyedTracker, ScoredLoader, ScoreTable

EPOCHS, WINDOW, N = 5, 3, 40


def feed(tracker: DualTracker, epoch: int, start: int = 0) -> None:
    """One epoch of logits, in batches of 16; the last epoch's tail comes twice."""
    g = torch.Generator().manual_seed(epoch)
    logits, labels = torch.randn(N, 3, generator=g), torch.arange(N) % 3
    for i in range(start, N, 16):
        part = torch.arange(i, min(i + 16, N))
        index: Any = [f"k{j}" for j in part] if isinstance(tracker, KeyedTracker) else part
        tracker.update(index, logits[part], labels[part])
    if epoch == 1:
        index = ["k0"] if isinstance(tracker, KeyedTracker) else [0]
        tracker.update(index, logits[:1] * 2, labels[:1])


def finish(tracker: DualTracker) -> str:
    """Record what is missing and return the digest of the scores."""
    while not tracker.done:
        feed(tracker, tracker.epoch)
        tracker.end_epoch()
    return tracker.table().digest()


def table(seed: int = 0, n: int = 300) -> ScoreTable:
    rng = np.random.default_rng(seed)
    return ScoreTable(
        np.arange(n),
        rng.integers(5, size=n),
        rng.uniform(0, 0.3, n),
        rng.uniform(size=n),
        np.full(n, 30),
        peers={"aum": rng.normal(size=n)},
        meta={"epochs": 30, "nonfinite": 0},
    )


def loader(workers: int = 0) -> ScoredLoader:
    """A wrapped loader of 23 examples that scores for three epochs."""
    data = TensorDataset(torch.arange(23.0)[:, None], torch.arange(23) % 3)
    inner = DataLoader(data, batch_size=5, shuffle=True, num_workers=workers)
    return DualScoreSampler.wrap(inner, 0.5, score_epochs=3, window=2)


def record_pass(wrapped: ScoredLoader, epoch: int, batches: int | None = None) -> list[int]:
    """Go through (a part of) an epoch; return the examples seen."""
    seen: list[int] = []
    for step, (x, y) in enumerate(wrapped):
        if step == batches:
            break
        seen += x.flatten().long().tolist()
        wrapped.record(torch.sin(x * torch.arange(1.0, 4.0) + epoch), y)
    return seen


WRONG: tuple[Any, ...] = (
    None, True, -1, 2.5, "3", [], {}, (), float("nan"), 10**30, torch.ones(2), object(), [None],
)  # fmt: skip


def _places(state: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) inside a state."""
    items = state.items() if isinstance(state, dict) else enumerate(state)
    for key, value in list(items):
        yield state, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def mutant(state: Any, rng: random.Random) -> Any:
    """A copy of a state with one wrong thing in it."""
    state = copy.deepcopy(state)
    container, key = rng.choice(list(_places(state)))
    value, way = container[key], rng.randrange(4)
    if isinstance(value, torch.Tensor) and way:
        changes = [
            lambda x: x[..., :-1],
            lambda x: x[None],
            lambda x: x.to(torch.float64),
            lambda x: x.to(torch.int64),
            lambda x: (x * float("nan")).to(x.dtype),
            lambda x: torch.full_like(x, 77),
            lambda x: torch.full_like(x, -3) if x.dtype.is_signed else torch.full_like(x, 200),
            lambda x: x.tolist(),
            lambda x: x.to("meta"),
            lambda x: x.to_sparse(),
        ]
        container[key] = rng.choice(changes)(value)
    elif way == 0:
        del container[key]
    elif way == 1 and isinstance(container, dict):
        container[rng.choice(["extra", 7, None])] = rng.choice(WRONG)
    elif way == 2 and isinstance(value, int) and not isinstance(value, bool):
        container[key] = value + rng.choice([-1, 1, 1000, -1000])
    else:
        container[key] = rng.choice(WRONG)
    return state


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal, bit for bit."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return (
            isinstance(a, torch.Tensor)
            and isinstance(b, torch.Tensor)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.numpy().tobytes() == b.numpy().tobytes()
        )
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b
