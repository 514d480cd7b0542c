"""The small convolutional net of examples/muon_trainer_digits.py: Muon for AdamW in the Trainer.

At each of AdamW's rates the Trainer's AdamW, Muon as ``muon_for_trainer`` sets it up, and Muon with
the matrices at AdamW's own rate; losses after six epochs of digits on the part held out.

    python experiments/muon_trainer.py           # runs that the CSV lacks, under a minute
    python experiments/muon_trainer.py --quick   # one epoch of each, assertions
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile

import torch
from bed import RESULTS, ROOT, append, read

sys.path.append(str(ROOT / "examples"))
from muon_trainer_digits import make_trainer
from torch_specgd import muon_for_trainer

CSV = RESULTS / "muon_trainer.csv"
RATES, SEEDS = (0.005, 0.01, 0.02, 0.04), (0, 1, 2)
KINDS = ("AdamW", "Muon", "Muon, matrices at AdamW's rate")


def loss(kind: str, rate: float, seed: int, epochs: int = 6) -> float:
    """Loss on the test images at the end of a training."""
    with tempfile.TemporaryDirectory() as output:
        trainer = make_trainer(kind != "AdamW", output, epochs, rate, seed)
        if kind == KINDS[2]:
            trainer.optimizer_cls_and_kwargs = muon_for_trainer(
                trainer.model, trainer.args, lr=rate
            )
        trainer.train()
        return float(trainer.evaluate()["eval_loss"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one epoch of each, assertions")
    torch.set_num_threads(1)
    if parser.parse_args().quick:
        losses = [loss(kind, 0.01, 0, epochs=1) for kind in KINDS]
        assert len({*losses}) == 3, losses
        assert max(losses) < 2.0, losses
        return
    done = {(r["optimizer"], r["rate"], r["seed"]) for r in read(CSV)}
    for kind, rate, seed in itertools.product(KINDS, RATES, SEEDS):
        if (kind, str(rate), str(seed)) not in done:
            row = {"optimizer": kind, "rate": rate, "seed": seed, "loss": loss(kind, rate, seed)}
            append(CSV, [row])
            print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
