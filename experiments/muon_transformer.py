"""Muon against AdamW and torch.optim.Muon on real text, and our schedules against each other.

    python experiments/muon_transformer.py            # every run that the CSV does not hold yet
    python experiments/muon_transformer.py --again auto    # forget and redo one optimizer's runs
    python experiments/muon_transformer.py --except auto   # all others

Learning rates are tuned on seed 0 alone, over a grid in steps of a factor of two (AdamW: three)
that is widened until its best point is not at an edge; torch.optim.Muon's and ours at batch 1 as
well as in the plain setting. The comparison uses other seeds. Each finished run is appended to the
CSV at once, so an interrupted program goes on where it stopped.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from bed import RESULTS, append, read, write
from muon_bed import QUICK, SETTINGS, Optimizers, Transformer, train
from torch.optim import AdamW, Optimizer

from torch_specgd import Muon, SpecGD

RUNS = RESULTS / "muon_transformer.csv"
SPECTRA = RESULTS / "muon_spectra.csv"
RUN_FIELDS = ("setting", "optimizer", "lr", "adamw_lr", "seed", "role", "step")
RUN_FIELDS += ("held_out_loss", "train_loss", "seconds")
KEY_FIELDS = {"setting", "optimizer", "lr", "adamw_lr", "seed", "step"}
SPECTRA_FIELDS = ("setting", "step", "matrix", "quantile", "singular_value")

TUNING_SEED, SEEDS = 0, (1, 2, 3)
MORE_SEEDS = (4, 5, 6)  # where differences are as small as the spread: the methods in question
CLOSE = ("torch-muon", "auto", "jordan", "triple")
BETAS, DECAY = (0.9, 0.95), 0.1
GRIDS = {"adamw": (1e-3, 3e-3, 9e-3), "torch-muon": (0.01, 0.02, 0.04), "auto": (0.01, 0.02, 0.04)}
# The coefficients of torch.optim.Muon: its arithmetic ("triple"), and the engine's ("jordan").
JORDAN = {"triple": (3.4445, -4.7750, 2.0315)}
OURS = ("auto", "svd", "polar_express", "degree9_3", "jordan", "triple")
# What runs at torch.optim.Muon's own best learning rate of the setting.
METHODS = {
    "plain": ("torch-muon", "torch-fused", *OURS),
    "small-batch": ("torch-muon", "torch-fused", *OURS),
    "late": ("torch-muon", "auto"),
}
# Batch 1 at twice torch's best rate there, which is the plain setting's best; and at 0.85 of that,
# where exact factors move weights as far as Jordan's do, whose singular values average 0.85.
TOO_HIGH = {"torch-muon": (0.02,), "triple": (0.02,), "svd": (0.02, 0.017), "auto": (0.02, 0.017)}
QUANTILES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def optimizers(name: str, lr: float, adamw_lr: float) -> Optimizers:
    """Returns what makes a model's optimizers.

    Args:
        name: "adamw", "torch-muon", "torch-fused" (the same beside torch's fused AdamW, which our
            Muon steps with), "precise", "svd", "triple" (torch's own, in our Muon), or a name that
            our Muon's ns_coefficients takes.
        lr: Learning rate of the hidden matrices.
        adamw_lr: Learning rate of embeddings, head and norms.
    """

    def make(model: Transformer) -> list[Optimizer]:
        matrices, others = model.matrices(), model.others()
        fused = True if name == "torch-fused" else None
        rest = AdamW(others, lr=adamw_lr, betas=BETAS, weight_decay=0.0, fused=fused)
        if name == "adamw":
            return [AdamW(matrices, lr=lr, betas=BETAS, weight_decay=DECAY), rest]
        if name in ("torch-muon", "torch-fused"):
            return [torch.optim.Muon(matrices, lr=lr, weight_decay=DECAY), rest]
        if name in ("precise", "svd"):
            options = {"momentum": 0.95, "nesterov": True, "adjust_lr_fn": "original"}
            return [SpecGD(matrices, lr=lr, weight_decay=DECAY, method=name, **options), rest]
        schedule = JORDAN.get(name, name)
        hidden = {"params": matrices, "use_muon": True, "lr": lr, "ns_coefficients": schedule}
        aside = {"params": others, "use_muon": False, "lr": adamw_lr, "weight_decay": 0.0}
        return [Muon([hidden, aside], weight_decay=DECAY, adamw_betas=BETAS)]

    return make


def final_loss(setting: str, name: str, lr: float, adamw_lr: float, seed: int) -> float | None:
    """The held-out loss at a run's end, or None if the CSV has no such run."""
    key = (setting, name, f"{lr:g}", f"{adamw_lr:g}", str(seed), str(SETTINGS[setting].steps))
    for row in read(RUNS):
        if tuple(row[f] for f in RUN_FIELDS if f in KEY_FIELDS) == key:
            return float(row["held_out_loss"])
    return None


def spectra_watch(setting: str) -> Callable[[int, Transformer, list[Optimizer]], None]:
    """Records the singular values of what Muon orthogonalizes, over its Frobenius norm."""
    steps = SETTINGS[setting].steps
    if any(row["setting"] == setting for row in read(SPECTRA)):
        return lambda *_: None

    def watch(step: int, model: Transformer, chosen: list[Optimizer]) -> None:
        if step not in (steps // 10, steps // 2, steps - 1):
            return
        rows: list[dict[str, object]] = []
        for name, p in model.blocks.named_parameters():
            if p.ndim != 2:
                continue
            assert p.grad is not None
            u = torch.lerp(p.grad, chosen[0].state[p]["momentum_buffer"], 0.95)
            sigma = torch.linalg.svdvals(u / u.norm())
            for q in QUANTILES:
                value = f"{float(sigma.quantile(q)):.3e}"
                rows.append(dict(zip(SPECTRA_FIELDS, (setting, step, name, q, value), strict=True)))
        append(SPECTRA, rows)

    return watch


def run(setting: str, name: str, lr: float, adamw_lr: float, seed: int) -> float:
    """Trains one model unless the CSV has it; returns the final held-out loss."""
    known = final_loss(setting, name, lr, adamw_lr, seed)
    if known is not None:
        return known
    start = time.process_time()
    look = name == "polar_express" and seed == SEEDS[0]
    curve = train(
        SETTINGS[setting],
        optimizers(name, lr, adamw_lr),
        seed,
        watch=spectra_watch(setting) if look else None,
    )
    seconds = f"{time.process_time() - start:.1f}"
    role = "tune" if seed == TUNING_SEED else "test"
    head = (setting, name, f"{lr:g}", f"{adamw_lr:g}", seed, role)
    rows = [(*head, c.step, f"{c.held_out:.5f}", f"{c.train:.5f}", seconds) for c in curve]
    append(RUNS, [dict(zip(RUN_FIELDS, r, strict=True)) for r in rows])
    print(*head, f"held-out {curve[-1].held_out:.4f} train {curve[-1].train:.4f}", flush=True)
    return curve[-1].held_out


def tune(name: str, adamw_lr: float | None = None, setting: str = "plain") -> float:
    """Returns the best learning rate of a grid that is widened until the best is inside."""
    grid = list(GRIDS[name])
    ratio = grid[1] / grid[0]
    while True:
        losses = [run(setting, name, lr, adamw_lr or lr, TUNING_SEED) for lr in grid]
        best = losses.index(min(losses))
        if 0 < best < len(grid) - 1:
            return grid[best]
        grid = [grid[0] / ratio, *grid] if best == 0 else [*grid, grid[-1] * ratio]


def forget(name: str) -> None:
    """Removes an optimizer's runs from the CSV."""
    kept = [row for row in read(RUNS) if row["optimizer"] != name]
    write(RUNS, kept, RUN_FIELDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--again", action="append", default=[], metavar="OPTIMIZER")
    parser.add_argument("--except", action="append", default=[], metavar="OPTIMIZER", dest="left")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a few steps, assertions, no files")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        for name in ("adamw", "torch-fused", *OURS):
            curve = train(QUICK, optimizers(name, 0.01, 3e-3), 0)
            assert curve[-1].held_out < curve[0].held_out, (name, curve)
        return
    for name in arguments.again:
        forget(name)

    adamw_lr = tune("adamw")
    for seed in SEEDS:
        run("plain", "adamw", adamw_lr, adamw_lr, seed)
    for setting in arguments.settings:
        # "late" takes the plain setting's rate: its held-out loss only shows overfitting.
        tuned = "plain" if setting == "late" else setting
        muon_lr = tune("torch-muon", adamw_lr, tuned)
        for name in METHODS[setting]:
            if name in arguments.left:
                continue
            rates = {muon_lr}
            if name == "auto" and setting == tuned:
                rates.add(tune(name, adamw_lr, setting))
            many = setting != "plain" and name in CLOSE
            for lr in sorted(rates):
                for seed in (*SEEDS, *MORE_SEEDS) if many else SEEDS:
                    run(setting, name, lr, adamw_lr, seed)
            for lr in TOO_HIGH.get(name, ()) if setting == "small-batch" else ():
                for seed in SEEDS:
                    run(setting, name, lr, adamw_lr, seed)


if __name__ == "__main__":
    main()
