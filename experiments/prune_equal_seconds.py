"""As many CPU seconds for each: all the data, random, the default, and mode "dynamic".

One training for each, of as many steps as its seconds pay for: those of some passes over all the
data. What a step costs is measured in turns, plain, recorded and in mode "dynamic", the smallest of
several rounds: recording, selecting and drawing come out of the same purse.

- "default, anew" records ten passes, and trains a fresh net on what it keeps for what is left.
- "default, one run" is what ``wrap`` does: ten passes recorded, then the kept part, in one run.

    python experiments/prune_equal_seconds.py            # runs what the CSV lacks, one thread
    python experiments/prune_equal_seconds.py --report   # rewrites the table of the page alone
    python experiments/prune_equal_seconds.py --costs    # what a step of each kind takes
    python experiments/prune_equal_seconds.py --quick    # seconds, asserted
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from bed import RESULTS, ROOT, append, command_line, read, show
from prune_bed import EPOCHS, SCORE_EPOCHS, WINDOW, Data, DynamicTrainer, Trainer, load

from data_prune import DualTracker
from data_prune.report.evaluate import compare

CSV, PAGE = RESULTS / "prune_equal_seconds.csv", ROOT / "docs" / "pruning_results.md"
COLUMNS = (
    "data", "damage", "ratio", "passes", "method", "seed", "steps", "seconds", "accuracy",
)  # fmt: skip
FULL, RANDOM, ANEW, WITHIN, DYNAMIC = METHODS = (
    "all the data", "random", "default, anew", "default, one run", "dynamic",
)  # fmt: skip
RATIOS, SEEDS, ROUNDS, BATCH = (0.5, 0.7), (400, 401, 402), 3, 64
# Everything gets the seconds of so many passes over all the data; scoring alone takes ten.
DATA = ("digits", "fashion")


class Cost(NamedTuple):
    """CPU seconds of a step, and of one selection."""

    plain: float
    recorded: float
    dynamic: float
    select: float


def trainer_of(name: str, data: Data, kept: torch.Tensor, steps: int, seed: int) -> Trainer:
    """A net of its own, in the batches that a loader would give whatever is kept."""
    trainer = Trainer(name, "own", data, kept[None], steps, 7919 + seed)
    trainer.batch = BATCH
    return trainer


def record(trainer: Trainer, tracker: DualTracker, data: Data) -> None:
    """One pass, recorded."""
    for index, logits in trainer.epoch():
        tracker.update(index[0], logits[0], data.y[index[0]])
    tracker.end_epoch()


@functools.cache
def measured(name: str, ratio: float) -> Cost:
    """Time passes of each kind in turns, and take the smallest of each."""
    data = load(name, "clean", SEEDS[0])
    everything, clock = torch.arange(len(data.y)), time.process_time
    plain, scored = (trainer_of(name, data, everything, 10_000, 0) for _ in range(2))
    drawn = DynamicTrainer(name, "own", data, ratio, 10_000, 0)
    drawn.batch, kinds = BATCH, [[], [], [], []]  # type: ignore[var-annotated]
    tracker = DualTracker(len(data.y), epochs=ROUNDS + WINDOW, window=WINDOW)

    def timed(kind: int, trainer: Trainer, run: Callable[[], Any]) -> None:
        start, before = clock(), trainer.done
        run()
        kinds[kind].append((clock() - start) / max(1, trainer.done - before))

    for _ in range(ROUNDS + WINDOW):
        timed(0, plain, plain.epoch)
        timed(1, scored, lambda: record(scored, tracker, data))
        timed(2, drawn, drawn.epoch)
    table = tracker.table()
    for seed in range(ROUNDS):
        start = clock()
        table.select(ratio, seed=seed)
        kinds[3].append(clock() - start)
    return Cost(*(min(kind[1:]) for kind in kinds))


def run(
    method: str, name: str, data: Data, ratio: float, passes: int, cost: Cost, seed: int
) -> dict[str, Any]:
    """Train by one method for the seconds of some plain passes over all the data."""
    everything, clock = torch.arange(len(data.y)), time.process_time
    a_pass = -(-len(data.y) // BATCH)
    purse, scoring = passes * a_pass * cost.plain, SCORE_EPOCHS * a_pass
    left = int((purse - scoring * cost.recorded - cost.select) / cost.plain)
    steps = {ANEW: left, WITHIN: scoring + left, DYNAMIC: int(purse / cost.dynamic)}.get(
        method, passes * a_pass
    )
    start = clock()
    if method == DYNAMIC:
        trainer: Trainer = DynamicTrainer(name, "own", data, ratio, steps, 7919 + seed)
        trainer.batch = BATCH
    elif method in (ANEW, WITHIN):
        # The schedule of a run that is scored to train anew is that of training on all the data.
        planned = steps if method == WITHIN else passes * a_pass
        trainer = trainer_of(name, data, everything, planned, seed)
        tracker = DualTracker(len(data.y), epochs=SCORE_EPOCHS, window=WINDOW)
        for _ in range(SCORE_EPOCHS):
            record(trainer, tracker, data)
        kept = torch.from_numpy(tracker.table().select(ratio, seed=seed))
        if method == ANEW:
            trainer = trainer_of(name, data, kept, steps, seed + 1_000)
        trainer.kept = kept[None]
    else:
        chosen = np.random.default_rng(seed).permutation(len(data.y))
        kept = everything if method == FULL else torch.from_numpy(chosen)
        kept = kept[: round(len(data.y) * (1 - ratio))] if method == RANDOM else kept
        trainer = trainer_of(name, data, kept, steps, seed)
    while trainer.done < steps and trainer.epoch():
        pass
    seconds, accuracy = clock() - start, float(trainer.accuracy()[0])
    return {"method": method, "steps": steps, "seconds": f"{seconds:.2f}", "accuracy": accuracy}


def quick() -> None:
    """Digits with wrong labels for the seconds of 20 passes; costs are taken as all alike."""
    data, cost = load("digits", "redrawn", SEEDS[0]), Cost(1.0, 1.0, 1.0, 0.0)
    found = {
        method: run(method, "digits", data, 0.5, 20, cost, SEEDS[0])["accuracy"]
        for method in (WITHIN, DYNAMIC)
    }
    print(found)
    if found[WITHIN] < found[DYNAMIC] + 0.03:
        raise SystemExit("FAILS: with wrong labels the default is 3 points above mode dynamic")


def run_all(path: Path) -> None:
    """Run what the CSV does not hold, every setting of one ratio and seed before the next."""
    key = ("data", "damage", "ratio", "passes", "method", "seed")
    done = {tuple(row[k] for k in key) for row in read(path)}
    for ratio, seed, name, damage in itertools.product(RATIOS, SEEDS, DATA, ("clean", "redrawn")):
        passes = EPOCHS[name]
        for method in METHODS:
            place = (name, damage, 0.0 if method == FULL else ratio, passes, method, seed)
            if tuple(map(str, place)) in done:
                continue
            data, cost = load(name, damage, seed), measured(name, ratio)
            found = run(method, name, data, ratio, passes, cost, seed)
            found["accuracy"] = f"{found['accuracy']:.4f}"
            append(path, [dict(zip(key, place, strict=True)) | found], COLUMNS)
            done.add(tuple(map(str, place)))
            print(*place, found["seconds"], found["accuracy"], flush=True)


def table(path: Path) -> str:
    """Mean accuracy of each, and what mode "dynamic" is above it with half its 95 % interval."""
    found: dict[tuple[str, ...], dict[str, dict[str, float]]] = {}
    for row in read(path):
        place = (row["data"], row["damage"], row["passes"], row["ratio"])
        of = found.setdefault(place, {}).setdefault(row["method"], {})
        of[row["seed"]] = 100 * float(row["accuracy"])
    rivals = METHODS[:-1]
    lines = [
        "| data | passes | ratio | dynamic | " + " | ".join(f"- {m}" for m in rivals) + " |",
        "|---" * (4 + len(rivals)) + "|",
    ]
    for place, of in sorted(found.items()):
        name, damage, passes, ratio = place
        if DYNAMIC not in of:
            continue
        of = of | found[name, damage, passes, "0.0"]
        cells = []
        for rival in rivals:
            seeds = sorted(of[DYNAMIC].keys() & of[rival].keys())
            mine, theirs = ([of[m][s] for s in seeds] for m in (DYNAMIC, rival))
            if len(seeds) < 2:
                cells.append(f"{mine[0] - theirs[0]:+.1f} (one seed)" if seeds else "not run")
                continue
            pair = compare(mine, theirs)
            cells.append(f"{pair.difference:+.1f} ± {(pair.high - pair.low) / 2:.1f}")
        mean = np.mean(list(of[DYNAMIC].values()))
        lines.append(
            f"| {name}, {damage} | {passes} | {ratio} | {mean:.1f} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def seconds(path: Path) -> str:
    """What was really spent: each method's CPU seconds over those of all the data."""
    of: dict[tuple[str, ...], dict[str, float]] = {}
    rows = read(path)
    for row in rows:
        if row["method"] == FULL:
            of[row["data"], row["damage"], row["passes"], row["seed"]] = float(row["seconds"])
    ratios: dict[str, list[float]] = {m: [] for m in METHODS[1:]}
    for row in rows:
        if row["method"] != FULL:
            base = of[row["data"], row["damage"], row["passes"], row["seed"]]
            ratios[row["method"]].append(float(row["seconds"]) / base)
    return "\n".join(
        f"{m}: {np.median(r):.2f} ({min(r):.2f} to {max(r):.2f}) of the seconds of all the data"
        for m, r in ratios.items()
        if r
    )


def main() -> None:
    parser = command_line(__doc__, CSV)
    parser.add_argument("--costs", action="store_true", help="time the steps alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        quick()
        return
    if args.costs:
        for name, ratio in itertools.product(DATA, RATIOS):
            print(
                name,
                ratio,
                *(f"{k} {1e3 * v:.2f} ms" for k, v in measured(name, ratio)._asdict().items()),
            )
        return
    if not args.report:
        run_all(args.csv)
    show(f"{table(args.csv)}\n\n{seconds(args.csv)}", PAGE, "equal seconds", args.csv == CSV)


if __name__ == "__main__":
    main()
