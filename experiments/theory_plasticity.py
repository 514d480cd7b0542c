"""Pre-training on disconnected data, then more data: warm start against cold start, by depth.

5 x 5 matrix of ones: first the diagonal, then the entries above it too (which connect all rows
and columns). Error on the entries never observed.

    python experiments/theory_plasticity.py   # about half a minute

Source: Shin and Yun, arXiv 2603.04703.
"""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import torch
from theory_bed import save

from torch_specgd import factorization as fz

SETTINGS = {
    "depth 2\nm = 10": (2, 1e-3, 10.0),
    "depth 3\nm = 10": (3, 1e-2, 10.0),
    "depth 4\nm = 10": (4, 1e-2, 10.0),
    "depth 3\nm = ∞": (3, 1e-2, math.inf),
    "depth 2\nGaussian": (2, 1e-2, math.nan),
    "depth 3\nGaussian": (3, 1e-2, math.nan),
}


def main() -> None:
    torch.set_num_threads(1)
    first, second, target = fz.diagonal_mask(5), fz.chain_mask(5), torch.ones(5, 5)
    rows = []
    for label, (depth, alpha, m) in SETTINGS.items():
        if math.isnan(m):
            start = fz.gaussian_init([5] * (depth + 1), std=alpha, seeds=range(20))
        else:
            start = fz.family_init(5, depth, alpha=alpha, m=m)
        report = fz.plasticity(start, target, first, second)
        rows.append(
            {"setting": label.replace("\n", ", "), "depth": depth, "alpha": alpha, "m": m,
             "seeds": len(report.gap), "cold_rmse": float(report.cold_rmse.median()),
             "warm_rmse": float(report.warm_rmse.median()), "gap": float(report.gap.median()),
             "pretrained_stable_rank": float(report.pretrained_stable_rank.median()),
             "cold_stable_rank": float(report.cold_stable_rank.median()),
             "warm_stable_rank": float(report.warm_stable_rank.median())}
        )  # fmt: skip
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    x = range(len(SETTINGS))
    for k, (run, color) in enumerate({"cold": "#56B4E9", "warm": "#D55E00"}.items()):
        for ax, key in zip(axes, ("rmse", "stable_rank"), strict=True):
            bars = ax.bar([i + 0.4 * k - 0.2 for i in x], [r[f"{run}_{key}"] for r in rows], 0.38,
                          color=color, label=f"{run} start")  # fmt: skip
            ax.bar_label(bars, fmt="%.2f", fontsize=8)
    axes[1].plot(x, [r["pretrained_stable_rank"] for r in rows], "kD", label="after pre-training")
    axes[0].set_ylabel("RMSE on entries never observed")
    axes[1].set_ylabel("stable rank at the end")
    axes[0].set_title("loss of plasticity = warm minus cold (Gaussian: median of 20)")
    axes[1].set_title("where the warm start is stuck")
    for ax in axes:
        ax.set_xticks(list(x), SETTINGS)
        ax.axvline(3.5, color="gray", linewidth=0.8, linestyle=":")
        ax.legend(fontsize=8)
    save("theory_plasticity", figure, rows)


if __name__ == "__main__":
    main()
