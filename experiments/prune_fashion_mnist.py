"""Which pruning methods beat random on Fashion-MNIST, at equal optimizer steps.

One scoring run per seed (20 early epochs of a 130-epoch schedule) records DUAL and its peers from
the same forward passes. Every method then keeps 1 - r of the training set, and a fresh network is
trained on it from scratch, always for the same number of steps; the accuracy is that of the last
step on the test set. One row is appended to the CSV after every run, and a run whose row is
there is not repeated, so the program can be stopped and started at will.

    python experiments/prune_fashion_mnist.py                # the whole grid, half an hour
    python experiments/prune_fashion_mnist.py --noise 0.2    # 20 % of the labels redrawn
    python experiments/prune_fashion_mnist.py --quick        # one minute, with assertions
    python experiments/prune_fashion_mnist.py --report       # table and figure from the CSV

Data: Debian's package dataset-fashion-mnist, or any folder with the four IDX files (--data).
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from pathlib import Path

import numpy as np
import torch
from bed import COLORS, RESULTS, ROOT, append, fashion_mnist, pyplot, replace_between, save_figure
from bed import FASHION as PACKAGED
from bed import read as rows_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from data_prune import DualTracker, ScoreTable

PAGE = ROOT / "docs" / "pruning_results.md"
SCORES = ROOT / "experiments" / "prune_scores"
RATIOS = (0.9, 0.8, 0.7, 0.5, 0.3)
METHODS: dict[str, dict] = {
    "random": {"method": "random"},
    "EL2N": {"method": "top", "by": "el2n"},
    "forgetting": {"method": "top", "by": "forgetting"},
    "AUM": {"method": "top", "by": "aum"},
    "Dyn-Unc": {"method": "top", "by": "dyn_unc"},
    "CCS": {"method": "ccs"},
    "DUAL top-k": {"method": "top"},
    "DUAL + Beta": {"method": "beta", "c_d": 4.0},
    "DUAL + Beta, auto, per class": {"method": "beta", "c_d": "auto", "per_class": True},
    "default": {},
}
PEERS = ("el2n", "forgetting", "aum", "dyn_unc")
COLUMNS = (
    "part", "noise", "method", "prune_ratio", "seed", "steps", "accuracy", "kept",
    "mean_prob", "wrong_labels", "rarest_to_commonest", "seconds",
)  # fmt: skip


def load_idx(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train images (N, 1, 28, 28) in [0, 1], train labels, test images, test labels."""
    arrays: list[Tensor] = []
    for split in ("train", "t10k"):
        images, labels = fashion_mnist(split, folder)
        pixels = torch.from_numpy(images[:, None].astype(np.float32) / 255)
        arrays += [pixels, torch.from_numpy(labels)]
    return tuple(arrays)  # type: ignore[return-value]


def load_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's digits, 8x8, in the same form: what --quick takes without the package."""
    from sklearn.datasets import load_digits as digits

    data = digits()
    x = torch.from_numpy(data.images.astype(np.float32) / 16)[:, None]
    x = nn.functional.interpolate(x, size=(28, 28), mode="bilinear")
    y = torch.from_numpy(data.target.astype(np.int64))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    return x[train], y[train], x[test], y[test]


def network() -> nn.Module:
    """Three 3x3 convolutions of stride 2 (8, 16, 32): small enough for hundreds of runs."""

    def block(i: int, o: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]

    layers = [*block(1, 8), *block(8, 16), *block(16, 32)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, 10))


def augment(x: Tensor, g: torch.Generator) -> Tensor:
    """Flip each image with probability 1/2, shift the batch by up to two pixels."""
    flip = torch.rand(len(x), generator=g) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    dy, dx = torch.randint(-2, 3, (2,), generator=g).tolist()
    return torch.roll(x, (dy, dx), (-2, -1))


def part_of(arrays: tuple[Tensor, ...], part: str) -> tuple[Tensor, ...]:
    """The part of the training set that reports, or the part on which rules were found.

    "report": the first 20,000 images, judged on the test set. "develop": the next 20,000, judged
    on the 5,000 after them. The two share no image.
    """
    x, y, x_test, y_test = arrays
    if part == "report":
        return x[:20_000], y[:20_000], x_test, y_test
    return x[20_000:40_000], y[20_000:40_000], x[40_000:45_000], y[40_000:45_000]


class Trainer:
    """SGD with Nesterov momentum 0.9, weight decay 5e-4, cosine from ``lr`` over ``steps``."""

    def __init__(self, steps: int, seed: int, lr: float = 0.05) -> None:
        self.g = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = network()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        self.lr, self.steps, self.step_number = lr, steps, 0

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One optimizer step; the logits of the forward pass that was needed for it."""
        rate = 0.5 * self.lr * (1 + math.cos(math.pi * self.step_number / self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        logits = self.model(augment(x, self.g))
        self.optimizer.zero_grad(set_to_none=True)
        cross_entropy(logits, y).backward()
        self.optimizer.step()
        self.step_number += 1
        return logits.detach()

    @torch.no_grad()
    def accuracy(self, x: Tensor, y: Tensor) -> float:
        """Share of right answers, in evaluation mode."""
        self.model.eval()
        right = sum(
            int((self.model(a).argmax(1) == b).sum())
            for a, b in zip(x.split(1000), y.split(1000), strict=True)
        )
        self.model.train()
        return right / len(x)


def redraw_labels(y: Tensor, share: float, seed: int) -> Tensor:
    """Draw the labels of a share of the examples anew, uniformly over the classes."""
    g = torch.Generator().manual_seed(1000 + seed)
    chosen = torch.rand(len(y), generator=g) < share
    return torch.where(chosen, torch.randint(int(y.max()) + 1, y.shape, generator=g), y)


def score(x: Tensor, y: Tensor, seed: int, epochs: int, window: int, planned: int) -> ScoreTable:
    """Record the first ``epochs`` of a run planned for ``planned`` epochs, batch size 128."""
    per_epoch = -(-len(x) // 128)
    trainer = Trainer(planned * per_epoch, seed)
    tracker = DualTracker(len(x), epochs=epochs, window=window, peers=PEERS)
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=trainer.g).split(128):
            logits = trainer.step(x[index], y[index])
            tracker.update(index, logits, y[index])
        tracker.end_epoch()
    return tracker.table()


def train_on(kept: Tensor, x: Tensor, y: Tensor, seed: int, steps: int) -> Trainer:
    """A fresh network on the kept part for exactly ``steps`` batches of 64."""
    trainer = Trainer(steps, 7919 + seed)
    while trainer.step_number < steps:
        order = kept[torch.randperm(len(kept), generator=trainer.g)]
        for index in order.split(64):
            if trainer.step_number == steps or len(index) < min(64, len(kept)):
                break
            trainer.step(x[index], y[index])
    return trainer


def run_cell(data: dict, table: ScoreTable, options: dict, ratio: float, seed: int, steps: int):
    """Select, train, and return the row's measured part."""
    start = time.perf_counter()
    kept = table.select(ratio, seed=seed, **options)
    trainer = train_on(torch.from_numpy(kept), data["x"], data["y"], seed, steps)
    counts = np.bincount(data["clean"][kept], minlength=10)
    return {
        "steps": steps,
        "accuracy": f"{trainer.accuracy(data['x_test'], data['y_test']):.4f}",
        "kept": len(kept),
        "mean_prob": f"{table.mean_prob[kept].mean():.4f}",
        "wrong_labels": f"{(data['clean'][kept] != data['y'][kept]).float().mean():.4f}",
        "rarest_to_commonest": f"{counts.min() / counts.max():.3f}",
        "seconds": f"{time.perf_counter() - start:.1f}",
    }


def prepare(arrays: tuple[Tensor, ...], noise: float, seed: int) -> dict:
    x, clean, x_test, y_test = arrays
    y = redraw_labels(clean, noise, seed) if noise else clean
    return {"x": x, "y": y, "clean": clean, "x_test": x_test, "y_test": y_test}


def table_for(data: dict, args: argparse.Namespace, seed: int) -> ScoreTable:
    """The seed's scores, from an earlier start of this program if it has got that far."""
    file = args.scores / f"{args.part}_noise{args.noise}_seed{seed}.parquet"
    if file.exists():
        return ScoreTable.from_parquet(file, num_examples=len(data["x"]))
    args.scores.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    table = score(data["x"], data["y"], seed, args.epochs, args.window, args.planned)
    print(f"scoring run, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    table.to_parquet(file)
    return table


def grid(args: argparse.Namespace, arrays: tuple[Tensor, ...]) -> None:
    """Every cell that is not in the CSV yet, the hardest ratios of all seeds first."""
    done = {
        (r["part"], float(r["noise"]), r["method"], float(r["prune_ratio"]), int(r["seed"]))
        for r in rows_of(args.csv)
    }
    for ratio in args.ratios:
        for seed in args.seeds:
            for name in args.methods:
                if (args.part, args.noise, name, ratio, seed) in done:
                    continue
                data = prepare(arrays, args.noise, seed)
                shared = seed if args.score_seed is None or args.noise else args.score_seed
                table = table_for(data, args, shared)
                row = run_cell(data, table, METHODS[name], ratio, seed, args.steps)
                cell = {"part": args.part, "noise": args.noise, "method": name}
                append(args.csv, [{**cell, "prune_ratio": ratio, "seed": seed, **row}], COLUMNS)
                print(name, ratio, seed, row, flush=True)


def nested_shares(table: ScoreTable, options: dict) -> list[float]:
    """Share of each smaller set that lies in the next larger one; ratios ascending, one seed."""
    kept = [table.select(r, **options) for r in sorted(RATIOS)]
    return [float(np.isin(b, a).mean()) for a, b in itertools.pairwise(kept)]


def quick(arrays: tuple[Tensor, ...]) -> None:
    """A minute's version with the claims that hold by wide margins, as assertions."""
    x, clean, x_test, y_test = (a[:6000] for a in arrays)
    ratio = 0.9
    rows = {}
    settings = {"seed": 0, "epochs": 10, "window": 5, "planned": 50}
    data = prepare((x, clean, x_test, y_test), 0.0, 0)
    table = score(x, clean, **settings)
    for name in ("random", "EL2N", "DUAL top-k", "DUAL + Beta"):
        rows[name] = run_cell(data, table, METHODS[name], ratio, 0, 200)
        print(f"{name:12s} accuracy {rows[name]['accuracy']}", flush=True)
    accuracy = {name: float(row["accuracy"]) for name, row in rows.items()}
    print("\nShare of the smaller set in the larger, %, one seed, without `within`; ratios", end="")
    print("", *(f"{a:g}>{b:g}" for a, b in itertools.pairwise(sorted(RATIOS))))
    for name in ("random", "DUAL top-k", "DUAL + Beta", "DUAL + Beta, auto, per class"):
        shares = nested_shares(table, METHODS[name])
        print(f"{name:30s}", *(f"{100 * v:6.1f}" for v in shares), flush=True)
    noisy = prepare((x, clean, x_test, y_test), 0.2, 0)
    table = score(x, noisy["y"], **settings)
    wrong_shares = {
        name: [
            float((noisy["y"][kept] != clean[kept]).float().mean())
            for kept in (table.select(r, **options) for r in RATIOS)
        ]
        for name, options in METHODS.items()
    }
    print("\nWrong labels kept, %, 20 % redrawn; prune ratio", *RATIOS)
    for name, values in wrong_shares.items():
        print(f"{name:30s}", *(f"{100 * v:5.1f}" for v in values), flush=True)
    wrong = {name: values[RATIOS.index(0.7)] for name, values in wrong_shares.items()}
    claims = {
        "EL2N collects wrong labels": wrong["EL2N"] > 2 * wrong["random"],
        "Beta keeps few wrong labels": wrong["DUAL + Beta"] < wrong["random"] / 3,
    }
    if len(x) >= 5000:  # 140 digits are learned whichever they are
        claims |= {
            "DUAL keeps few wrong labels": wrong["DUAL top-k"] < wrong["random"] / 3,
            "hard top-k collapses at 0.9": accuracy["EL2N"] < accuracy["random"] - 0.15,
            "Beta rescues DUAL at 0.9": accuracy["DUAL + Beta"] > accuracy["DUAL top-k"] + 0.10,
        }
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'FAILS'}: {claim}")
    if not all(claims.values()):
        raise SystemExit(1)


def summary(rows: list[dict[str, str]]) -> dict[tuple[float, str, float], tuple[float, float, int]]:
    """(noise, method, ratio) -> mean and standard deviation of the accuracy in percent, runs."""
    cells: dict[tuple[float, str, float], list[float]] = {}
    for row in rows:
        if row["part"] == "report":
            key = (float(row["noise"]), row["method"], float(row["prune_ratio"]))
            cells.setdefault(key, []).append(100 * float(row["accuracy"]))
    return {
        key: (float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else math.nan, len(v))
        for key, v in cells.items()
    }


def markdown(rows: list[dict[str, str]], noise: float, column: str = "accuracy") -> str:
    """One table of the CSV's cells: accuracy, or the mean of another column in percent."""
    ratios = sorted({float(r["prune_ratio"]) for r in rows if float(r["noise"]) == noise})
    lines = ["| method | " + " | ".join(f"{r:g}" for r in ratios) + " |"]
    lines.append("|---" * (len(ratios) + 1) + "|")
    cells = summary(rows)
    for name in METHODS:
        shown = []
        for ratio in ratios:
            mean, spread, count = cells.get((noise, name, ratio), (math.nan, math.nan, 0))
            if column != "accuracy" and count:
                chosen = [
                    float(r[column])
                    for r in rows
                    if (float(r["noise"]), r["method"], float(r["prune_ratio"]))
                    == (noise, name, ratio)
                ]
                shown.append(f"{100 * np.mean(chosen):.1f}")
            elif count > 1:
                shown.append(f"{mean:.1f} ± {spread:.1f} ({count})")
            else:
                shown.append(f"{mean:.1f} (1)" if count else "not run")
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def write_tables(rows: list[dict[str, str]], page: Path) -> None:
    """Put the tables of the CSV between the markers of the page, and print them."""
    parts = []
    for noise in sorted({float(r["noise"]) for r in rows}):
        title = f"Accuracy in percent, {noise:.0%} of the labels redrawn, by prune ratio"
        parts.append(f"{title}:\n\n{markdown(rows, noise)}")
        if noise:
            parts.append(f"Wrong labels kept, percent:\n\n{markdown(rows, noise, 'wrong_labels')}")
    tables = "\n\n".join(parts)
    print(tables)
    replace_between(page, "rules", tables)


def figure(rows: list[dict[str, str]]) -> None:
    """Accuracy against prune ratio, one panel without and one with wrong labels."""
    cells = summary(rows)
    noises = sorted({noise for noise, _, _ in cells})
    fig = pyplot().figure(figsize=(2.4 + 5.0 * len(noises), 4.2))
    for panel, noise in enumerate(noises):
        axes = fig.add_subplot(1, len(noises), panel + 1)
        for name in METHODS:
            points = sorted((r, *cells[n, m, r]) for n, m, r in cells if (n, m) == (noise, name))
            if points:
                ratio, mean, spread, _ = zip(*points, strict=True)
                bold = name == "random" or "DUAL" in name
                axes.errorbar(
                    ratio, mean, np.nan_to_num(spread), color=COLORS[name], label=name, marker="o",
                    ms=4, lw=2 if bold else 1, ls="--" if name == "random" else "-", capsize=2,
                )  # fmt: skip
        axes.set(xlabel="prune ratio (fraction removed)", ylabel="test accuracy, last step, %")
        axes.set_title("clean labels" if not noise else f"{noise:.0%} of the labels redrawn")
        axes.grid(alpha=0.25)
        axes.set_xticks(sorted(RATIOS))
    handles, labels = axes.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    save_figure(fig, "prune_fashion_mnist")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=PACKAGED, help="folder of four IDX files")
    parser.add_argument("--part", choices=("report", "develop"), default="report")
    parser.add_argument("--noise", type=float, default=0.0, help="share of labels redrawn")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument(
        "--score-seed", type=int, help="one scoring run for all seeds; without it one for each"
    )
    parser.add_argument("--methods", nargs="+", default=tuple(METHODS), choices=tuple(METHODS))
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps on the kept part")
    parser.add_argument("--epochs", type=int, default=20, help="T, scoring epochs")
    parser.add_argument("--window", type=int, default=10, help="J")
    parser.add_argument("--planned", type=int, default=130, help="epochs of the whole schedule")
    parser.add_argument("--csv", type=Path, default=RESULTS / "prune_fashion_mnist.csv")
    parser.add_argument("--scores", type=Path, default=SCORES)
    parser.add_argument("--quick", action="store_true", help="a minute, with assertions")
    parser.add_argument("--report", action="store_true", help="tables and figure from the CSV")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.report:
        rows = rows_of(args.csv)
        write_tables(rows, PAGE)
        figure(rows)
        return
    if args.quick:
        quick(load_idx(args.data) if args.data.exists() else load_digits())
        return
    grid(args, part_of(load_idx(args.data), args.part))


if __name__ == "__main__":
    main()
