"""Momentum in eight and four bits on the transformer bed: the loss beside float32's.

    python experiments/muon_light.py            # appends what is missing to the CSV

Six seeds of each, at one rate; the gap is the mean over seeds of the difference to the same seed's
float32 run, with its standard error.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
from pathlib import Path

from muon_bed import SETTINGS, Transformer, train
from torch.optim import Optimizer

from torch_specgd import Muon

OUT = Path(__file__).with_suffix(".csv")
FIELDS = ("state_dtype", "seed", "held_out")
KEPT = ("float32", "bfloat16", "int8", "int4")
SEEDS = range(1, 7)


def measure(kept: str, seed: int) -> float:
    """Return the held-out loss of a run, out of the CSV if it is there."""
    rows = list(csv.reader(OUT.open())) if OUT.exists() else []
    for row in rows:
        if row[:2] == [kept, str(seed)]:
            return float(row[2])

    def optimizers(model: Transformer) -> list[Optimizer]:
        hidden = {"params": model.matrices(), "use_muon": True, "lr": 0.02, "state_dtype": kept}
        aside = {"params": model.others(), "use_muon": False, "lr": 0.003, "weight_decay": 0.0}
        return [Muon([hidden, aside], adamw_betas=(0.9, 0.95))]

    loss = train(SETTINGS["plain"], optimizers, seed, points=1)[-1].held_out
    with OUT.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not rows:
            writer.writerow(FIELDS)
        writer.writerow([kept, seed, f"{loss:.5f}"])
    return loss


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    base = {seed: measure("float32", seed) for seed in SEEDS}
    print("| momentum in | held-out loss | gap to float32, nats a byte |\n|---|---:|---:|")
    for kept in KEPT:
        losses = {seed: measure(kept, seed) for seed in SEEDS}
        gaps = [losses[seed] - base[seed] for seed in SEEDS]
        error = statistics.stdev(gaps) / math.sqrt(len(gaps))
        mean = statistics.mean(losses.values())
        print(f"| {kept} | {mean:.4f} | {statistics.mean(gaps):+.4f} ± {error:.4f} |", flush=True)


if __name__ == "__main__":
    main()
