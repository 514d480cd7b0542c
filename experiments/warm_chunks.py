"""Expanding chunks: cold starts, warm starts, and seven interventions between chunks.

Each run trains a net to 99.9 % train accuracy on chunk 1, then on chunks 1-2, and so on; between
two experiments the method under test is applied. One CSV row per chunk: test accuracy and steps.

    python experiments/warm_chunks.py                 # every run that the CSV does not hold yet
    python experiments/warm_chunks.py --quick         # two tiny chunks of every method
    python experiments/warm_chunks.py --summary       # table, figure and assertions from the CSV
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from bed import RESULTS, append, read
from torch import Tensor
from warm_bed import DEFAULT_DATA, Learner, conv_net, hard_fashion_mnist
from warm_methods import METHODS, TRIED
from warm_summary import summary

CSV = RESULTS / "warm_chunks.csv"
FIELDS = (
    "purpose", "net", "lr", "method", "floor", "seed", "chunk", "examples", "test_accuracy",
    "train_accuracy", "steps", "seconds",
)  # fmt: skip

FIRST_CHUNK: dict[tuple[object, ...], tuple[Learner, int, float]] = {}


def new_learner(net: str, lr: float, seed: int, chunk: int) -> Learner:
    """A net by name: "norm" or "plain", with "4" for the wider, shallower one of the check."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(100 * seed + chunk)
        widths = (16, 16, 32, 32) if net.endswith("4") else (12, 12, 24, 24, 48)
        model = conv_net(net.startswith("norm"), widths)
    return Learner(
        model.to(memory_format=torch.channels_last),
        lr,
        torch.Generator().manual_seed(7919 * seed + chunk),
    )


def run(
    method: str, net: str, lr: float, floor: float | str, seed: int, chunks: int,
    data: tuple[Tensor, ...], chunk_size: int = 500, max_epochs: int = 150,
) -> Iterable[dict[str, object]]:  # fmt: skip
    """One learner over all chunks; a row per chunk."""
    x, y, x_test, y_test = data
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    learner = new_learner(net, lr, seed, 0)
    # Chunk 1 is the same for every method: trained once per (net, lr, seed), then taken from here.
    first = (net, lr, seed, chunk_size, max_epochs)
    for k in range(chunks):
        seen = [
            (x[i].contiguous(memory_format=torch.channels_last), y[i])
            for i in order[: (k + 1) * chunk_size].split(chunk_size)
        ]
        start = time.perf_counter()
        if k and method == "cold":
            learner = new_learner(net, lr, seed, k)
        elif k:
            (METHODS | TRIED)[method](learner, seen, floor, seed)
        if k == 0 and first in FIRST_CHUNK:
            learner, steps, train = copy.deepcopy(FIRST_CHUNK[first])
        else:
            steps, train = learner.fit(
                torch.cat([a for a, _ in seen]), torch.cat([b for _, b in seen]), max_epochs
            )
        if k == 0 and first not in FIRST_CHUNK:
            FIRST_CHUNK[first] = copy.deepcopy((learner, steps, train))
        yield {
            "net": net, "lr": lr, "method": method, "floor": floor, "seed": seed, "chunk": k + 1,
            "examples": (k + 1) * chunk_size,
            "test_accuracy": round(learner.test(x_test, y_test), 2),
            "train_accuracy": round(100 * train, 2), "steps": steps,
            "seconds": round(time.perf_counter() - start, 2),
        }  # fmt: skip


def key(row: dict[str, object]) -> tuple[str, ...]:
    return tuple(str(row[k]) for k in ("purpose", "net", "lr", "method", "floor", "seed"))


NO_FLOOR = ("cold", "warm", "warm, fresh momentum", "FIRE")

# (purpose, net, learning rate, methods, floor, seeds, chunks), most wanted first. "grid" compares;
# "tune" finds the rate at which a cold start is best. "explore" (with the grid's cold starts) is
# all that floor="auto" was chosen on; "confirm" is what it was not. "first rule" is how the rule
# without chained biases failed on such a net; on nets with normalization the two are the same.
# "ablation" takes the rule apart, after the choice.
PLAN: tuple[tuple[str, str, float, tuple[str, ...], float | str, tuple[int, ...], int], ...] = (
    ("grid", "norm", 0.01, ("cold", "warm", "DASH"), 0.3, (0, 1, 2), 4),
    ("grid", "plain", 0.03, ("cold", "warm", "DASH"), 0.7, (0, 1, 2), 4),
    ("confirm", "plain4", 0.03, ("cold", "DASH"), "auto", (20, 21, 22, 23), 4),
    ("confirm", "norm4", 0.01, ("cold", "warm", "DASH"), "auto", (10, 11, 12), 4),
    ("first rule", "plain4", 0.03, ("cold", "warm", "DASH"), 0.630957, (10, 11, 12), 4),
    ("grid", "norm", 0.01, tuple(METHODS), 0.3, (0, 1, 2), 4),
    ("explore", "plain", 0.03, ("DASH",), 0.8, (0, 1), 4),
    ("explore", "plain", 0.03, ("DASH, chained biases", "uniform, chained biases"), 0.7, (0, 1), 4),
    ("explore", "plain", 0.03, ("DASH",), 0.56, (0, 1), 4),
    ("grid", "plain", 0.03, tuple(METHODS), 0.7, (0, 1, 2), 4),
    ("tune", "norm", 0.03, ("cold",), 1.0, (0,), 4),
    ("tune", "norm", 0.1, ("cold",), 1.0, (0,), 4),
    ("tune", "norm", 0.3, ("cold",), 1.0, (0,), 4),
    ("tune", "plain", 0.01, ("cold",), 1.0, (0,), 4),
    ("tune", "plain", 0.1, ("cold",), 1.0, (0,), 4),
    ("tune", "norm", 1.0, ("cold",), 1.0, (0,), 4),
    ("tune", "plain", 0.003, ("cold",), 1.0, (0,), 4),
    ("grid", "norm", 0.1, tuple(METHODS), 0.3, (0, 1, 2), 4),
    ("grid", "norm", 0.3, tuple(METHODS), 0.3, (0, 1, 2), 4),
    ("grid", "norm", 0.3, ("DASH",), "auto", (0, 1, 2), 4),
    ("grid", "plain", 0.01, tuple(METHODS), 0.7, (0, 1, 2), 4),
    ("grid", "plain", 0.01, ("DASH",), "auto", (0, 1, 2), 4),
    ("grid", "plain", 0.03, ("uniform", "DASH"), 0.3, (0, 1, 2), 4),
    ("ablation", "plain", 0.03, tuple(TRIED), 0.5, (0, 1, 2), 4),
    ("ablation", "plain", 0.03, tuple(TRIED), 0.7, (0, 1, 2), 4),
)


def jobs() -> list[tuple[str, str, float, str, float | str, int, int]]:
    """Every run once; methods without a floor do not run again for another floor."""
    out = {}
    for purpose, net, lr, methods, floor, seeds, chunks in PLAN:
        for seed, method in itertools.product(seeds, methods):
            f = 1.0 if method in NO_FLOOR else floor
            f = 0.5 if f == "auto" and method == "uniform" else f
            out.setdefault((purpose, net, lr, method, f, seed), chunks)
    return [(*k, chunks) for k, chunks in out.items()]


def quick(data: tuple[Tensor, ...]) -> None:
    """Every method for two tiny chunks: shows that all of it runs, nothing about accuracy."""
    x, y, x_test, y_test = data
    small = (x[:400], y[:400], x_test[:2000], y_test[:2000])
    for net, method, floor in [("norm", m, 0.3) for m in METHODS] + [("plain", "DASH", "auto")]:
        rows = list(run(method, net, 0.05, floor, 0, 2, small, chunk_size=200, max_epochs=15))
        print(net, method, rows[-1]["test_accuracy"], rows[-1]["steps"])
        assert all(0 < float(str(r["test_accuracy"])) <= 100 for r in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder of the IDX files")
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--figure", default="warm_chunks", help="its name in docs/figures")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--shard", default="0/1", help="i/n: seeds i modulo n, for parallel runs")
    parser.add_argument("--only", help="run only this purpose, one of the first column of PLAN")
    args = parser.parse_args()
    if args.summary:
        summary(args.csv, args.figure)
        return
    torch.set_num_threads(1)
    data = hard_fashion_mnist(args.data, pool=400 if args.quick else 12_000)
    if args.quick:
        quick(data)
        return
    done = {key(r) for r in read(args.csv)}
    shard, shards = map(int, args.shard.split("/"))
    for purpose, net, lr, method, floor, seed, chunks in jobs():
        if seed % shards != shard or args.only not in (None, purpose):
            continue
        name = {
            "purpose": purpose, "net": net, "lr": lr, "method": method, "floor": floor,
            "seed": seed,
        }  # fmt: skip
        if key(name) in done:
            continue
        rows = list(run(method, net, lr, floor, seed, chunks, data))
        append(args.csv, [{"purpose": purpose, **row} for row in rows], FIELDS)
        last = rows[-1]
        print(*name.values(), last["test_accuracy"], last["steps"], flush=True)


if __name__ == "__main__":
    main()
