"""Does a rate that was tuned on one model serve models of other sizes?

    python experiments/muon_one_rate.py            # runs that the CSV lacks, then the page's table
    python experiments/muon_one_rate.py --report   # the table alone
    python experiments/muon_one_rate.py --quick    # two small cells in seconds, with assertions

Muon's rate is tuned on the transformer of `muon_bed` with width 96, two layers and batches of 8,
and carried to 16 other sizes as it is; `adjust_lr_fn` alone knows the shapes. AdamW's rate,
momentum and the number of steps (200 from width 256 on, else 400) stay. Every size then has its own
optimum: rates a factor of 1.5 apart, further until the best is not at the edge. Four cells carry a
rate over the ranks of adapters on pretrained models, from rank 8; they come from
`lora_pretrained.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from bed import RESULTS, ROOT, append, command_line, read, show
from muon_bed import QUICK, SETTINGS, Setting, Transformer, train
from torch.optim import Optimizer

from torch_specgd import Muon

OUT, LORA = RESULTS / "muon_one_rate.csv", RESULTS / "lora_pretrained.csv"
RULES = ("original", "spectral")
FACTOR, CLOSE, SEED = 1.5, 0.01, 0
RATE, AUX, MOMENTUM = 0.03, 0.006, 0.8
BASE = "width 96, 2 layers, batch 8"
SIZES = (  # width, layers, batch
    (96, 2, 8),
    (64, 2, 8), (128, 2, 8), (192, 2, 8), (256, 2, 8),
    (64, 4, 8), (96, 2, 32), (64, 8, 8), (96, 2, 2), (64, 2, 32), (64, 3, 8), (64, 6, 8),
    (64, 1, 8), (128, 4, 8), (384, 2, 8), (128, 2, 32), (512, 2, 8),
)  # fmt: skip
RANKS = (("minilm", 2), ("minilm", 4), ("minilm", 16), ("smollm2", 16))
Losses = dict[tuple[str, str], dict[float, float]]  # of a cell and a rule, by rate


def cell(width: int, layers: int, batch: int) -> tuple[str, Setting]:
    """Return a size's name and what it trains."""
    steps = 200 if width >= 256 else 400
    setting = replace(SETTINGS["plain"], width=width, layers=layers, batch=batch, steps=steps)
    return f"width {width}, {layers} layer{'s' * (layers > 1)}, batch {batch}", setting


def loss(setting: Setting, rule: str, lr: float) -> float:
    """Return the held-out loss at a run's end."""

    def optimizers(model: Transformer) -> list[Optimizer]:
        hidden = {"params": model.matrices(), "use_muon": True, "lr": lr}
        aside = {"params": model.others(), "use_muon": False, "lr": AUX, "weight_decay": 0.0}
        options = {"momentum": MOMENTUM, "adjust_lr_fn": rule, "adamw_betas": (0.9, 0.95)}
        return [Muon([hidden, aside], **options)]

    return train(setting, optimizers, SEED, points=1)[-1].held_out


def known(path: Path) -> Losses:
    """Return what a CSV holds."""
    found: Losses = {}
    for row in read(path):
        of = found.setdefault((row["cell"], row["rule"]), {})
        of[float(row["lr"])] = float(row["held_out"])
    return found


def bracket(path: Path, name: str, setting: Setting, rule: str, start: float) -> dict[float, float]:
    """Run a rate and its neighbours, further until the best is none of the outermost."""
    losses = known(path).get((name, rule), {})

    def at(power: int) -> float:
        lr = float(f"{start * FACTOR**power:.3g}")
        if lr not in losses:
            losses[lr] = loss(setting, rule, lr)
            append(path, [{"cell": name, "rule": rule, "lr": lr, "held_out": losses[lr]}])
            print(name, rule, lr, f"{losses[lr]:.4f}", flush=True)
        return losses[lr]

    low, high = -1, 1
    values = {power: at(power) for power in (0, -1, 1)}
    while (best := min(values, key=values.__getitem__)) in (low, high):
        low, high = low - (best == low), high + (best == high)
        values[low], values[high] = at(low), at(high)
    return losses


def run_all(path: Path, rules: tuple[str, ...]) -> None:
    """Tune every rule on the first size, and bracket its rate in the others."""
    for rule in rules:
        base = bracket(path, *cell(*SIZES[0]), rule, RATE)
        carried = min(base, key=base.__getitem__)
        for size in SIZES[1:]:
            bracket(path, *cell(*size), rule, carried)


def ranks() -> dict[str, tuple[float, dict[float, float]]]:
    """Return (the rate of rank 8, losses by rate) of each rank that was tuned."""
    of: dict[tuple[str, int], dict[float, float]] = {}
    for row in read(LORA):
        if (row["seed"], row["method"]) == ("0", "Muon"):
            of.setdefault((row["model"], int(row["rank"])), {})[float(row["lr"])] = float(
                row["held_loss"]
            )
    found = {}
    for model, rank in RANKS:
        first, own = of.get((model, 8), {}), of.get((model, rank), {})
        if first and min(first, key=first.__getitem__) in own:
            found[f"{model}, rank {rank}"] = min(first, key=first.__getitem__), own
    return found


def lines(cells: Mapping[str, tuple[float, dict[float, float]]]) -> list[str]:
    """Return a table: what the carried rate and the best one give in every cell."""
    made, near = [], 0
    for name, (carried, losses) in cells.items():
        best = min(losses, key=losses.__getitem__)
        own = losses[best]
        gap = losses[carried] - own
        near += gap <= CLOSE
        made.append(f"| {name} | {losses[carried]:.4f} | {best:g} | {own:.4f} | {gap:.4f} |")
    head = "| cell | carried rate | own best rate | its loss | behind |"
    return [
        f"{near} of {len(cells)} cells are within {CLOSE} nats of their own optimum.",
        "", head, "|---|---:|---:|---:|---:|", *made,
    ]  # fmt: skip


def report(path: Path) -> str:
    """Return the page's tables."""
    losses, parts = known(path), []
    for rule in RULES:
        base = losses.get((BASE, rule), {})
        if len(base) < 3:
            continue
        rate = min(base, key=base.__getitem__)
        cells = {
            name: (rate, losses[name, rule])
            for name, _ in (cell(*size) for size in SIZES[1:])
            if rate in losses.get((name, rule), {}) and len(losses[name, rule]) >= 3
        }
        text = f'`adjust_lr_fn="{rule}"`, {rate:g} from the base, whose loss is {base[rate]:.4f}:'
        parts += [text, *lines(cells), ""]
    if found := ranks():
        parts += ["Ranks of adapters, from rank 8, rates a factor of 3 apart:", *lines(found)]
    return "\n".join(parts)


def quick() -> None:
    """Try both rules for a few steps, without files."""
    for rule in RULES:
        for width in (16, 32):
            assert math.isfinite(loss(replace(QUICK, width=width), rule, RATE)), (rule, width)


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__, OUT)
    parser.add_argument("--rule", choices=RULES, help="one of the two alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        quick()
        return
    if not args.report:
        run_all(args.csv, (args.rule,) if args.rule else RULES)
    show(report(args.csv), ROOT / "docs" / "muon_results.md", "one rate", args.csv == OUT)


if __name__ == "__main__":
    main()
