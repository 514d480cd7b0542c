"""How c_d="auto" was found: DUAL + Beta at many c_D, with and without class quotas.

Runs on the half of Fashion-MNIST that the main experiment does not touch, with other seeds, and
is judged on held-out training images, never on the test set:

    python experiments/prune_c_d.py                # appends to prune_c_d.csv, resumable
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import prune_fashion_mnist as experiment
import torch
from bed import RESULTS, read

C_DS = (4.0, 1.0, 2.0, 8.0, 5.5, 16.0)
VARIANTS: dict[str, dict] = {"random": {"method": "random"}}
VARIANTS |= {
    f"beta c={c:g}{' per class' if per_class else ''}": {"c_d": c, "per_class": per_class}
    for c in C_DS
    for per_class in (True, False)
}
VARIANTS["beta auto per class"] = {"c_d": "auto", "per_class": True}
VARIANTS["beta auto"] = {"c_d": "auto"}
VARIANTS["Dyn-Unc per class"] = {"method": "top", "by": "dyn_unc", "per_class": True}
VARIANTS["random per class"] = {"method": "random", "per_class": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=experiment.PACKAGED)
    parser.add_argument("--csv", type=Path, default=RESULTS / "prune_c_d.csv")
    parser.add_argument("--scores", type=Path, default=experiment.SCORES)
    parser.add_argument("--seeds", type=int, nargs="+", default=(10, 11))
    parser.add_argument("--ratios", type=float, nargs="+", default=(0.9, 0.8))
    settings = {"part": "develop", "noise": 0.0, "steps": 400, "methods": tuple(VARIANTS)}
    parser.set_defaults(**settings, epochs=20, window=10, planned=130, score_seed=None)
    parser.add_argument("--quick", action="store_true", help="two runs on digits, no files kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    experiment.METHODS.update(VARIANTS)
    if args.quick:
        with tempfile.TemporaryDirectory() as folder:
            args.csv, args.scores = Path(folder) / "c_d.csv", Path(folder)
            args.seeds, args.ratios, args.methods = (10,), (0.9,), ("random", "beta auto")
            args.epochs, args.window, args.planned, args.steps = 4, 2, 20, 20
            experiment.grid(args, experiment.load_digits())
            assert len(read(args.csv)) == 2
        return
    experiment.grid(args, experiment.part_of(experiment.load_idx(args.data), "develop"))


if __name__ == "__main__":
    main()
