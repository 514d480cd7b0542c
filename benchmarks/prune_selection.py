"""What a selection costs: in memory, from Parquet, and beside numpy's choice.

    python benchmarks/prune_selection.py memory --examples 1000000 --trials 7
    python benchmarks/prune_selection.py memory --examples 100000000
    python benchmarks/prune_selection.py parquet --examples 20000000
    python benchmarks/prune_selection.py parquet --examples 20000000 --engine ray

Prints JSON lines: median wall and CPU time of the trials, the size of the table, and the peak
resident memory of the whole process up to then (interpreter, libraries, table and result, and in
the lines of numpy's choice what that takes). One thread is used; with Ray, all cores of the machine
by its workers, and the peak is that of the driver.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
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


def timed(f: Callable[[], Any], trials: int = 1) -> tuple[Any, dict[str, float]]:
    walls, cpus = [], []
    for _ in range(trials):
        wall, cpu = time.perf_counter(), time.process_time()
        result = f()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return result, {"wall_s": statistics.median(walls), "cpu_s": statistics.median(cpus)}


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # given in KiB


def memory(n: int, ratios: list[float], trials: int) -> None:
    table = make_table(n)
    columns = (table.key, table.label, table.score, table.mean_prob, table.observed)
    print(json.dumps({"examples": n, "table_gb": sum(c.nbytes for c in columns) / 1e9}))
    ours: dict[float, float] = {}
    for options in ({"method": "beta"}, {"method": "beta", "per_class": True}, {"method": "top"}):
        for r in ratios:
            kept, cost = timed(lambda r=r, o=options: table.select(r, **o), trials)
            ours.setdefault(r, cost["wall_s"])
            row = {"examples": n, "prune_ratio": r, **options, "kept": len(kept), **cost}
            print(json.dumps({**row, "peak_gb": peak_gigabytes()}))
            del kept
    if n <= 5_000_000:
        weights = table.score.astype(np.float64)
        weights /= weights.sum()
        rng = np.random.default_rng(0)
        for r in ratios:
            size = round(n * (1 - r))
            _, cost = timed(lambda s=size: rng.choice(n, s, replace=False, p=weights), trials)
            row = {"examples": n, "prune_ratio": r, "method": "numpy choice", **cost}
            print(json.dumps({**row, "times_ours": cost["wall_s"] / ours[r]}))


def write_table(n: int, path: str) -> None:
    make_table(n).to_parquet(path)


def parquet(n: int, ratios: list[float], engine: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = f"{folder}/scores.parquet"
        # In a process of its own: the peak below is that of the stream alone.
        writer = multiprocessing.get_context("spawn").Process(target=write_table, args=(n, source))
        writer.start()
        writer.join()
        for r in ratios:
            target = f"{folder}/{r}.parquet"
            _, cost = timed(lambda r=r, t=target: select_parquet(source, t, r, engine=engine))
            row = {"examples": n, "prune_ratio": r, "engine": engine, **cost}
            print(json.dumps({**row, "peak_gb": peak_gigabytes()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("memory", "parquet"))
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.9])
    parser.add_argument("--trials", type=int, default=1, help="of each line (memory only)")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="of parquet")
    args = parser.parse_args()
    if args.what == "memory":
        memory(args.examples, args.ratios, args.trials)
    else:
        parquet(args.examples, args.ratios, args.engine)


if __name__ == "__main__":
    main()
