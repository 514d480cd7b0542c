"""What a shrink forgets: wrong labels, as the paper says, or clean ones as well.

A small net learns 1,000 images by heart, a fifth of them with wrong labels. Another 1,000 arrive,
of the same kind. One method is applied, and training goes on with both for 50 steps. Printed is the
share of the first 1,000 images that still get the label they were given, for clean and for wrong
labels; a method that forgets noise and keeps features loses the second and keeps the first.
BatchNorm takes its statistics from the images that are judged, since a shrink leaves old ones.

    python experiments/warm_mechanism.py             # every run that the CSV does not hold yet
    python experiments/warm_mechanism.py --summary   # table and figure from the CSV
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean, stdev

import torch
from bed import COLORS, RESULTS, append, pyplot, read, save_figure
from torch import Tensor
from torch.nn.functional import cross_entropy
from warm_bed import DEFAULT_DATA, Learner, conv_net, hard_fashion_mnist
from warm_methods import dash, dash_shuffled, dash_wrong_sign, nothing

from warmstart import dash_shrink

CSV = RESULTS / "warm_mechanism.csv"
FIELDS = ("net", "seed", "method", "step", "clean", "wrong", "corrected", "train_accuracy")
EXAMPLES, WRONG, STEPS = 1000, 0.2, (0, 5, 10, 20, 30, 40, 50)
# (learning rate, floor): those of the expanding chunks.
NETS = {"norm": (0.01, 0.3), "plain": (0.03, 0.7)}
Seen = list[tuple[Tensor, Tensor]]


def uniform_matched(learner: Learner, seen: Seen, floor: float, seed: int) -> None:
    """Scale each tensor to the norm that DASH would leave it, all of its units alike."""
    report = dash_shrink(learner.model, seen, floor=floor, alpha=0.3, dry_run=True)
    with torch.no_grad():
        for row in report.rows:
            ratio = row.norm_after / row.norm_before if row.norm_before else 1.0
            learner.model.get_parameter(row.name).mul_(ratio)


METHODS: dict[str, Callable[..., None]] = {
    "nothing": nothing,
    "DASH": dash,
    "uniform, DASH's norms": uniform_matched,
    "DASH, shuffled factors": dash_shuffled,
    "DASH, wrong sign": dash_wrong_sign,
}


def noisy(y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return labels of which a fifth is wrong, and which are."""
    wrong = torch.rand(len(y), generator=generator) < WRONG
    shift = torch.randint(1, 10, (len(y),), generator=generator)
    return torch.where(wrong, (y + shift) % 10, y), wrong


@torch.no_grad()
def shares(learner: Learner, x: Tensor, given: Tensor, true: Tensor) -> dict[str, float]:
    """Percent of clean and of wrong labels that are fitted, and of wrong ones seen through."""
    model = copy.deepcopy(learner.model).train()
    predicted = model(x).argmax(1)
    wrong = given != true
    fitted = (predicted == given).float()
    return {
        "clean": 100 * float(fitted[~wrong].mean()),
        "wrong": 100 * float(fitted[wrong].mean()),
        "corrected": 100 * float((predicted == true).float()[wrong].mean()),
    }


def run(
    net: str, seed: int, data: tuple[Tensor, Tensor], examples: int = EXAMPLES,
    max_epochs: int = 400,
) -> Iterator[dict[str, object]]:  # fmt: skip
    """One learner that has memorized its labels, every method on a copy of it; a row per look."""
    lr, floor = NETS[net]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(data[0]), generator=generator)[: 2 * examples]
    x, true = data[0][chosen], data[1][chosen]
    given, _ = noisy(true, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = conv_net(net == "norm")
    first = Learner(model, lr, torch.Generator().manual_seed(seed))
    old = (x[:examples], given[:examples])
    _, train = first.fit(*old, max_epochs=max_epochs)
    seen = [old, (x[examples:], given[examples:])]
    for method, apply in METHODS.items():
        learner = copy.deepcopy(first)
        learner.fresh_optimizer()
        apply(learner, seen, floor, seed)
        learner.model.train()
        batches = torch.Generator().manual_seed(seed)
        for step in range(STEPS[-1] + 1):
            if step in STEPS:
                look = shares(learner, *old, true[:examples])
                yield {
                    "net": net, "seed": seed, "method": method, "step": step,
                    **{k: round(v, 2) for k, v in look.items()},
                    "train_accuracy": round(100 * train, 2),
                }  # fmt: skip
            index = torch.randint(len(x), (128,), generator=batches)
            learner.optimizer.zero_grad(set_to_none=True)
            cross_entropy(learner.model(x[index]), given[index]).backward()
            learner.optimizer.step()


def of(rows: list[dict[str, str]], net: str, method: str, step: int, column: str) -> list[float]:
    """Return one number for each seed."""
    chosen = [r for r in rows if (r["net"], r["method"], r["step"]) == (net, method, str(step))]
    return [float(r["clean"]) - float(r["wrong"]) if column == "gap" else float(r[column])
            for r in chosen]  # fmt: skip


def told(values: list[float]) -> str:
    """Return mean and standard error."""
    error = f" ± {stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{error}"


def tables(rows: list[dict[str, str]]) -> str:
    """Clean / wrong labels that are fitted, in percent (difference ± standard error)."""
    lines: list[str] = []
    for net in dict.fromkeys(r["net"] for r in rows):
        seeds = len({r["seed"] for r in rows if r["net"] == net})
        lines.append(f"\n**net {net}, lr {NETS[net][0]}, floor {NETS[net][1]}, {seeds} seeds**\n")
        lines.append("| method | right after | 10 steps | 50 steps | wrong ones corrected at 50 |")
        lines.append("|---|---|---|---|---|")
        for method in METHODS:
            cells = [
                f"{fmean(of(rows, net, method, step, 'clean')):.1f} / "
                f"{fmean(of(rows, net, method, step, 'wrong')):.1f} "
                f"({told(of(rows, net, method, step, 'gap'))})"
                for step in (0, 10, 50)
            ]
            cells.append(told(of(rows, net, method, 50, "corrected")))
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines).strip()


def summary(path: Path, figure: str) -> None:
    """Print the table and draw the figure."""
    rows = read(path)
    print(tables(rows))
    plot(rows, list(dict.fromkeys(r["net"] for r in rows)), figure)


def plot(rows: list[dict[str, str]], nets: list[str], name: str) -> None:
    """Draw clean and wrong labels side by side, one row of panels for each net."""
    size = (9, 3.4 * len(nets))
    figure, axes = pyplot().subplots(
        len(nets), 2, squeeze=False, sharey=True, sharex=True, figsize=size
    )
    for net, pair in zip(nets, axes, strict=True):
        for axis, column in zip(pair, ("clean", "wrong"), strict=True):
            for method in METHODS:
                values = [of(rows, net, method, step, column) for step in STEPS]
                error = [stdev(v) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in values]
                axis.errorbar(STEPS, [fmean(v) for v in values], error, marker=".", capsize=2,
                              label=method, color=COLORS[method])  # fmt: skip
            kind = "BatchNorm" if net == "norm" else "no normalization"
            axis.set(title=f"{column} labels, {kind}", ylim=(0, 103))
            axis.grid(alpha=0.3)
        pair[0].set_ylabel("still fitted (%)")
    for axis in axes[-1]:
        axis.set_xlabel("steps after the shrink")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder of the IDX files")
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--figure", default="warm_mechanism", help="its name in docs/figures")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--quick", action="store_true", help="40 images, no files")
    args = parser.parse_args()
    if args.quick:
        torch.set_num_threads(1)
        x, y, _, _ = hard_fashion_mnist(args.data, pool=400)
        rows = list(run("norm", 0, (x, y), examples=100, max_epochs=40))
        before, after = (
            r["clean"] for r in rows if r["step"] == 0 and r["method"] in ("nothing", "DASH")
        )
        assert before >= after, rows
        return
    if not args.summary:
        torch.set_num_threads(1)
        x, y, _, _ = hard_fashion_mnist(args.data)
        done = {(r["net"], r["seed"]) for r in read(args.csv)}
        for seed in range(args.seeds):
            for net in NETS:
                if (net, str(seed)) not in done:
                    rows = list(run(net, seed, (x, y)))
                    append(args.csv, rows, FIELDS)
                    print(net, seed, rows[-1]["train_accuracy"], flush=True)
    summary(args.csv, args.figure)


if __name__ == "__main__":
    main()
