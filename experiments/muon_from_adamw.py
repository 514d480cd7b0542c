"""`Muon.from_adamw` beside a tuned Muon, in settings that its rule was not found on.

    python experiments/muon_from_adamw.py            # appends what is missing to the CSV

For each setting AdamW is tuned over three rates and Muon over four (matrices; the rest stays at
AdamW's best); `Muon.from_adamw` gets AdamW's best rate and nothing else. One seed for all.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path

from muon_bed import SETTINGS, Optimizers, Setting, Transformer, train
from torch.optim import AdamW, Optimizer

from torch_specgd import Muon

OUT = Path(__file__).with_suffix(".csv")
FIELDS = ("setting", "optimizer", "lr", "held_out")
PLAIN = SETTINGS["plain"]
BED: dict[str, Setting] = {
    "batch-4": replace(PLAIN, batch=4),
    "width-64": replace(PLAIN, width=64),
    "layers-3": replace(PLAIN, layers=3),
    "steps-250": replace(PLAIN, steps=250),
    "context-32": replace(PLAIN, context=32),
}
ADAMW, MUON = (1e-3, 3e-3, 9e-3), (2.0, 3.0, 4.5, 7.0)
BETAS, DECAY = (0.9, 0.95), 0.1


def adamw(model: Transformer, lr: float) -> AdamW:
    """AdamW with decay on the hidden matrices alone."""
    matrices = {"params": model.matrices(), "weight_decay": DECAY}
    return AdamW([matrices, {"params": model.others(), "weight_decay": 0.0}], lr=lr, betas=BETAS)


def optimizers(name: str, lr: float, ratio: float) -> Optimizers:
    """Make AdamW, Muon at ``ratio`` times its rate, or what follows from AdamW."""

    def make(model: Transformer) -> list[Optimizer]:
        if name == "adamw":
            return [adamw(model, lr)]
        if name == "from_adamw":
            return [Muon.from_adamw(adamw(model, lr), model)]
        hidden = {"params": model.matrices(), "use_muon": True, "lr": ratio * lr}
        hidden["weight_decay"] = DECAY / ratio
        aside = {"params": model.others(), "use_muon": False, "lr": lr, "weight_decay": 0.0}
        return [Muon([hidden, aside], adamw_betas=BETAS, adjust_lr_fn="match_rms_adamw")]

    return make


def measure(setting: str, name: str, lr: float, ratio: float = 1.0) -> float:
    """Return the held-out loss of a run, out of the CSV if it is there."""
    key = [setting, name if name != "muon" else f"muon x {ratio:g}", f"{lr:g}"]
    rows = list(csv.reader(OUT.open())) if OUT.exists() else []
    for row in rows:
        if row[:3] == key:
            return float(row[3])
    loss = train(BED[setting], optimizers(name, lr, ratio), seed=1, points=1)[-1].held_out
    with OUT.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not rows:
            writer.writerow(FIELDS)
        writer.writerow([*key, f"{loss:.5f}"])
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=list(BED), default=list(BED))
    print("| setting | AdamW | tuned Muon | from_adamw | from_adamw - tuned |")
    print("|---|---:|---:|---:|---:|")
    for setting in parser.parse_args().settings:
        found = {lr: measure(setting, "adamw", lr) for lr in ADAMW}
        best = min(found, key=lambda lr: found[lr])
        carried = measure(setting, "from_adamw", best)
        tuned = min(measure(setting, "muon", best, ratio) for ratio in MUON)
        cells = f"| {found[best]:.3f} | {tuned:.3f} | {carried:.3f} | {carried - tuned:+.3f} |"
        print(f"| {setting} {cells}", flush=True)


if __name__ == "__main__":
    main()
