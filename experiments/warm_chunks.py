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
import csv
import itertools
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from warm_bed import DEFAULT_DATA, Learner, conv_net, hard_fashion_mnist
from warm_methods import METHODS, TRIED

HERE = Path(__file__).resolve().parent
CSV = HERE / "warm_chunks.csv"
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


def append(path: Path, rows: list[dict[str, object]], purpose: str) -> None:
    """Finished runs are written at once, so that an interruption loses one run at most."""
    new = not path.exists()
    with path.open("a", newline="") as f:
        writer = csv.DictWriter(f, FIELDS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows({"purpose": purpose, **r} for r in rows)


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def key(row: dict[str, object]) -> tuple[str, ...]:
    return tuple(str(row[k]) for k in ("purpose", "net", "lr", "method", "floor", "seed"))


NO_FLOOR = ("cold", "warm", "warm, fresh momentum", "FIRE")
FEW = ("cold", "warm", "uniform", "DASH")

# (purpose, net, learning rate, methods, floor, seeds, chunks), most wanted first. "grid" compares;
# "explore" is all that the rule floor="auto" was chosen on; "confirm" is what it was not.
PLAN: tuple[tuple[str, str, float, tuple[str, ...], float | str, tuple[int, ...], int], ...] = (
    ("grid", "norm", 0.01, ("cold", "warm", "DASH"), 0.3, (0, 1, 2), 4),
    ("grid", "plain", 0.03, ("cold", "warm", "DASH"), 0.7, (0, 1, 2), 4),
    ("confirm", "plain4", 0.03, ("cold", "warm", "DASH"), "auto", (10, 11, 12), 4),
    ("confirm", "norm4", 0.01, ("cold", "warm", "DASH"), "auto", (10, 11, 12), 4),
    ("grid", "norm", 0.01, tuple(METHODS), 0.3, (0, 1, 2), 4),
    ("explore", "plain", 0.03, ("DASH",), 0.8, (0, 1), 4),
    ("explore", "plain", 0.03, ("DASH, chained biases", "uniform, chained biases"), 0.7, (0, 1), 4),
    ("explore", "plain", 0.03, ("DASH",), 0.56, (0, 1), 4),
    ("explore", "plain", 0.03, ("DASH, chained biases", "uniform, chained biases"), 0.5, (0, 1), 4),
    ("explore", "plain", 0.03, ("DASH, head only",), 0.1, (0, 1), 4),
    ("explore", "plain", 0.03, ("DASH, head kept",), 0.6, (0, 1), 4),
    ("explore", "plain", 0.03, ("DASH, biases kept",), 0.7, (0, 1), 4),
    ("grid", "plain", 0.03, tuple(METHODS), 0.7, (0, 1, 2), 4),
    ("grid", "norm", 0.1, tuple(METHODS), 0.3, (0, 1, 2), 4),
    ("grid", "plain", 0.03, ("uniform", "DASH"), 0.3, (0, 1, 2), 4),
    ("grid", "plain", 0.01, FEW, 0.7, (0, 1, 2), 4),
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


Group = dict[tuple[str, str], dict[str, dict[int, dict[str, str]]]]


def groups(rows: list[dict[str, str]]) -> dict[tuple[str, str, str], Group]:
    """(purpose, net, lr) -> (method, floor) -> seed -> chunk -> row."""
    out: dict[tuple[str, str, str], Group] = {}
    for r in rows:
        group = out.setdefault((r["purpose"], r["net"], r["lr"]), {})
        runs = group.setdefault((r["method"], r["floor"]), {})
        runs.setdefault(r["seed"], {})[int(r["chunk"])] = r
    return out


def at(runs: dict[str, dict[int, dict[str, str]]], chunk: int, column: str) -> np.ndarray:
    return np.array([float(runs[seed][chunk][column]) for seed in sorted(runs, key=int)])


def lines_of(group: Group, chunk: int) -> list[str]:
    """One line per method: accuracy and steps at the last chunk and on average, mean of seeds."""
    out = []
    for (method, floor), runs in group.items():
        last, steps = at(runs, chunk, "test_accuracy"), at(runs, chunk, "steps")
        chunks = range(1, chunk + 1)
        mean = np.mean([at(runs, k, "test_accuracy") for k in chunks])
        mean_steps = np.mean([at(runs, k, "steps") for k in chunks])
        name = method if floor == "1.0" else f"{method} {floor}"
        out.append(
            f"| {name} | {len(runs)} | {last.mean():.1f} ({'/'.join(f'{v:.1f}' for v in last)}) "
            f"| {mean:.1f} | {steps.mean():.0f} | {mean_steps:.0f} |"
        )
    return out


def summary(path: Path, figure: Path) -> None:
    """Markdown tables of every group, the figure, and what held in all of our runs."""
    everything = groups(read(path))
    for (purpose, net, lr), group in everything.items():
        chunk = min(max(run) for runs in group.values() for run in runs.values())
        print(f"\n**{purpose}: net {net}, lr {lr}, {500 * chunk} examples at the end**\n")
        print("| method, floor | seeds | test % | mean over chunks | steps | mean steps |")
        print("|---|---|---|---|---|---|")
        print("\n".join(lines_of(group, chunk)))
    check(everything.get(("grid", "norm", "0.01"), {}))
    plot(everything, figure)


def check(group: Group) -> None:
    """The ordering on the normalized net at the small learning rate, after 2,000 examples."""
    cold, warm, dash_runs = (
        group.get(k) for k in (("cold", "1.0"), ("warm", "1.0"), ("DASH", "0.3"))
    )
    if cold is None or warm is None or dash_runs is None or len(cold) < 3:
        print("\nfewer than three seeds: nothing asserted")
        return
    accuracy = [at(runs, 4, "test_accuracy") for runs in (cold, warm, dash_runs)]
    steps = [at(runs, 4, "steps").mean() for runs in (cold, warm, dash_runs)]
    assert accuracy[1].mean() + 2 < accuracy[0].mean(), accuracy
    assert accuracy[2].mean() >= accuracy[0].mean(), accuracy
    assert steps[2] < 0.6 * steps[0], steps
    assert steps[1] < steps[2], steps
    print("\nheld: warm + 2 < cold, DASH >= cold, steps(warm) < steps(DASH) < 0.6 steps(cold)")


def plot(everything: dict[tuple[str, str, str], Group], path: Path) -> None:
    from matplotlib.figure import Figure

    shown = {k: g for k, g in everything.items() if k[0] != "explore"}
    figure = Figure(figsize=(4.2 * len(shown), 6.5), layout="constrained")
    axes = figure.subplots(2, len(shown), squeeze=False)
    names = list(dict.fromkeys(m for g in shown.values() for m, _ in g))
    for column, ((purpose, net, lr), group) in enumerate(shown.items()):
        for row, quantity in enumerate(("test_accuracy", "steps")):
            axis = axes[row][column]
            chunks = range(1, min(max(run) for g in group.values() for run in g.values()) + 1)
            for (method, floor), runs in group.items():
                y = [at(runs, k, quantity).mean() for k in chunks]
                label = method if floor == "1.0" else f"{method} {floor}"
                style = "-" if method in ("cold", "warm", "DASH") else ":"
                axis.plot([500 * k for k in chunks], y, style, marker=".", label=label,
                          color=f"C{names.index(method)}")  # fmt: skip
            axis.set(xlabel="examples seen", ylabel=quantity.replace("_", " "),
                     title=f"{purpose}: {net}, lr {lr}" if row == 0 else "")  # fmt: skip
            axis.grid(alpha=0.3)
        axes[1][column].legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, fontsize=8, frameon=False
        )
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder of the IDX files")
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--figure", type=Path, default=HERE.parent / "docs/figures/warm_chunks.png")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--shard", default="0/1", help="i/n: seeds i modulo n, for parallel runs")
    parser.add_argument("--only", help="run only this purpose: grid, explore or confirm")
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
        append(args.csv, rows, purpose)
        last = rows[-1]
        print(*name.values(), last["test_accuracy"], last["steps"], flush=True)


if __name__ == "__main__":
    main()
