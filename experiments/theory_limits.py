"""Where the claims do not hold, shown with the same care.

Left: the 100 x 100, rank 5 completion of Kleinman et al., 1,000 then 1,500 entries, long
pre-training: depth 3 loses more plasticity than depth 2. Middle: completing a 20 x 20 matrix of
rank 2 from 200 entries: equal growth is the opposite of a low-rank bias. Right: fitting a noisy
matrix with more rank than it needs, and the best error that early stopping could find. Bars and
lines are medians, dots and bands the seeds.

    python experiments/theory_limits.py   # about three minutes

Source: mjkleinman/CriticalPeriodDeepLinearNets (setting of the left panel).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from statistics import median

import torch
from bed import BLACK, COLORS
from theory_bed import is_quick, plt, save

from torch_specgd import ConstantThenLinear, SpecGD, effective_rank
from torch_specgd import factorization as fz

OPTIMIZERS = {
    "GD": (partial(torch.optim.SGD, lr=0.02), 4000),
    "Adam": (partial(torch.optim.Adam, lr=0.01), 1500),
    "SpecGD, smoothed": (partial(SpecGD, lr=0.02, method="smoothed"), 1500),
    "SpecGD, svd": (partial(SpecGD, lr=0.02), 1500),
}
METHOD_COLORS = {
    "GD": COLORS["GD"], "Adam": COLORS["AdamW"], "SpecGD, smoothed": COLORS["smoothed"],
    "SpecGD, svd": COLORS["SpecGD"], "cold": COLORS["cold"], "warm": COLORS["warm"],
}  # fmt: skip
Row = dict[str, object]


def row(
    part: str, setting: str, method: str, seed: int, error: float, rank: float = math.nan
) -> Row:
    """One line of the result file."""
    return {"part": part, "setting": setting, "method": method, "seed": seed, "error": error,
            "effective_rank": rank}  # fmt: skip


def kleinman(seeds: Sequence[int] = (1, 2, 3, 4, 5, 6)) -> list[Row]:
    """Depth 2 and 3 in the published setting, as gradient flow (their 1/2 mean loss, rate 0.2)."""
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(100, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    target = left @ right.T
    target = 100 * target / target.norm()
    first, second = (fz.random_mask(100, 100, k, seed=1) for k in (1000, 1500))
    rows = []
    for depth in (2, 3):
        start = fz.gaussian_init(
            [100] * (depth + 1), std=1e-3 ** (1 / depth) / math.sqrt(100), seeds=seeds
        )
        # 100,000 steps of 0.2 on a mean over 1,000 entries are 20 units of time on the sum.
        report = fz.plasticity(
            start, target, first, second,
            pretrain_duration=0.2 * 100_000 / 1000, duration=0.2 * 90_000 / 1500,
            stop_loss=1e-5 * 1500, rtol=1e-4,
        )  # fmt: skip
        rows += [
            row("kleinman", f"depth {depth}", name, seed, float(error))
            for name, rmse in (("cold", report.cold_rmse), ("warm", report.warm_rmse))
            for seed, error in zip(seeds, rmse.square(), strict=True)
        ]
    return rows


def completion(seeds: int = 5, names: tuple[str, ...] = tuple(OPTIMIZERS)) -> list[Row]:
    """Relative squared error on the unseen entries; the seed decides target, mask and start."""
    rows = []
    for name in names:
        make, steps = OPTIMIZERS[name]
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
            error = float(unseen / target[~mask].square().mean())
            rank = float(effective_rank(product))
            rows.append(row("completion", "20 x 20, rank 2", name, seed, error, rank))
    return rows


def denoising(seeds: int = 5) -> tuple[list[Row], dict[str, torch.Tensor]]:
    """Distance from the clean matrix along the path, with r = 20 for a signal of rank 3.

    Returns:
        The best error of each path and of the truncated decomposition; the paths, (seeds, steps).
    """
    rows, paths = [], {}
    for seed in range(seeds):
        clean = fz.target_from_spectrum(40, 40, [10.0, 8.0, 6.0], seed=seed)
        generator = torch.Generator().manual_seed(seed)
        noisy = clean + 0.25 * torch.randn(40, 40, dtype=torch.float64, generator=generator)
        start = fz.gaussian_init([40, 20, 40], std=1e-3, seeds=[seed])
        for name in ("GD", "Adam", "SpecGD, svd"):
            run = fz.descend(start, fz.Problem(noisy), OPTIMIZERS[name][0], 600)
            error = (run.products[:, 0] - clean).flatten(1).norm(dim=1) / clean.norm()
            paths.setdefault(name, []).append(error)
            rows.append(row("denoising", "best on the path", name, seed, float(error.min())))
        u, s, vh = torch.linalg.svd(noisy)
        error = ((u[:, :3] * s[:3]) @ vh[:3] - clean).norm() / clean.norm()
        rows.append(row("denoising", "truncated SVD", "oracle", seed, float(error)))
    return rows, {name: torch.stack(own) for name, own in paths.items()}


def bars(
    ax, rows: list[Row], places: dict[tuple[str, str], float], digits: str, width: float
) -> None:
    """A bar at the median and a dot for each seed, at the place of (setting, method)."""
    for (setting, method), x in places.items():
        mine = [r for r in rows if (r["setting"], r["method"]) == (setting, method)]
        errors = [r["error"] for r in mine]
        ax.bar(x, median(errors), width, alpha=0.6, color=METHOD_COLORS[method])
        ax.scatter([x] * len(errors), errors, s=12, color=METHOD_COLORS[method], zorder=3)
        rank = median(r["effective_rank"] for r in mine)
        told = format(median(errors), digits)
        told += f"\n(eff. rank {rank:.1f})" if rank == rank else ""
        ax.text(x, max(errors), told, ha="center", va="bottom", fontsize=9)


def main() -> None:
    if is_quick(__doc__):
        descent, spectral = completion(1, ("GD", "SpecGD, smoothed"))
        assert descent["error"] < 0.01 < 0.5 < spectral["error"], (descent, spectral)
        return
    first, second = kleinman(), completion()
    third, paths = denoising()
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.3))
    places = {(f"depth {depth}", run): depth - 2 + side for depth in (2, 3)
              for run, side in (("cold", -0.2), ("warm", 0.2))}  # fmt: skip
    bars(axes[0], first, places, ".3f", 0.38)
    axes[0].set_xticks([-0.2, 0.2, 0.8, 1.2], ["depth 2\ncold", "warm", "depth 3\ncold", "warm"])
    axes[0].set(ylabel="squared error on unseen entries", ylim=(0, 1.2))
    axes[0].set_title("100 x 100, rank 5, 1,000 then 1,500\nentries, 6 starts")
    places = {("20 x 20, rank 2", name): float(k) for k, name in enumerate(OPTIMIZERS)}
    bars(axes[1], second, places, ".2g", 0.7)
    axes[1].set_xticks(range(4), [name.replace(", ", "\n") for name in OPTIMIZERS])
    axes[1].set(ylabel="relative squared error on unseen entries", ylim=(0, 3.6),
                title="completion, 5 targets:\nspectral descent does not complete")  # fmt: skip
    for name, error in paths.items():
        color, best = METHOD_COLORS[name], float(error.min(1).values.median())
        middle, steps = error.median(0).values, range(error.shape[1])
        axes[2].plot(steps, middle, color=color, label=f"{name}: best {best:.3f}")
        axes[2].fill_between(steps, error.amin(0), error.amax(0), color=color, alpha=0.25)
    oracle = median(r["error"] for r in third if r["method"] == "oracle")
    axes[2].axhline(oracle, color=BLACK, linestyle="--", linewidth=1,
                    label=f"rank-3 SVD: {oracle:.3f}")  # fmt: skip
    axes[2].set(xlabel="step", ylabel="relative distance from the clean matrix", ylim=(0, 1.05))
    axes[2].set_title("denoising with r = 20 for rank 3,\n5 targets: no step to stop at")
    axes[2].legend()
    save("theory_limits", figure, [*first, *second, *third])


if __name__ == "__main__":
    main()
