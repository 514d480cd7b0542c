"""What a wrapped loader adds to a batch, beside the same loader as it was: medians in ms.

    python benchmarks/prune_loader.py                     # 1e4, 1e5, 1e6 examples, 0 and 2 workers
    python benchmarks/prune_loader.py --examples 10000 --batches 300

Batches of 256 from a TensorDataset of 16 numbers an example. Plain and wrapped loaders are asked
for a batch in turn, so that both meet the same machine; each ``next`` is timed, by the clock and
by the CPU time of this process. Recording is not called: `prune_recording.py` has its cost.
"scoring" is a pass that could be recorded; "pruned" is one over the kept half, beside a plain
loader over a Subset of the same half.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from data_prune import DualScoreSampler, ScoreTable

BATCH = 256


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield the full batches of pass after pass."""
    while True:
        for batch in loader:
            if len(batch[0]) == BATCH:
                yield batch


def compare(plain: Iterable[Any], wrapped: Iterable[Any], batches: int) -> list[str]:
    """Return for clock and CPU time: median of plain, and what the wrapped one adds to it."""
    loaders = endless(plain), endless(wrapped)
    taken: list[list[tuple[float, float]]] = [[], []]
    for number in range(batches + 20):
        for kind in (0, 1) if number % 2 else (1, 0):
            clock, cpu = time.perf_counter(), time.process_time()
            next(loaders[kind])
            if number >= 20:
                taken[kind].append((time.perf_counter() - clock, time.process_time() - cpu))
    cells = []
    for which in (0, 1):
        base, other = (1e3 * statistics.median(t[which] for t in times) for times in taken)
        cells += [f"{base:.3f}", f"{other - base:+.3f}"]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--examples", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--batches", type=int, default=800)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, batches of {BATCH}, medians of {args.batches} in ms")
    print("| examples | workers | pass | clock | added | CPU | added |\n|" + "---|" * 7)
    for n, workers in itertools.product(args.examples, args.workers):
        data = TensorDataset(torch.randn(n, 16), torch.arange(n) % 10)
        options: dict[str, Any] = {"batch_size": BATCH, "shuffle": True, "num_workers": workers}
        p = np.random.default_rng(0).uniform(size=n)
        table = ScoreTable(np.arange(n), np.arange(n) % 10, p * 0.3, p, np.full(n, 30))
        pruned = DualScoreSampler.wrap(DataLoader(data, **options), 0.5, table=table)
        scoring = DualScoreSampler.wrap(DataLoader(data, **options), 0.5)
        half = DataLoader(Subset(data, pruned.kept.tolist()), **options)
        for name, plain, wrapped in (
            ("scoring", DataLoader(data, **options), scoring),
            ("pruned", half, pruned),
        ):
            cells = compare(plain, wrapped, args.batches)
            print(f"| {n} | {workers} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
