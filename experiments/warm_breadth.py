"""Warm starts in 18 settings: three nets, three optimizers, clean and wrong labels, tuned rates.

An MLP on Fashion-MNIST (4 chunks of 250), a conv net with BatchNorm on hard Fashion-MNIST (3 of
200) and a transformer on tweets (20 of 40) train after each chunk on all that has arrived, until
99 % of it is fitted or for 20, 20 and 5 passes; a cold start, which has no past, may take 60, 60
and 30. Where labels are wrong, a fifth is drawn anew. A method is applied between two chunks, and
every optimizer starts from nothing, as in ``warmstart.compare``. Each method chooses among three
rates by the accuracy at the stream's end on seed 0, for each net, optimizer and kind of labels; the
other seeds draw other examples and weights, and only these are in the tables. Seconds are processor
time of the last chunk, with the method's own passes.

    python experiments/warm_breadth.py             # every run that the CSV does not hold yet
    python experiments/warm_breadth.py --report    # the page's tables, from the CSV
    python experiments/warm_breadth.py --quick     # two runs in seconds, with assertions
"""

from __future__ import annotations

import copy
import itertools
import time
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from bed import RESULTS, ROOT, append, command_line, mean_and_error, read, show
from torch.nn.functional import cross_entropy
from warm_bed import Learner
from warm_streams import KINDS, OPTIMIZERS, Stream, new_net, stream

from warmstart.judge.runs import METHODS, Setting

CSV, PAGE = RESULTS / "warm_breadth.csv", ROOT / "docs" / "warmstart_results.md"
CHOSEN = ("none", "cold", "uniform", "fire", "dash")
RATES = {"SGD": (0.03, 0.1, 0.3), "AdamW": (0.001, 0.003, 0.01), "Muon": (0.001, 0.003, 0.01)}
LABELS, SEEDS, TARGET = ("clean", "wrong"), (1, 2, 3), 0.99
COLUMNS = (
    "net", "labels", "optimizer", "method", "rate", "seed", "accuracy", "fitted", "steps",
    "seconds", "method_seconds", "stream_steps",
)  # fmt: skip


class Job(NamedTuple):
    """One run; the names of its columns."""

    net: str
    labels: str
    optimizer: str
    method: str
    rate: float
    seed: int


FIRST: dict[tuple[Any, ...], tuple[Learner, int]] = {}


def new_learner(job: Job, draw: int) -> Learner:
    """A fresh net; the draw tells those of one run apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 * job.seed + draw)
        model = new_net(job.net)
    generator = torch.Generator().manual_seed(7919 * job.seed + draw)
    return Learner(model, job.rate, generator, OPTIMIZERS[job.optimizer], KINDS[job.net].batch)


def fit(learner: Learner, given: Stream, chunks: int, epochs: int) -> tuple[int, float]:
    """Train on the first chunks."""
    x, y = (torch.cat(part) for part in zip(*given.chunks[:chunks], strict=True))
    return learner.fit(x, y, epochs, TARGET)


def after_first(job: Job, given: Stream) -> tuple[Learner, int]:
    """The net that has learned the first chunk, trained once for all methods."""
    key = (job.net, job.labels, job.optimizer, job.rate, job.seed)
    if key not in FIRST:
        FIRST.clear()
        learner = new_learner(job, 0)
        FIRST[key] = learner, fit(learner, given, 1, KINDS[job.net].cold_epochs)[0]
    return copy.deepcopy(FIRST[key])


def run(job: Job) -> dict[str, Any]:
    """Train over the whole stream; what came out at its end."""
    kind, given = KINDS[job.net], stream(job.net, job.labels == "wrong", job.seed)
    learner, total = (new_learner(job, 0), 0) if job.method == "cold" else after_first(job, given)
    # A cold start does not depend on what was trained before.
    for chunks in range(kind.chunks if job.method == "cold" else 2, kind.chunks + 1):
        start = time.process_time()
        batches = [
            batch
            for x, y in given.chunks[:chunks]
            for batch in zip(x.split(kind.batch), y.split(kind.batch), strict=True)
        ]

        def fresh(draw: int = chunks) -> torch.nn.Module:
            return new_learner(job, draw).model

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            setting = Setting(fresh, cross_entropy, job.seed)
            learner.model = METHODS[job.method](learner.model, batches, setting) or learner.model
        cost = time.process_time() - start
        learner.fresh_optimizer()
        epochs = kind.cold_epochs if job.method == "cold" else kind.epochs
        steps, fitted = fit(learner, given, chunks, epochs)
        seconds, total = time.process_time() - start, total + steps
    return {
        **job._asdict(), "accuracy": f"{learner.test(*given.test):.2f}",
        "fitted": f"{100 * fitted:.1f}", "steps": steps, "seconds": f"{seconds:.3f}",
        "method_seconds": f"{cost:.3f}", "stream_steps": total,
    }  # fmt: skip


# --- the runs


def job_of(row: dict[str, str]) -> Job:
    return Job(*(row[c] for c in Job._fields[:4]), float(row["rate"]), int(row["seed"]))  # type: ignore[arg-type]


def tuned(rows: list[dict[str, str]]) -> dict[tuple[str, ...], float]:
    """(net, labels, optimizer, method) -> the rate with the best accuracy on seed 0."""
    of: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for row in rows:
        job = job_of(row)
        if job.seed == 0:
            of.setdefault(job[:4], []).append((float(row["accuracy"]), job.rate))
    return {k: max(v)[1] for k, v in of.items() if len(v) == len(RATES[k[2]])}


def left(rows: list[dict[str, str]], nets: tuple[str, ...]) -> list[Job]:
    """Runs that are missing: tuning, then one unseen seed after another."""
    done, rates = {job_of(row) for row in rows}, tuned(rows)
    tuning = [
        Job(net, labels, optimizer, method, rate, 0)
        for net, labels, optimizer in itertools.product(nets, LABELS, OPTIMIZERS)
        for rate in RATES[optimizer]
        for method in CHOSEN
    ]
    missing = [job for job in tuning if job not in done]
    if missing:
        return missing
    unseen = [
        Job(net, labels, optimizer, method, rates[net, labels, optimizer, method], seed)
        for seed in SEEDS
        for net, labels, optimizer in itertools.product(nets, LABELS, OPTIMIZERS)
        for method in sorted(CHOSEN, key=lambda m: rates[net, labels, optimizer, m])
    ]
    return [job for job in unseen if job not in done]


def run_all(path: Path, nets: tuple[str, ...]) -> None:
    """Run what the CSV lacks."""
    while jobs := left(read(path), nets):
        for job in jobs:
            row = run(job)
            append(path, [row], COLUMNS)
            print(*job, row["accuracy"], row["steps"], row["seconds"], flush=True)


# --- the tables


Cells = dict[tuple[str, ...], dict[int, dict[str, str]]]


def told(values: list[float]) -> str:
    """Mean and standard error, signed."""
    mean, error = mean_and_error(values)
    return f"{mean:+.1f} ± {error:.1f}"


def of_methods(of: Cells, place: tuple[str, ...]) -> list[str]:
    """A row's cells: a warm start's accuracy, the others' difference to it, and seconds."""
    warm = of[(*place, "none")]
    cells = [f"{fmean(float(r['accuracy']) for r in warm.values()):.1f}"]
    for method in CHOSEN[1:]:
        own = of.get((*place, method), {})
        both = sorted(own.keys() & warm.keys())
        gains = [float(own[s]["accuracy"]) - float(warm[s]["accuracy"]) for s in both]
        cells.append(told(gains) if len(gains) > 1 else f"{gains[0]:+.1f}" if gains else "")
    for method in ("none", "cold", "dash"):
        spent = [float(r["seconds"]) for r in of.get((*place, method), {}).values()]
        cells.append(f"{fmean(spent):.2f}" if spent else "")
    return cells


def tables(path: Path) -> str:
    """A table for each net: a row for each optimizer and kind of labels, unseen seeds alone."""
    of: Cells = {}
    for row in read(path):
        job = job_of(row)
        if job.seed:
            of.setdefault(job[:4], {})[job.seed] = row
    text = []
    for net in KINDS:
        names = ["warm, %", *CHOSEN[1:], "warm, s", "cold, s", "dash, s"]
        lines = [f"| optimizer | labels | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
        lines += [
            f"| {optimizer} | {labels} | {' | '.join(of_methods(of, (net, labels, optimizer)))} |"
            for labels, optimizer in itertools.product(LABELS, OPTIMIZERS)
            if (net, labels, optimizer, "none") in of
        ]
        if len(lines) > 2:
            text += [f"**{net}**", "\n".join(lines)]
    return "\n\n".join(text)


def main() -> None:
    parser = command_line(__doc__, CSV)
    parser.add_argument("--only", choices=tuple(KINDS), help="runs of one net alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        for method in ("none", "dash"):
            row = run(Job("MLP", "clean", "AdamW", method, 0.003, 0))
            assert 50 < float(row["accuracy"]) < 100, row
        return
    if not args.report:
        run_all(args.csv, (args.only,) if args.only else tuple(KINDS))
    show(tables(args.csv), PAGE, "breadth", args.csv == CSV)


if __name__ == "__main__":
    main()
