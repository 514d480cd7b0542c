"""`Muon.from_adamw` beside a tuned Muon, in settings that its rule was not found on.

    python experiments/muon_from_adamw.py            # appends what is missing to the CSV
    python experiments/muon_from_adamw.py --found    # the settings that the rule was found on

AdamW is tuned first, to the lowest point of the parabola through its losses at three rates, a
factor of 1.73 apart and around the best. `Muon.from_adamw` gets that rate and nothing else. A tuned
Muon is tuned alike, over multiples of that rate for the matrices that are a factor of 1.5 apart,
while everything else stays at AdamW's. Both are compared on seeds that tuned nothing, seed by seed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import mean, stdev
from typing import NamedTuple

from bed import RESULTS, append, read
from muon_bed import QUICK, SETTINGS, Optimizers, Setting, Transformer, train
from torch.optim import AdamW, Optimizer

from torch_specgd import Muon

OUT = RESULTS / "muon_from_adamw.csv"
FIELDS = ("setting", "optimizer", "lr", "multiple", "seed", "held_out")
COMPARING = (2, 3, 4, 5)  # seeds
PLAIN = SETTINGS["plain"]


class Case(NamedTuple):
    """What is trained, and the settings that AdamW has there."""

    setting: Setting
    betas: tuple[float, float] = (0.9, 0.95)
    decay: float = 0.1
    tuning: tuple[int, ...] = (0, 1)  # seeds


# The factor on AdamW's rate is the mean of these, so that they cannot tell how good it is.
FOUND = {
    "plain": Case(PLAIN, tuning=(1,)),
    "batch 4": Case(replace(PLAIN, batch=4), tuning=(1,)),
    "width 64": Case(replace(PLAIN, width=64), tuning=(1,)),
    "3 layers": Case(replace(PLAIN, layers=3), tuning=(1,)),
    "1 layer": Case(replace(PLAIN, layers=1)),
    "250 steps": Case(replace(PLAIN, steps=250), tuning=(1,)),
    "context 32": Case(replace(PLAIN, context=32), tuning=(1,)),
    "beta 0.999": Case(PLAIN, betas=(0.9, 0.999)),
}
# These say how good it is: they were chosen before any of them was run.
CONFIRMED = {
    "narrow, 4 layers": Case(Setting(width=48, layers=4, steps=400)),
    "wide, 1 layer": Case(Setting(width=128, layers=1, batch=4, steps=300)),
    "long warm-up": Case(Setting(width=64, batch=4, steps=400, warmup=0.4)),
    "AdamW's betas, decay 1": Case(
        Setting(width=80, context=32, steps=500), betas=(0.9, 0.999), decay=1.0
    ),
    "short text": Case(Setting(width=80, context=48, batch=12, steps=200, train_bytes=40_000)),
}


def adamw(model: Transformer, case: Case, lr: float) -> AdamW:
    """Make AdamW with decay on the hidden matrices alone."""
    matrices = {"params": model.matrices(), "weight_decay": case.decay}
    others = {"params": model.others(), "weight_decay": 0.0}
    return AdamW([matrices, others], lr=lr, betas=case.betas)


def optimizers(case: Case, name: str, lr: float, multiple: float) -> Optimizers:
    """Make AdamW, Muon at a multiple of its rate, or what follows from AdamW."""

    def make(model: Transformer) -> list[Optimizer]:
        if name == "adamw":
            return [adamw(model, case, lr)]
        if name == "from_adamw":
            return [Muon.from_adamw(adamw(model, case, lr), model)]
        hidden = {"params": model.matrices(), "use_muon": True, "lr": multiple * lr}
        hidden["weight_decay"] = case.decay / multiple
        aside = {"params": model.others(), "use_muon": False, "lr": lr, "weight_decay": 0.0}
        return [Muon([hidden, aside], adamw_betas=case.betas, adjust_lr_fn="match_rms_adamw")]

    return make


def measure(name: str, optimizer: str, lr: float, multiple: float, seed: int) -> float:
    """Return the held-out loss of a run, out of the CSV if it is there."""
    key = [name, optimizer, f"{lr:.3g}", f"{multiple:.3g}", str(seed)]
    for row in read(OUT):
        if [row[field] for field in FIELDS[:5]] == key:
            return float(row["held_out"])
    case = {**FOUND, **CONFIRMED}[name]
    made = optimizers(case, optimizer, float(key[2]), float(key[3]))
    loss = train(case.setting, made, seed, points=1)[-1].held_out
    append(OUT, [dict(zip(FIELDS, [*key, f"{loss:.5f}"], strict=True))])
    return loss


def lowest(loss: Callable[[int], float]) -> float:
    """Return where a parabola through the best of -1, 0, 1, ... and its neighbours is lowest."""
    found = {i: loss(i) for i in (-1, 0, 1)}
    while (best := min(found, key=lambda i: found[i])) in (min(found), max(found)):
        further = best + (1 if best == max(found) else -1)
        found[further] = loss(further)
    below, at, above = (found[best + i] for i in (-1, 0, 1))
    return best + (below - above) / (2 * (below - 2 * at + above))


def tuned(name: str, seeds: Sequence[int], aside: float | None = None) -> tuple[float, float]:
    """Return AdamW's best rate, and the multiple of it that is best for Muon's matrices.

    Args:
        name: Of the setting.
        seeds: Losses are means over these.
        aside: Rate of what is not Muon's; None: AdamW's best.
    """

    def average(optimizer: str, lr: float, multiple: float) -> float:
        return mean(measure(name, optimizer, lr, multiple, seed) for seed in seeds)

    lr = 3e-3 * 3 ** (lowest(lambda i: average("adamw", 3e-3 * 3 ** (i / 2), 1.0)) / 2)
    aside = lr if aside is None else aside
    best = 3 * 1.5 ** lowest(lambda i: average("muon", aside, 3 * 1.5**i))
    return lr, best * aside / lr


def compare(name: str) -> str:
    """Return a row: the tuned rates, then the losses of both on the other seeds."""
    lr, multiple = tuned(name, CONFIRMED[name].tuning)
    best = [measure(name, "muon", lr, multiple, seed) for seed in COMPARING]
    carried = [measure(name, "from_adamw", lr, 1.0, seed) for seed in COMPARING]
    gaps = [a - b for a, b in zip(carried, best, strict=True)]
    error = stdev(gaps) / math.sqrt(len(gaps))
    return (
        f"| {name} | {lr:.2g} | {multiple:.2f} | {mean(best):.3f} | {mean(carried):.3f} | "
        f"{mean(gaps):+.3f} ± {error:.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=list(CONFIRMED), default=list(CONFIRMED))
    parser.add_argument("--found", action="store_true", help="tune where the rule was found")
    parser.add_argument("--quick", action="store_true", help="a few steps, assertions, no files")
    options = parser.parse_args()
    if options.quick:
        made = (
            optimizers(Case(QUICK), name, 3e-3, 3.0) for name in ("adamw", "muon", "from_adamw")
        )
        losses = [train(QUICK, each, 0, points=1)[-1].held_out for each in made]
        assert max(losses) < math.log(256), losses
        return
    if options.found:
        print("| setting | AdamW's best rate | best multiple for matrices |\n|---|---:|---:|")
        for name, case in FOUND.items():
            for seed in case.tuning:
                lr, multiple = tuned(name, (seed,), aside=3e-3)
                print(f"| {name}, seed {seed} | {lr:.2g} | {multiple:.1f} |", flush=True)
        return
    print("| setting | AdamW's rate | best multiple | tuned Muon | `from_adamw` | behind tuned |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in options.settings:
        print(compare(name), flush=True)


if __name__ == "__main__":
    main()
