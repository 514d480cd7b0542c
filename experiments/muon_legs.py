"""Which schedules the matrices of a training run take on a CPU with AVX512_BF16 and no AMX.

    python experiments/muon_legs.py

Trains the "wide" setting of muon_bed.py with `Muon` as it comes, and counts for every kind of
matrix and quarter of the run: the schedules of `plan((512, 512))`, and "again" where a result was
not used.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path

import torch
from muon_bed import SETTINGS, Transformer, train
from muon_transformer import optimizers

from torch_specgd.triton_kernels import orthogonalize

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference.legs import legs_taken

KINDS = ("flat", "long_33", "long_65", "long_65_steep", "deep", "again")


def main() -> None:
    torch.set_num_threads(2)
    setting = SETTINGS["wide"]
    seen: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)

    def watch(step: int, model: Transformer, chosen: list[torch.optim.Optimizer]) -> None:
        if step % 10:
            return
        for name, p in model.blocks.named_parameters():
            if p.ndim != 2 or p.grad is None:
                continue
            update = torch.lerp(p.grad, chosen[0].state[p]["momentum_buffer"], 0.95)
            with legs_taken() as names:
                orthogonalize(update, dtype=torch.bfloat16, accuracy="training")
            seen[4 * (step - 1) // setting.steps, name.split(".")[1]].update(names)

    train(setting, optimizers("auto", 0.04, 0.003), 1, watch=watch)
    print("| quarter, matrix | " + " | ".join(KINDS) + " |\n|---|" + "---:|" * len(KINDS))
    for (quarter, name), counts in sorted(seen.items()):
        print(f"| {quarter + 1}, {name} | {' | '.join(str(counts[k]) for k in KINDS)} |")


if __name__ == "__main__":
    main()
