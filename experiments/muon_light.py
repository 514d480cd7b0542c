"""Momentum in eight and four bits on the transformer bed: the loss beside float32's.

    python experiments/muon_light.py            # appends what is missing to the CSV

Six seeds of each, at one rate; the gap is the mean over seeds of the difference to the same seed's
float32 run, with its standard error.
"""

from __future__ import annotations

import argparse
import math
import statistics

from bed import RESULTS, append, read
from muon_bed import QUICK, SETTINGS, Setting, Transformer, train
from torch.optim import Optimizer

from torch_specgd import Muon

OUT = RESULTS / "muon_light.csv"
KEPT = ("float32", "bfloat16", "int8", "int4")
SEEDS = range(1, 7)


def train_with(kept: str, seed: int, setting: Setting) -> float:
    """Return the held-out loss of a run whose momentum is kept in that type."""

    def optimizers(model: Transformer) -> list[Optimizer]:
        hidden = {"params": model.matrices(), "use_muon": True, "lr": 0.02, "state_dtype": kept}
        aside = {"params": model.others(), "use_muon": False, "lr": 0.003, "weight_decay": 0.0}
        return [Muon([hidden, aside], adamw_betas=(0.9, 0.95))]

    return train(setting, optimizers, seed, points=1)[-1].held_out


def measure(kept: str, seed: int) -> float:
    """Return the held-out loss of a run, out of the CSV if it is there."""
    for row in read(OUT):
        if (row["state_dtype"], row["seed"]) == (kept, str(seed)):
            return float(row["held_out"])
    loss = train_with(kept, seed, SETTINGS["plain"])
    append(OUT, [{"state_dtype": kept, "seed": seed, "held_out": f"{loss:.5f}"}])
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps, assertions, no files")
    if parser.parse_args().quick:
        losses = [train_with(kept, 0, QUICK) for kept in KEPT]
        assert max(losses) - min(losses) < 0.05, losses
        return
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
