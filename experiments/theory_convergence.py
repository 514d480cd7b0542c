"""Does spectral descent reach the global minimum? 200 random starts, exact and smoothed.

30 x 35, singular values 5, 4, 3, 2, 1; inner dimensions below, at and above the rank; both
factors Gaussian with scales from 1e-6 to 1; ten seeds each. Constant, then linear step size.

    python experiments/theory_convergence.py   # about one minute

Source: Kang et al., arXiv 2602.06385, theorem 6.2 (for the smoothed flow).
"""

from __future__ import annotations

from functools import partial

import torch
from bed import COLORS
from theory_bed import is_quick, plt, save

from torch_specgd import ConstantThenLinear, SpecGD, check_travel_budget
from torch_specgd import factorization as fz

RANKS = (2, 3, 5, 8, 12)
SCALES = (1e-6, 1e-3, 1e-1, 1.0)
SEEDS = range(10)
STEPS, LR = 600, 0.04
METHODS = {"svd": COLORS["SpecGD"], "smoothed": COLORS["smoothed"]}


def measure(
    ranks: tuple[int, ...] = RANKS, scales: tuple[float, ...] = SCALES, seeds: range = SEEDS
) -> list[dict[str, object]]:
    """How far above the best possible loss each run ends."""
    target = fz.target_from_spectrum(30, 35, [5.0, 4.0, 3.0, 2.0, 1.0])
    sigma = torch.linalg.svdvals(target)
    rows = []
    for method in METHODS:
        for rank in ranks:
            best = 0.5 * sigma[rank:].square().sum()
            for scale in scales:
                start = fz.gaussian_init([35, rank, 30], std=scale, seeds=seeds)
                norm = max(float(torch.linalg.matrix_norm(w, 2).max()) for w in start)
                check_travel_budget([LR * 0.75] * STEPS, sigma_max=5.0, initial_norm=norm)
                run = fz.descend(
                    start,
                    fz.Problem(target),
                    partial(SpecGD, lr=LR, method=method),
                    STEPS,
                    record_every=STEPS,
                    make_scheduler=partial(ConstantThenLinear, total_steps=STEPS),
                )
                relative = (run.loss[-1] - best) / (0.5 * sigma.square().sum())
                rows += [
                    {"method": method, "rank": rank, "init_std": scale, "seed": s,
                     "relative_suboptimality": float(x)}
                    for s, x in enumerate(relative)
                ]  # fmt: skip
    return rows


def main() -> None:
    if is_quick(__doc__):
        rows = measure((5,), (0.1,), range(2))
        assert all(row["relative_suboptimality"] < 1e-4 for row in rows), rows
        return
    rows = measure()
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    for ax, (method, color) in zip(axes, METHODS.items(), strict=True):
        mine = [r for r in rows if r["method"] == method]
        failed = sum(r["relative_suboptimality"] > 1e-4 for r in mine)
        for k, rank in enumerate(RANKS):
            for j, scale in enumerate(SCALES):
                y = [
                    max(r["relative_suboptimality"], 1e-17)
                    for r in mine
                    if r["rank"] == rank and r["init_std"] == scale
                ]
                ax.scatter([5 * j + 0.8 * k] * len(y), y, s=14, alpha=0.7, color=color)
                ax.text(5 * j + 0.8 * k, 4e-18, str(rank), fontsize=8, ha="center", va="center")
        ax.axhline(1e-4, color="gray", linewidth=0.8, linestyle="--")
        ax.set_yscale("log")
        ax.set_ylim(1e-18, 3)
        ax.set_xticks([5 * j + 1.6 for j in range(4)], [f"{s:g}" for s in SCALES])
        ax.set_xlabel("scale of the Gaussian start (small numbers: inner dimension r)")
        name = "exact (svd)" if method == "svd" else "smoothed (1e-2)"
        ax.set_title(f"{name}: {failed} of {len(mine)} runs end above 1e-4", fontsize=11)
    axes[0].set_ylabel("relative suboptimality at the end")
    figure.suptitle(f"SpecGD, {STEPS} steps on a 30 x 35 target of rank 5; one dot is one run")
    save("theory_convergence", figure, rows)
    for method in METHODS:
        worst = [r["relative_suboptimality"] for r in rows if r["method"] == method]
        print(method, "above 1e-4:", sum(x > 1e-4 for x in worst), "worst", max(worst))


if __name__ == "__main__":
    main()
