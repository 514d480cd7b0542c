"""Where the claims do not hold, shown with the same care.

Left: the 100 x 100, rank 5 completion of Kleinman et al., 1,000 then 1,500 entries, long
pre-training: depth 3 loses MORE plasticity than depth 2. Middle: completing a 20 x 20 matrix of
rank 2 from 200 entries: equal growth is the opposite of a low-rank bias. Right: fitting a noisy
matrix with more rank than it needs, and the best error that early stopping could find.

    python experiments/theory_limits.py   # under two minutes

Source: mjkleinman/CriticalPeriodDeepLinearNets (setting of the left panel).
"""

from __future__ import annotations

import math
from functools import partial

import torch
from bed import COLORS
from theory_bed import is_quick, plt, save

from torch_specgd import ConstantThenLinear, SpecGD, effective_rank
from torch_specgd import factorization as fz

OPTIMIZERS = {
    "GD": (partial(torch.optim.SGD, lr=0.02), 4000),
    "Adam": (partial(torch.optim.Adam, lr=0.01), 1500),
    "SpecGD, smoothed": (partial(SpecGD, lr=0.02, method="smoothed"), 1500),
    "SpecGD, svd": (partial(SpecGD, lr=0.02), 1500),
}
BARS = [COLORS["GD"], COLORS["AdamW"], COLORS["smoothed"], COLORS["SpecGD"]]


def kleinman() -> list[dict[str, object]]:
    """Depth 2 and 3 in the published setting, as gradient flow (their 1/2 mean loss, rate 0.2)."""
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(100, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    target = left @ right.T
    target = 100 * target / target.norm()
    first, second = (fz.random_mask(100, 100, k, seed=1) for k in (1000, 1500))
    rows = []
    for depth in (2, 3):
        start = fz.gaussian_init(
            [100] * (depth + 1), std=1e-3 ** (1 / depth) / math.sqrt(100), seeds=[1, 2, 3]
        )
        # 100,000 steps of 0.2 on a mean over 1,000 entries are 20 units of time on the sum.
        report = fz.plasticity(
            start, target, first, second,
            pretrain_duration=0.2 * 100_000 / 1000, duration=0.2 * 90_000 / 1500,
            stop_loss=1e-5 * 1500, rtol=1e-4,
        )  # fmt: skip
        rows += [
            {"part": "kleinman", "setting": f"depth {depth}", "method": name,
             "error": float(rmse.square().median()), "effective_rank": math.nan}
            for name, rmse in (("cold", report.cold_rmse), ("warm", report.warm_rmse))
        ]  # fmt: skip
    return rows


def completion(
    seeds: int = 5, names: tuple[str, ...] = tuple(OPTIMIZERS)
) -> list[dict[str, object]]:
    """Relative squared error on the unseen entries, median over targets and masks."""
    rows = []
    for name in names:
        make, steps = OPTIMIZERS[name]
        errors, ranks = [], []
        for seed in range(seeds):
            target = fz.target_from_spectrum(20, 20, [10.0, 8.0], seed=seed)
            mask = fz.random_mask(20, 20, 200, seed=seed)
            start = fz.gaussian_init([20, 20, 20], std=1e-3, seeds=[seed])
            run = fz.descend(
                start, fz.Problem(target, mask), make, steps, record_every=steps,
                make_scheduler=partial(ConstantThenLinear, total_steps=steps),
            )  # fmt: skip
            product = run.products[-1, 0]
            unseen = fz.unseen_rmse(product, target, mask).square()
            errors.append(float(unseen / target[~mask].square().mean()))
            ranks.append(float(effective_rank(product)))
        rows.append(
            {"part": "completion", "setting": "20 x 20, rank 2", "method": name,
             "error": sorted(errors)[seeds // 2], "effective_rank": sorted(ranks)[seeds // 2]}
        )  # fmt: skip
    return rows


def denoising() -> tuple[list[dict[str, object]], dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Distance from the clean matrix along the path, with r = 20 for a signal of rank 3."""
    clean = fz.target_from_spectrum(40, 40, [10.0, 8.0, 6.0], seed=0)
    generator = torch.Generator().manual_seed(0)
    noise = 0.25 * torch.randn(40, 40, dtype=torch.float64, generator=generator)
    start = fz.gaussian_init([40, 20, 40], std=1e-3, seeds=[0])
    u, s, vh = torch.linalg.svd(clean + noise)
    oracle = (u[:, :3] * s[:3]) @ vh[:3]
    rows, paths = [], {}
    for name in ("GD", "Adam", "SpecGD, svd"):
        make = OPTIMIZERS[name][0]
        run = fz.descend(start, fz.Problem(clean + noise), make, 600)
        error = (run.products[:, 0] - clean).flatten(1).norm(dim=1) / clean.norm()
        paths[name] = (run.times, error)
        rows.append(
            {"part": "denoising", "setting": "best on the path", "method": name,
             "error": float(error.min()), "effective_rank": math.nan}
        )  # fmt: skip
    rows.append(
        {"part": "denoising", "setting": "truncated SVD", "method": "oracle",
         "error": float((oracle - clean).norm() / clean.norm()), "effective_rank": math.nan}
    )  # fmt: skip
    return rows, paths


def main() -> None:
    if is_quick(__doc__):
        descent, spectral = completion(1, ("GD", "SpecGD, smoothed"))
        assert descent["error"] < 0.01 < 0.5 < spectral["error"], (descent, spectral)
        return
    first, second = kleinman(), completion()
    third, paths = denoising()
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.3))
    for k, (run, color) in enumerate({"cold": "#56B4E9", "warm": "#D55E00"}.items()):
        y = [r["error"] for r in first if r["method"] == run]
        bars = axes[0].bar([i + 0.4 * k - 0.2 for i in range(2)], y, 0.38, color=color,
                           label=f"{run} start")  # fmt: skip
        axes[0].bar_label(bars, fmt="%.3f", fontsize=9)
    axes[0].set_xticks(range(2), ["depth 2", "depth 3"])
    axes[0].set(ylabel="squared error on unseen entries", ylim=(0, 0.6))
    axes[0].set_title("100 x 100, rank 5, median of 3 starts:\nthe deeper net loses more")
    axes[0].legend(fontsize=8)
    bars = axes[1].bar(range(4), [r["error"] for r in second], color=BARS)
    labels = [f"{r['error']:.2g}\n(eff. rank {r['effective_rank']:.1f})" for r in second]
    axes[1].bar_label(bars, labels, fontsize=9)
    axes[1].set_xticks(range(4), [str(r["method"]).replace(", ", "\n") for r in second])
    axes[1].set(ylabel="relative squared error on unseen entries", ylim=(0, 2.6),
                title="completion: spectral descent\ndoes not complete")  # fmt: skip
    for (name, (steps, error)), color in zip(
        paths.items(), (BARS[0], BARS[1], BARS[3]), strict=True
    ):
        axes[2].plot(steps, error, color=color, label=f"{name}: best {float(error.min()):.3f}")
    axes[2].axhline(third[-1]["error"], color="k", linestyle="--", linewidth=1,
                    label=f"rank-3 SVD: {third[-1]['error']:.3f}")  # fmt: skip
    axes[2].set(xlabel="step", ylabel="relative distance from the clean matrix", ylim=(0, 1.05),
                title="denoising with r = 20 for rank 3:\nno step to stop at")  # fmt: skip
    axes[2].legend(fontsize=8)
    save("theory_limits", figure, [*first, *second, *third])


if __name__ == "__main__":
    main()
