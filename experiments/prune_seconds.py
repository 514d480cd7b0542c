"""CPU seconds of scoring, selecting and retraining beside those of training on all the data.

The default scores by the first ten passes of a whole run; EL2N averages ten such starts, over all
passes of each where its paper takes the last alone; Dyn-Unc records one whole run. Each then trains
a fresh net on what it keeps, for as many passes as training on all the data takes. Test accuracy is
read after every pass, off the clock, so that a row says when its run first came to any accuracy.

    python experiments/prune_seconds.py                 # runs what the CSV lacks, one thread
    python experiments/prune_seconds.py --report        # rewrites the tables of the page alone

The clock is ``time.process_time``: other processes do not count, but they share the caches.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from bed import RESULTS, ROOT, append, command_line, show
from bed import read as rows_of
from numpy.typing import NDArray
from prune_bed import EPOCHS, SCORE_EPOCHS, WINDOW, Data, Trainer, load
from prune_rules import DEFAULT, METHODS

from data_prune import DualTracker, ScoreTable

CSV, PAGE = RESULTS / "prune_seconds.csv", ROOT / "docs" / "pruning_results.md"
COLUMNS = (
    "data", "damage", "ratio", "method", "seed", "kept", "damaged", "scoring", "selecting",
    "clock", "accuracy",
)  # fmt: skip
FULL, STARTS, HALF_POINT = "all the data", 10, 0.005
RATIOS, SEEDS = (0.5, 0.3), (400, 401, 402)


class Way(NamedTuple):
    """How a method comes to its scores; ``passes`` 0 is a whole run."""

    runs: int
    passes: int
    window: int
    peers: tuple[str, ...]


WAYS = {
    "random": Way(0, 0, 0, ()),
    DEFAULT: Way(1, SCORE_EPOCHS, WINDOW, ()),
    "EL2N": Way(STARTS, SCORE_EPOCHS, WINDOW, ("el2n",)),
    "Dyn-Unc": Way(1, 0, 10, ("dyn_unc",)),
}


def record(name: str, data: Data, way: Way, seed: int) -> ScoreTable:
    """Record the first passes of whole runs on all the data, and average over the runs."""
    everything, passes = torch.arange(len(data.y))[None], way.passes or EPOCHS[name]
    steps, tables = EPOCHS[name] * -(-len(data.y) // 64), []
    for start in range(way.runs):
        trainer = Trainer(name, "own", data, everything, steps, seed + 1_000 * start)
        tracker = DualTracker(len(data.y), epochs=passes, window=way.window, peers=way.peers)
        for _ in range(passes):
            for index, logits in trainer.epoch():
                tracker.update(index[0], logits[0], data.y[index[0]])
            tracker.end_epoch()
        tables.append(tracker.table())
    return ScoreTable.average(tables) if len(tables) > 1 else tables[0]


def train(name: str, data: Data, kept: torch.Tensor, seed: int) -> tuple[list[float], list[float]]:
    """Train a fresh net; CPU seconds since its start and test accuracy after every pass."""
    batch = 64 if len(kept) >= 1_000 else 32
    steps = EPOCHS[name] * -(-len(kept) // batch)
    clock, spent, seconds, accuracy = time.process_time, 0.0, [], []
    start = clock()
    trainer = Trainer(name, "own", data, kept[None], steps, 7919 + seed)
    while trainer.done < steps and trainer.epoch():
        spent += clock() - start
        seconds.append(spent)
        accuracy.append(float(trainer.accuracy()[0]))
        start = clock()
    return seconds, accuracy


def measure(name: str, damage: str, seed: int, ratios: tuple[float, ...]) -> list[dict[str, Any]]:
    """Run every method once; scores serve all ratios."""
    data, clock, rows = load(name, damage, seed), time.process_time, []
    everything = torch.arange(len(data.y))
    warm = Way(1, 2, 2, ("el2n",))
    table = record(name, data, warm, seed)  # no first call of anything is on the clock

    def row(ratio: float, method: str, kept: torch.Tensor, before: tuple[float, float]) -> None:
        seconds, accuracy = train(name, data, kept, seed)
        values = (
            name, damage, ratio, method, seed, len(kept),
            f"{data.damaged[kept].float().mean():.3f}", *(f"{t:.4f}" for t in before),
            " ".join(f"{t:.3f}" for t in seconds), " ".join(f"{a:.4f}" for a in accuracy),
        )  # fmt: skip
        rows.append(dict(zip(COLUMNS, values, strict=True)))

    row(0.0, FULL, everything, (0.0, 0.0))
    for method, way in WAYS.items():
        start = clock()
        table = record(name, data, way, seed) if way.runs else table
        scoring = clock() - start if way.runs else 0.0
        for ratio in ratios:
            start = clock()
            kept = torch.from_numpy(METHODS[method](table, ratio, seed))
            row(ratio, method, kept, (scoring, clock() - start))
    return rows


def run(path: Path, names: list[str], ratios: tuple[float, ...]) -> None:
    """Measure what the CSV does not hold, all settings of one seed before the next."""
    done = {(r["data"], r["damage"], r["seed"]) for r in rows_of(path)}
    for seed, name, damage in itertools.product(SEEDS, names, ("clean", "redrawn")):
        if (name, damage, str(seed)) in done:
            continue
        start, rows = time.perf_counter(), measure(name, damage, seed, ratios)
        append(path, rows, COLUMNS)
        print(name, damage, seed, f"{time.perf_counter() - start:.1f} s", flush=True)


# --- the tables


class Run(NamedTuple):
    """One row of the CSV: seconds before training, and (seconds, accuracy) after each pass."""

    before: float
    clock: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    def until(self, target: float) -> float:
        """All seconds until the accuracy is first at the target; NaN where it never is."""
        there = np.flatnonzero(self.accuracy >= target)
        return self.before + float(self.clock[there[0]]) if len(there) else float("nan")


def read(path: Path) -> dict[tuple[str, str, str], dict[str, dict[str, Run]]]:
    """(data, damage, ratio) -> method -> seed -> run."""
    found: dict[tuple[str, str, str], dict[str, dict[str, Run]]] = {}
    for row in rows_of(path):
        clock, accuracy = (np.array(row[c].split(), float) for c in ("clock", "accuracy"))
        one = Run(float(row["scoring"]) + float(row["selecting"]), clock, accuracy)
        place = (row["data"], row["damage"], row["ratio"])
        found.setdefault(place, {}).setdefault(row["method"], {})[row["seed"]] = one
    return found


def spread(values: list[float]) -> str:
    """Mean and (lowest to highest), of the runs that came there."""
    came = [v for v in values if v == v]
    if not came:
        return "not reached"
    low, high = f"{min(came):.1f}", f"{max(came):.1f}"
    text = f"{np.mean(came):.1f}" + (f" ({low} to {high})" if low != high else "")
    return text if len(came) == len(values) else f"{text}, {len(came)} of {len(values)} runs"


def lines(setting: str, methods: dict[str, dict[str, Run]]) -> list[str]:
    """A row a method: seconds of each part, until each of two accuracies, and the accuracy."""

    def until(rival: str) -> Callable[[str, Run], float]:
        ends = {seed: float(one.accuracy[-1]) for seed, one in methods[rival].items()}
        return lambda seed, one: one.until(ends[seed] - HALF_POINT)

    columns: tuple[Callable[[str, Run], float], ...] = (
        lambda seed, one: one.before,
        lambda seed, one: float(one.clock[-1]),
        lambda seed, one: one.before + float(one.clock[-1]),
        until(FULL),
        until(DEFAULT),
        lambda seed, one: 100 * float(one.accuracy[-1]),
        lambda seed, one: 100 * float(one.accuracy.max()),
    )
    rows = []
    for method in (FULL, *WAYS):
        runs = methods[method].items()
        cells = [spread([column(seed, one) for seed, one in runs]) for column in columns]
        rows.append(f"| {setting} | {method} | " + " | ".join(cells) + " |")
    return rows


def tables(path: Path) -> str:
    """A table for each prune ratio."""
    found, text = read(path), []
    for ratio in sorted({place[2] for place in found} - {"0.0"}, reverse=True):
        rows = [
            "| data | trained on | score and select, s | train, s | together, s | until as good as "
            "all the data, s | until as good as the default, s | accuracy, % | best pass, % |",
            "|---" * 9 + "|",
        ]
        for (name, damage, of), methods in found.items():
            if of == ratio:
                rows += lines(f"{name}, {damage}", found[name, damage, "0.0"] | methods)
        text += [f"Prune ratio {ratio}:", "\n".join(rows)]
    return "\n\n".join(text)


def quick() -> None:
    """Record as the default does, and train on half of the digits: the clock only goes forward."""
    data = load("digits", "clean", 400)
    table = record("digits", data, WAYS[DEFAULT], 400)
    kept = torch.from_numpy(METHODS[DEFAULT](table, 0.9, 400))
    seconds, accuracy = train("digits", data, kept, 400)
    assert seconds == sorted(seconds)
    assert len(seconds) == len(accuracy) == EPOCHS["digits"]


def main() -> None:
    parser = command_line(__doc__, CSV)
    parser.add_argument("--data", nargs="+", default=list(EPOCHS), choices=tuple(EPOCHS))
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        quick()
        return
    if not args.report:
        run(args.csv, args.data, tuple(args.ratios))
    show(tables(args.csv), PAGE, "seconds", args.csv == CSV)


if __name__ == "__main__":
    main()
