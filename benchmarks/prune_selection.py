"""What a selection costs: in memory, from Parquet, and beside numpy's choice.

    python benchmarks/prune_selection.py memory --examples 1000000
    python benchmarks/prune_selection.py memory --examples 100000000
    python benchmarks/prune_selection.py parquet --examples 20000000

Prints JSON lines with wall time, CPU time and peak resident memory. Two cores at most are used;
on a shared machine the CPU time is the one to compare.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from data_prune import ScoreTable, select_parquet


def make_table(n: int) -> ScoreTable:
    rng = np.random.default_rng(0)
    prob = np.sqrt(rng.random(n, dtype=np.float32))
    score = prob * (1 - prob) * rng.random(n, dtype=np.float32)
    return ScoreTable(
        key=np.arange(n),
        label=rng.integers(1000, size=n, dtype=np.int16),
        score=score,
        mean_prob=prob,
        observed=np.full(n, 30, dtype=np.uint8),
    )


def timed(f: Callable[[], Any]) -> tuple[Any, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = f()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def memory(n: int, ratios: list[float]) -> None:
    table = make_table(n)
    variants = ({"method": "beta"}, {"method": "beta", "per_class": True}, {"method": "top"})
    for options in variants[: 1 if n > 20_000_000 else None]:
        for r in ratios:
            kept, wall, cpu = timed(lambda r=r, o=options: table.select(r, **o))
            row = {"examples": n, "prune_ratio": r, **options, "kept": len(kept)}
            print(json.dumps({**row, "wall_s": wall, "cpu_s": cpu, "peak_gb": peak_gigabytes()}))
    if n <= 5_000_000:
        weights = table.score.astype(np.float64)
        weights /= weights.sum()
        rng = np.random.default_rng(0)
        for r in ratios:
            size = round(n * (1 - r))
            _, wall, cpu = timed(lambda s=size: rng.choice(n, s, replace=False, p=weights))
            row = {"examples": n, "prune_ratio": r, "method": "numpy choice"}
            print(json.dumps({**row, "wall_s": wall, "cpu_s": cpu}))


def parquet(n: int, ratios: list[float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_table(n).to_parquet(f"{folder}/scores.parquet")
        before = peak_gigabytes()
        for r in ratios:
            _, wall, cpu = timed(
                lambda r=r: select_parquet(f"{folder}/scores.parquet", f"{folder}/{r}.parquet", r)
            )
            row = {"examples": n, "prune_ratio": r, "method": "beta, Parquet to Parquet"}
            print(json.dumps({**row, "wall_s": wall, "cpu_s": cpu, "peak_before_gb": before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("memory", "parquet"))
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.9])
    args = parser.parse_args()
    {"memory": memory, "parquet": parquet}[args.what](args.examples, args.ratios)


if __name__ == "__main__":
    main()
