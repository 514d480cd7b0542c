"""A stream's retrains for a quarter of their operations: dynamic pruning, a shrink, and Muon.

Five chunks arrive: Fashion-MNIST and digits for a conv net, tweets for a transformer. The cold
start trains a fresh net by AdamW, whose rate falls to zero, on all that has arrived, after each
chunk. Both are tuned at the last chunk: the better of two rates on one seed, at 16 passes; then, on
two seeds, of 4, 8, 16 and 32 passes the fewest whose mean accuracy is within .3 points of the best
of all (its plateau).

A combination takes the cold start's first net. At every later chunk it shrinks or resets the net
and trains for so many operations that the whole stream, first chunk included, takes 25 % of the
cold starts'. Counted are products and convolutions, forward and back, by torch's counter; a pass of
DASH; Muon's products by the engine's plan, symmetric ones as whole ones. Dynamic pruning reads the
losses of the training passes and adds none. Every optimizer, shrink and prune ratio runs on one
tuning seed, the four best at a second rate. The best of all and the best with all three parts are
confirmed on unseen seeds, beside a quarter's cold and warm start by AdamW on all the data.

    python experiments/warm_quarter.py            # every run that the CSV does not hold yet
    python experiments/warm_quarter.py --report   # the page's tables, from the CSV
    python experiments/warm_quarter.py --quick    # one short stream, with assertions
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import time
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from bed import RESULTS, append, command_line, read, show
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from warm_bed import accuracy
from warm_breadth import PAGE, told
from warm_streams import OPTIMIZERS, Data, Kind, Stream, new_net, stream

from data_prune import DualTracker
from data_prune.load.dynamic import EVERYTHING, FULL_SHARE, draw
from data_prune.select.noise import epoch_seed
from torch_specgd import param_groups
from torch_specgd.triton_kernels import plan
from warmstart.judge.runs import METHODS, Setting

CSV = RESULTS / "warm_quarter.csv"
# Examples, net, and chunks of so many.
SETS = {
    "digits": ("digits", "conv net", Kind(5, 200, 64, 0, 0)),
    "Fashion-MNIST": ("MLP", "conv net", Kind(5, 240, 64, 0, 0)),
    "text": ("transformer", "transformer", Kind(5, 240, 64, 0, 0)),
}
PASSES, FIRST_PASSES, QUARTER, POINTS = (4, 8, 16, 32), 16, 0.25, 0.3
RATES = {"AdamW": (0.003, 0.01), "Muon": (0.01, 0.003)}
SHRINKS, RATIOS = ("none", "cold", "uniform", "dash"), (0.0, 0.5)
TUNING, SEEDS = (0, 1), (10, 11, 12)
COLUMNS = (
    "data", "part", "optimizer", "shrink", "ratio", "rate", "first", "passes", "seed",
    "accuracy", "mean_accuracy", "flops",
)  # fmt: skip


class Run(NamedTuple):
    """One run over the stream, or of a cold start on its last chunk (part "plateau").

    Attributes:
        data: Of ``SETS``.
        part: "plateau", "cold", "search" or "quarter".
        optimizer: Of ``OPTIMIZERS``.
        shrink: What is done before each retrain, of ``warmstart``'s methods.
        ratio: Of the well-learned examples that a pass leaves out.
        rate: At the start of a retrain.
        first: The same for the first chunk, by AdamW.
        passes: Of a cold start over all examples, to which operations are compared.
        seed: Of examples, order and weights.
    """

    data: str
    part: str
    optimizer: str
    shrink: str
    ratio: float
    rate: float
    first: float
    passes: int
    seed: int


@functools.cache
def flops_of(data: str) -> tuple[float, float]:
    """Operations of one example, forward and back, and of a step's orthogonalizations."""
    model, (x, y) = new_net(SETS[data][1]), given(data, 0).test
    with FlopCounterMode(display=False) as counter:
        cross_entropy(model(x[:64]), y[:64]).backward()
    groups = [g["params"] for g in param_groups(model).unnamed() if g["use_muon"]]
    shapes = [(len(p), p[0].numel()) for p in itertools.chain(*groups)]
    return counter.get_total_flops() / 64, sum(2.0 * plan(shape).flops() for shape in shapes)


@functools.lru_cache(4)
def given(data: str, seed: int) -> Stream:
    """The stream of a seed."""
    examples, _, shape = SETS[data]
    return stream(examples, False, 300 + seed, shape)


def fresh(data: str, seed: int, draw: int) -> nn.Module:
    """A new net; the draw tells those of one stream apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 * seed + draw)
        return new_net(SETS[data][1])


def train(run: Run, model: nn.Module, data: Data, budget: float, seed: int) -> float:
    """Train until a budget of operations is spent; return what was spent."""
    (x, y), (example, step) = data, flops_of(run.data)
    step, batch = step if run.optimizer == "Muon" else 0.0, SETS[run.data][2].batch
    optimizer = OPTIMIZERS[run.optimizer](model, run.rate)
    tracker = DualTracker(len(y), epochs=100_000, window=2)
    order, spent = torch.Generator().manual_seed(seed), 0.0
    model.train()
    while spent < budget:
        drawn, members = EVERYTHING, torch.arange(len(y))
        if run.ratio and tracker.epoch and spent < (1 - FULL_SHARE) * budget:
            drawn = draw(tracker.last_seen(), run.ratio, epoch_seed(seed, tracker.epoch))
        if drawn.members is not None:
            members = torch.from_numpy(drawn.members)
        for index in members[torch.randperm(len(members), generator=order)].split(batch):
            for group in optimizer.param_groups:
                group["lr"] = 0.5 * run.rate * (1 + math.cos(math.pi * min(1.0, spent / budget)))
            logits = model(x[index])
            losses = cross_entropy(logits, y[index], reduction="none")
            optimizer.zero_grad(set_to_none=True)
            (losses * drawn.weights(index)).mean().backward()
            optimizer.step()
            if run.ratio:
                tracker.update(index, logits.detach(), y[index])
            spent += example * len(index) + step
            if spent >= budget:
                break
        if run.ratio:
            tracker.end_epoch()
    return spent


FIRST: dict[tuple[object, ...], tuple[nn.Module, float]] = {}


def first_net(run: Run) -> tuple[nn.Module, float]:
    """The cold start's net for the first chunk, trained once, and its operations."""
    cold = run._replace(part="cold", optimizer="AdamW", shrink="cold", ratio=0.0, rate=run.first)
    if cold not in FIRST:
        FIRST.clear()
        model, data = fresh(run.data, run.seed, 0), given(run.data, run.seed).chunks[0]
        budget = run.passes * len(data[1]) * flops_of(run.data)[0]
        FIRST[cold] = model, train(cold, model, data, budget, run.seed)
    return copy.deepcopy(FIRST[cold])


def execute(run: Run) -> dict[str, object]:
    """Train over the stream, or at its last chunk alone; the columns of a row."""
    found, example = given(run.data, run.seed), flops_of(run.data)[0]
    arrived = range(1, len(found.chunks) + 1)
    # What a later chunk may take of its cold start, if the first was whole and all take a quarter.
    share = 1.0
    if run.part in ("search", "quarter"):
        share = (QUARTER * sum(arrived) - 1) / (sum(arrived) - 1)
    model, total = (fresh(run.data, run.seed, 0), 0.0) if run.part == "plateau" else first_net(run)
    accuracies = []
    for chunks in arrived[-1:] if run.part == "plateau" else arrived:
        x, y = (torch.cat(part) for part in zip(*found.chunks[:chunks], strict=True))
        if chunks > 1:
            own = functools.partial(fresh, run.data, run.seed, chunks)
            setting = Setting(own, cross_entropy, run.seed)
            model = METHODS[run.shrink](model, [(x, y)], setting) or model
            spent = example * len(y) if run.shrink == "dash" else 0.0
            budget = share * run.passes * len(y) * example
            total += spent + train(run, model, (x, y), budget - spent, run.seed + chunks)
        accuracies.append(accuracy(model, *found.test))
    return {
        **run._asdict(), "accuracy": f"{accuracies[-1]:.2f}",
        "mean_accuracy": f"{fmean(accuracies):.2f}", "flops": f"{total:.4g}",
    }  # fmt: skip


# --- the runs


Row = dict[str, str]


def run_of(row: Row) -> Run:
    """The run that a row of the CSV tells of."""
    kinds = (str, str, str, str, float, float, float, int, int)
    return Run(*(kind(row[c]) for kind, c in zip(kinds, Run._fields, strict=True)))  # type: ignore[arg-type]


def plateau(done: dict[Run, float], data: str) -> tuple[list[Run], float, int]:
    """Tuning runs of the cold start that are missing; without any, its rate and passes."""
    first = Run(data, "plateau", "AdamW", "cold", 0.0, 0.0, 0.0, FIRST_PASSES, TUNING[0])
    rated = [first._replace(rate=rate) for rate in RATES["AdamW"]]
    missing = [run for run in rated if run not in done]
    if missing:
        return missing, 0.0, 0
    best = max(rated, key=lambda run: done[run])
    ladder = [[best._replace(passes=p, seed=s) for s in TUNING] for p in PASSES]
    missing = [run for runs in ladder for run in runs if run not in done]
    if missing:
        return missing, 0.0, 0
    of = {runs[0].passes: fmean(done[run] for run in runs) for runs in ladder}
    return [], best.rate, min(p for p, mean in of.items() if mean >= max(of.values()) - POINTS)


def left(rows: list[Row], data: str) -> list[Run]:
    """The next runs: plateau, search, the four best at another rate, then unseen seeds."""
    done = {run_of(row): float(row["accuracy"]) for row in rows}
    missing, rate, passes = plateau(done, data)
    if missing:
        return missing
    rates = {**RATES, "AdamW": tuple(sorted(RATES["AdamW"], key=lambda r: r != rate))}
    wanted = [
        Run(data, "search", optimizer, shrink, ratio, rates[optimizer][0], rate, passes, TUNING[0])
        for ratio in RATIOS for optimizer in rates for shrink in SHRINKS
    ]  # fmt: skip
    if done.keys() >= set(wanted):
        four = sorted(wanted, key=lambda run: -done[run])[:4]
        wanted += [run._replace(rate=rates[run.optimizer][1]) for run in four]
    if done.keys() >= set(wanted):
        best = max(wanted, key=lambda run: done[run])
        all_three = [r for r in wanted if r.ratio and r.optimizer == "Muon" and r.shrink != "none"]
        three = max(all_three, key=lambda run: done[run])
        cold = Run(data, "cold", "AdamW", "cold", 0.0, rate, rate, passes, 0)
        small = cold._replace(part="quarter")
        found = (run._replace(part="quarter") for run in (best, three))
        each = (cold, *found, small, small._replace(shrink="none"))
        wanted = [run._replace(seed=seed) for seed in SEEDS for run in dict.fromkeys(each)]
    return [run for run in wanted if run not in done]


def run_all(path: Path, sets: tuple[str, ...]) -> None:
    """Run what the CSV lacks, a row as soon as it is there."""
    for data in sets:
        while runs := left(read(path), data):
            for run in runs:
                start, row = time.process_time(), execute(run)
                append(path, [row], COLUMNS)
                print(*row.values(), f"{time.process_time() - start:.1f} s", flush=True)


# --- the tables


def kind_of(run: Run) -> str:
    """What a row of the table is there for."""
    if run.part == "cold":
        return "cold start"
    if run.ratio and run.optimizer == "Muon" and run.shrink != "none":
        return "all three"
    plain = run.optimizer == "AdamW" and not run.ratio and run.shrink in ("none", "cold")
    return "control" if plain and run.rate == run.first else "best of the search"


def tables(path: Path) -> str:
    """For each data set the cold start, what was found, and the controls, on unseen seeds."""
    rows = read(path)
    lines = [
        "| data | after each chunk | test % at the end | against cold starts | mean over chunks, "
        "against cold | operations |",
        "|---" * 6 + "|",
    ]
    for data in SETS:
        of: dict[Run, dict[int, Row]] = {}
        for row in rows:
            run = run_of(row)
            if run.data == data and run.part in ("cold", "quarter"):
                of.setdefault(run._replace(seed=0), {})[run.seed] = row
        cold = next((v for k, v in of.items() if k.part == "cold"), {})
        for run, own in of.items():
            seeds = sorted(own.keys() & cold.keys())
            gains = {
                c: [float(own[s][c]) - float(cold[s][c]) for s in seeds]
                for c in ("accuracy", "mean_accuracy")
            }
            share = fmean(float(own[s]["flops"]) / float(cold[s]["flops"]) for s in seeds)
            what = f"{kind_of(run)}: {run.shrink}, {run.optimizer} at {run.rate:g}"
            what += f", dynamic {run.ratio}" if run.ratio else ""
            if run.part == "cold":
                what += f", {run.passes} passes"
            compared = (
                ["", ""] if run.part == "cold" or len(seeds) < 2 else map(told, gains.values())
            )
            mean = fmean(float(own[s]["accuracy"]) for s in seeds)
            lines.append(
                f"| {data} | {what} | {mean:.1f} | {' | '.join(compared)} | {100 * share:.0f} % |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = command_line(__doc__, CSV)
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=tuple(SETS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        cold = Run("digits", "cold", "AdamW", "cold", 0.0, 0.01, 0.01, 4, 0)
        small = cold._replace(part="quarter", optimizer="Muon", shrink="dash", ratio=0.5)
        spent = [float(execute(run)["flops"]) for run in (cold, small)]
        # A batch at the end of each of four retrains may go beyond the budget.
        assert spent[1] < 0.35 * spent[0], spent
        return
    if not args.report:
        run_all(args.csv, tuple(args.sets))
    show(tables(args.csv), PAGE, "quarter", args.csv == CSV)


if __name__ == "__main__":
    main()
