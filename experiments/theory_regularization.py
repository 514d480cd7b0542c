"""Two penalties, two fixed points: l2 soft-thresholds, decoupled weight decay caps.

30 x 35, singular values 5, 4, 3, 2, 1, constant then linear step size. The third panel counts
the runs in which the weakest modes stay at zero: exact polar factors chatter around a saddle.

    python experiments/theory_regularization.py   # about one minute
"""

from __future__ import annotations

from functools import partial

import torch
from bed import COLORS
from theory_bed import is_quick, plt, save

from torch_specgd import ConstantThenLinear, SpecGD
from torch_specgd import factorization as fz

SIGMA = [5.0, 4.0, 3.0, 2.0, 1.0]
TARGET = fz.target_from_spectrum(30, 35, SIGMA)
SEEDS = range(40)


def run(start: list[torch.Tensor], steps: int, **options: object) -> torch.Tensor:
    """Final singular values, (S, 5)."""
    result = fz.descend(
        start,
        fz.Problem(TARGET),
        partial(SpecGD, lr=0.02, **options),  # type: ignore[arg-type]
        steps,
        record_every=steps,
        make_scheduler=partial(ConstantThenLinear, total_steps=steps),
    )
    return torch.linalg.svdvals(result.products[-1])[:, :5]


def main() -> None:
    start = fz.lora_init(30, 5, 35, seeds=[0])
    if is_quick(__doc__):
        sigma = run(start, 800, l2=1.5, method="smoothed")[0]
        law = torch.linalg.svdvals(fz.soft_threshold(TARGET, 1.5))[:5]
        assert float((sigma - law).abs().max()) < 1e-3, (sigma, law)
        return
    rows = []
    for penalty in (0.0, 0.5, 1.5, 2.5, 3.5, 4.5):
        sigma = run(start, 800, l2=penalty, method="smoothed")[0]
        predicted = torch.linalg.svdvals(fz.soft_threshold(TARGET, penalty))[:5]
        rows += [
            {"part": "l2", "setting": penalty, "mode": SIGMA[i], "method": "smoothed",
             "measured": float(sigma[i]), "predicted": float(predicted[i])}
            for i in range(5)
        ]  # fmt: skip
    for decay in (0.1, 0.3, 0.5, 0.6, 0.7, 0.85, 1.0):
        sigma = run(start, 1200, weight_decay=decay, method="smoothed")[0]
        cap = fz.weight_decay_cap(decay)
        rows += [
            {"part": "weight_decay", "setting": decay, "mode": SIGMA[i], "method": "smoothed",
             "measured": float(sigma[i]), "predicted": min(SIGMA[i], cap)}
            for i in range(5)
        ]  # fmt: skip
    goal = torch.linalg.svdvals(fz.soft_threshold(TARGET, 0.5))[:5]
    for std in (1e-4, 1e-3, 1e-2, 1e-1):
        random = fz.gaussian_init([35, 5, 30], std=std, seeds=SEEDS)
        for method in ("svd", "newton_schulz", "smoothed"):
            stuck = (run(random, 500, l2=0.5, method=method) - goal).abs().amax(1) > 0.1
            rows.append(
                {"part": "stuck", "setting": std, "mode": float("nan"), "method": method,
                 "measured": float(stuck.sum()), "predicted": 0.0}
            )  # fmt: skip

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2))
    labels = {"l2": "l2 (inside the gradient)", "weight_decay": "weight_decay (decoupled)"}
    for ax, part in zip(axes, ("l2", "weight_decay"), strict=False):
        for i, mode in enumerate(SIGMA):
            mine = [r for r in rows if r["part"] == part and r["mode"] == mode]
            color = plt.get_cmap("viridis")(i / 5)
            x = torch.linspace(0.01, max(r["setting"] for r in mine), 300)
            law = (mode - x).clamp(min=0) if part == "l2" else (1 / x**2).clamp(max=mode)
            ax.plot(x, law, color=color, linewidth=1)
            ax.plot([r["setting"] for r in mine], [r["measured"] for r in mine], "o", color=color,
                    markersize=5, label=f"target {mode:.0f}")  # fmt: skip
        ax.set(xlabel=labels[part], ylabel="singular value of the product at the end")
    axes[0].set_title(r"l2: $\max(\sigma - \lambda, 0)$")
    axes[1].set_title(r"weight decay: $\min(\sigma, 1/wd^2)$")
    axes[0].legend(title="dots: measured, lines: theory", title_fontsize=8)
    for k, (method, color) in enumerate(
        {
            "svd": COLORS["SpecGD"],
            "newton_schulz": COLORS["Muon"],
            "smoothed": COLORS["smoothed"],
        }.items()
    ):
        mine = [r for r in rows if r["part"] == "stuck" and r["method"] == method]
        bars = axes[2].bar(
            [j + 0.27 * (k - 1) for j in range(4)], [r["measured"] for r in mine], 0.25,
            color=color, label=f'method="{method}"',
        )  # fmt: skip
        axes[2].bar_label(bars, fmt="%d", fontsize=8)
    axes[2].set_xticks(range(4), [f"{r['setting']:g}" for r in rows if r["part"] == "stuck"][::3])
    axes[2].set(xlabel="scale of the Gaussian start", ylim=(0, 14))
    axes[2].set_ylabel("runs of 40 with a mode off by > 0.1")
    axes[2].set_title(r"l2 = 0.5: runs that miss the optimum")
    axes[2].legend()
    save("theory_regularization", figure, rows)


if __name__ == "__main__":
    main()
