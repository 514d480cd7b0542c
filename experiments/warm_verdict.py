"""How often the verdict of ``warmstart.compare`` is right, on streams that did not shape it.

A net learns a first chunk, a second one of the same size arrives, and ``compare`` is asked with
some seeds and 1,000 test examples. The truth is a full retrain with each method (train on, cold,
uniform, DASH) on five fresh seeds, judged on 2,000 other examples. A verdict is right if both hold,
by the truth:

- the method that it names is within the spread of the best method: its mean accuracy is below the
  best one's by at most ``margin`` or two standard errors of their paired difference, whichever is
  more;
- where "none" itself is within that spread, it names "none" or a method that needs no more steps.

Streams differ by net (MLP, conv net, transformer), labels (clean, a fifth wrong), optimizer and
seed. Those of the half "look" may be used to change the rule; "confirm" is run once it is fixed.

    python experiments/warm_verdict.py                  # the half "look", what the CSV lacks
    python experiments/warm_verdict.py --half confirm   # the other half
    python experiments/warm_verdict.py --report         # k of n, and every stream
    python experiments/warm_verdict.py --quick          # one stream in seconds
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from bed import RESULTS, append, command_line, read, show
from torch import Tensor, nn
from warm_bed import Learner
from warm_breadth import PAGE
from warm_streams import OPTIMIZERS, Kind, new_net, stream

from warmstart import Comparison, compare
from warmstart.judge.compare import Run, verdict

CSV = RESULTS / "warm_verdict.csv"
CHOSEN = ("none", "cold", "uniform", "dash")
ASKED, FRESH, MARGIN, TARGET = (0, 1, 2), (10, 11, 12, 13, 14), 0.5, 0.99
KINDS = {
    "MLP": Kind(2, 300, 64, 20, 40),
    "conv net": Kind(2, 150, 64, 12, 30),
    "transformer": Kind(2, 200, 64, 8, 16),
}
# Rates at which a cold start does well.
RATES = {"SGD": 0.1, "AdamW": 0.003}
SEEDS = {"look": (0,), "confirm": (50,)}
COLUMNS = (
    "half", "net", "labels", "optimizer", "seed", "part", "method", "run", "accuracy", "steps",
    "converged", "seconds",
)  # fmt: skip


class Place(NamedTuple):
    """One stream."""

    net: str
    labels: str
    optimizer: str
    seed: int


def places(half: str) -> Iterator[Place]:
    """All streams of a half."""
    for seed in SEEDS[half]:
        for net, labels, optimizer in itertools.product(KINDS, ("clean", "wrong"), RATES):
            yield Place(net, labels, optimizer, seed)


def batched(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def asked(place: Place) -> dict[str, Comparison]:
    """What ``compare`` finds with a user's seeds and test set, and with fresh ones."""
    kind, rate = KINDS[place.net], RATES[place.optimizer]
    (old, new), (x, y) = stream(place.net, place.labels == "wrong", 500 + place.seed, kind)

    def make() -> nn.Module:
        return new_net(place.net)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(place.seed)
        first = make()
    optimizer = OPTIMIZERS[place.optimizer]
    generator = torch.Generator().manual_seed(place.seed)
    Learner(first, rate, generator, optimizer, kind.batch).fit(*old, kind.cold_epochs, TARGET)

    def ask(seeds: tuple[int, ...], part: slice) -> Comparison:
        return compare(
            make, first, batched(*old, kind.batch), batched(*new, kind.batch), methods=CHOSEN,
            test_data=batched(x[part], y[part], 1000), target=TARGET, max_epochs=kind.epochs,
            optimizer_fn=lambda p: with_rate(place.optimizer, p, rate), seeds=seeds, margin=MARGIN,
        )  # fmt: skip

    return {"asked": ask(ASKED, slice(1000)), "truth": ask(FRESH, slice(1000, 3000))}


def with_rate(name: str, parameters: Any, rate: float) -> torch.optim.Optimizer:
    """An optimizer from parameters, as ``compare`` asks for it."""
    if name == "SGD":
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)


def run_all(path: Path, half: str) -> None:
    """Run the streams that the CSV lacks; all rows of one at once."""
    done = {tuple(r[c] for c in ("half", *Place._fields)) for r in read(path)}
    for place in places(half):
        if (half, *map(str, place)) in done:
            continue
        start = time.process_time()
        rows = [
            {
                "half": half, **place._asdict(), "part": part, "method": r.method, "run": r.seed,
                "accuracy": f"{r.accuracy:.2f}", "steps": r.steps, "converged": int(r.converged),
                "seconds": f"{r.seconds:.3f}",
            }
            for part, result in asked(place).items()
            for r in result.runs
        ]  # fmt: skip
        append(path, rows, COLUMNS)
        print(half, *place, f"{time.process_time() - start:.1f} s", flush=True)


# --- the verdicts


def comparison(rows: list[dict[str, str]], seeds: tuple[int, ...]) -> Comparison:
    """The rows of some seeds as ``compare`` would have held them."""
    runs = [
        Run(r["method"], int(r["run"]), float(r["accuracy"]), 100.0, int(r["steps"]),
            r["converged"] == "1", 0.0, float(r["seconds"]))
        for r in rows if int(r["run"]) in seeds
    ]  # fmt: skip
    return Comparison(runs, methods=list(CHOSEN))


def judge(best: str, truth: Comparison) -> tuple[bool, str]:
    """Whether a verdict is right, and which methods are within the spread of the best."""
    of = {m: [r.accuracy for r in truth.runs if r.method == m] for m in CHOSEN}
    top = max(CHOSEN, key=lambda m: fmean(of[m]))

    def within(m: str) -> bool:
        gaps = [a - b for a, b in zip(of[top], of[m], strict=True)]
        return fmean(gaps) <= max(MARGIN, 2 * stdev(gaps) / len(gaps) ** 0.5)

    good = [m for m in CHOSEN if within(m)]
    cheap = truth.mean(best, "steps") <= truth.mean("none", "steps")
    return best in good and ("none" not in good or best == "none" or cheap), ", ".join(good)


Rows = list[dict[str, str]]


def streams(rows: Rows) -> list[tuple[tuple[str, ...], dict[str, Rows]]]:
    """Each stream's half and place, and its rows by part."""
    of: dict[tuple[str, ...], dict[str, Rows]] = {}
    for r in rows:
        parts = of.setdefault(tuple(r[c] for c in ("half", *Place._fields)), {})
        parts.setdefault(r["part"], []).append(r)
    return list(of.items())


def truth(parts: dict[str, Rows]) -> Comparison:
    """The full retrains of a stream."""
    return comparison(parts["truth"], FRESH)


def named(parts: dict[str, Rows], seeds: int) -> tuple[str, bool]:
    """The method that ``compare`` names with so many seeds, and whether it is right."""
    best, _ = verdict(comparison(parts["asked"], ASKED[:seeds]), MARGIN)
    return best, judge(best, truth(parts))[0]


def tables(path: Path) -> str:
    """Right verdicts by half and number of seeds, and every stream."""
    counts, lines = {}, []
    for place, parts in streams(read(path)):
        cells = []
        for seeds in (2, 3):
            best, right = named(parts, seeds)
            counts.setdefault((place[0], seeds), []).append(right)
            cells.append(best if right else f"{best} (wrong)")
        whole, (_, good) = truth(parts), judge("none", truth(parts))
        means = ", ".join(f"{m} {whole.mean(m, 'accuracy'):.1f}" for m in CHOSEN)
        lines.append(f"| {', '.join(place[1:])} | {' | '.join(cells)} | {good} | {means} |")
    told = [
        f"| {half} | {seeds} | {sum(right)} of {len(right)} |"
        for (half, seeds), right in counts.items()
    ]
    summary = "\n".join(["| half | seeds asked | right |", "|---|---|---|", *told])
    head = "| stream | verdict, 2 seeds | 3 seeds | within the spread of the best | true test % |"
    return "\n\n".join([summary, "\n".join([head, "|---" * 5 + "|", *lines])])


def main() -> None:
    parser = command_line(__doc__, CSV)
    parser.add_argument("--half", choices=tuple(SEEDS), default="look")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        assert {r.best for r in asked(Place("MLP", "clean", "SGD", 0)).values()} <= set(CHOSEN)
        return
    if not args.report:
        run_all(args.csv, args.half)
    show(tables(args.csv), PAGE, "verdict", args.csv == CSV)


if __name__ == "__main__":
    main()
