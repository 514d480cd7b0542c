"""What it is worth to orthogonalize attention head by head, on the transformer bed.

    python experiments/muon_per_head.py             # six seeds, about three minutes
    python experiments/muon_per_head.py --seeds 1   # a glance

Both ways take torch.optim.Muon's best rate of the bed, found on another seed
(`muon_transformer.py`). The difference is that of two runs from the same weights on the same
batches. Each finished run is appended to muon_per_head.csv.
"""

from __future__ import annotations

import argparse
from statistics import mean, stdev

from bed import RESULTS, append, read
from muon_bed import QUICK, SETTINGS, Optimizers, Transformer, train
from torch.optim import Optimizer

from torch_specgd import Muon, param_groups

RUNS = RESULTS / "muon_per_head.csv"
LR, ADAMW_LR = 0.02, 3e-3


def optimizers(per_head: bool) -> Optimizers:
    """Return what makes a model's optimizer."""

    def make(model: Transformer) -> list[Optimizer]:
        groups = param_groups(model, adamw={"weight_decay": 0.0}, per_head=per_head)
        options = {"adamw_lr_ratio": ADAMW_LR / LR, "adamw_betas": (0.9, 0.95)}
        return [Muon(groups, lr=LR, weight_decay=0.1, **options)]

    return make


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--quick", action="store_true", help="a few steps, assertions, no files")
    options = parser.parse_args()
    if options.quick:
        losses = [train(QUICK, optimizers(each), 0)[-1].held_out for each in (False, True)]
        assert losses[0] != losses[1], losses
        return
    known = {(r["per_head"], r["seed"]): float(r["held_out_loss"]) for r in read(RUNS)}
    for seed in range(1, options.seeds + 1):
        for per_head in (False, True):
            if (str(per_head), str(seed)) in known:
                continue
            loss = train(SETTINGS["plain"], optimizers(per_head), seed)[-1].held_out
            known[str(per_head), str(seed)] = loss
            row = {"per_head": per_head, "seed": seed, "held_out_loss": f"{loss:.5f}"}
            append(RUNS, [row])
    seeds = [str(seed) for seed in range(1, options.seeds + 1)]
    for per_head in ("False", "True"):
        losses = [known[per_head, seed] for seed in seeds]
        spread = f" ± {stdev(losses):.4f}" if len(losses) > 1 else ""
        print(f"per_head={per_head:5}  held-out loss {mean(losses):.4f}{spread} nats a byte")
    gaps = [known["True", seed] - known["False", seed] for seed in seeds]
    spread = f" ± {stdev(gaps):.4f}" if len(gaps) > 1 else ""
    print(f"difference, seed by seed  {mean(gaps):+.4f}{spread}")


if __name__ == "__main__":
    main()
