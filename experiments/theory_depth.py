"""Depth promotes low rank: the stable rank that gradient flow ends at, with its closed form.

Only the diagonal of a matrix of ones is observed. Left and middle: the (alpha, m) family of
starts with n = 4, dots from the integrator, lines from the closed form. Right: Gaussian starts,
10 x 10, median and quartiles over 15 seeds.

    python experiments/theory_depth.py   # about one minute

Source: Shin and Yun, arXiv 2603.04703; the closed form is derived in the documentation.
"""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import torch
from theory_bed import save

from torch_specgd import factorization as fz
from torch_specgd import stable_rank

ALPHAS = (0.5, 0.3, 0.1, 0.03, 0.01)
CONTROLS = (2.0, 10.0, 100.0, math.inf)
DEPTHS = (2, 3, 4)


def ranks(start: list[torch.Tensor], side: int) -> torch.Tensor:
    """Stable ranks at the end of gradient flow on the diagonal, (S,)."""
    problem = fz.Problem(torch.ones(side, side), fz.diagonal_mask(side))
    run = fz.gradient_flow(start, problem, [0.0, 1e9], stop_loss=1e-12)
    return stable_rank(run.products[-1])


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for depth in DEPTHS:
        for m in CONTROLS:
            for alpha in ALPHAS:
                measured = float(ranks(fz.family_init(4, depth, alpha=alpha, m=m), 4))
                rows.append(
                    {"start": "family", "depth": depth, "m": m, "alpha": alpha,
                     "stable_rank": measured, "low": measured, "high": measured,
                     "closed_form": fz.limit_stable_rank(4, depth, alpha=alpha, m=m)}
                )  # fmt: skip
        for alpha in ALPHAS[1:]:
            start = fz.gaussian_init([10] * (depth + 1), std=alpha, seeds=range(15))
            low, middle, high = ranks(start, 10).quantile(
                torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
            )
            rows.append(
                {"start": "gaussian", "depth": depth, "m": math.nan, "alpha": alpha,
                 "stable_rank": float(middle), "low": float(low), "high": float(high),
                 "closed_form": math.nan}
            )  # fmt: skip
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.9), sharey=True, layout="constrained")
    fine = torch.logspace(-2, math.log10(0.5), 60).tolist()
    for ax, depth in zip(axes, DEPTHS, strict=False):
        for k, m in enumerate(CONTROLS):
            color = plt.get_cmap("viridis")(k / 4)
            mine = [r for r in rows if r["depth"] == depth and r["m"] == m]
            law = [fz.limit_stable_rank(4, depth, alpha=a, m=m) for a in fine]
            ax.plot(fine, law, color=color, linewidth=1.2)
            ax.plot(ALPHAS, [r["stable_rank"] for r in mine], "o", color=color, markersize=5,
                    label=f"m = {m:g}" if m < math.inf else "m = ∞ (diagonal)")  # fmt: skip
        ax.set_title(f"depth {depth}, family of starts, n = 4")
    axes[0].legend(fontsize=8, title="dots: flow, lines: closed form", title_fontsize=8)
    for depth, color in zip(DEPTHS, ("#0072B2", "#D55E00", "#009E73"), strict=True):
        mine = [r for r in rows if r["start"] == "gaussian" and r["depth"] == depth]
        y = [r["stable_rank"] for r in mine]
        error = [
            [r["stable_rank"] - r["low"] for r in mine],
            [r["high"] - r["stable_rank"] for r in mine],
        ]
        axes[3].errorbar(
            ALPHAS[1:], y, error, fmt="o-", color=color, capsize=3, label=f"depth {depth}"
        )
    axes[3].set_title("Gaussian starts, 10 x 10")
    axes[3].legend(fontsize=8)
    for ax in axes:
        ax.set(xscale="log", xlabel=r"scale of the start, $\alpha$")
    axes[0].set_ylabel("stable rank of the fitted matrix")
    save("theory_depth", figure, rows)
    gap = max(abs(r["stable_rank"] - r["closed_form"]) for r in rows if r["start"] == "family")
    print("largest difference from the closed form:", gap)


if __name__ == "__main__":
    main()
