"""Pre-training on few observations, then more: warm start against cold start, by depth and size.

Three protocols, each for depths 2 and 3 and sizes from 5 x 5 to 100 x 100:

- "family": a matrix of ones, starts of the (alpha, m) family; first the diagonal, then the entries
  above it too, which connect all rows and columns. The paper's setting.
- "gaussian": the same data from Gaussian starts.
- "random": Gaussian starts, a random matrix whose rank is a twentieth of its side (at least one),
  entries drawn at random: first as many as its degrees of freedom, then half as many again. At
  100 x 100 this is the setting of Kleinman et al. up to 25 entries.

Error is the root mean square on entries never observed; entries of the target are of size one. The
loss of plasticity is warm minus cold. Every finished setting is a row of theory_plasticity.csv.

    python experiments/theory_plasticity.py            # half an hour; what the CSV lacks
    python experiments/theory_plasticity.py --figure   # the figure from the CSV

Source: Shin and Yun, arXiv 2603.04703; mjkleinman/CriticalPeriodDeepLinearNets.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import NamedTuple

import torch
from bed import BLUE, RED, RESULTS, append, pyplot, read, save_figure

from torch_specgd import factorization as fz

CSV = RESULTS / "theory_plasticity.csv"
SIZES = (5, 10, 20, 50, 100)


class Setting(NamedTuple):
    """What is completed, and from where; m is nan for Gaussian starts."""

    protocol: str
    size: int
    depth: int
    alpha: float
    m: float
    seeds: int


def plan() -> list[Setting]:
    """All settings, quick ones first."""
    settings = [
        Setting("family", size, depth, 0.01, m, 1)
        for size in SIZES
        for depth in (2, 3, 4, 10)
        for m in (10.0, 100.0, 1000.0, math.inf)
        if size <= (20 if depth > 3 else 100)
    ]
    settings += [
        Setting("family", size, depth, alpha, 10.0, 1)
        for size in (5, 20)
        for depth in (2, 3)
        for alpha in (0.03, 0.1, 0.3, 0.5)
    ]
    for protocol in ("gaussian", "random"):
        settings += [
            Setting(protocol, size, depth, 0.0, math.nan, 20 if size <= 20 else 3)
            for size in SIZES
            for depth in (2, 3)
            if not (protocol == "gaussian" and size > 50)
        ]
    return sorted(settings, key=lambda s: (s.size > 20, s.protocol == "gaussian", s.size > 50))


def entry_scale(size: int, depth: int) -> float:
    """Deviation of a Gaussian entry at which the product's is 1e-3 / sqrt(size): Kleinman's."""
    return 1e-3 ** (1 / depth) / math.sqrt(size)


def completed(setting: Setting, seed: int) -> fz.PlasticityReport:
    """One protocol once; the seed decides target, masks and a Gaussian start."""
    _, size, depth, alpha, m, _ = setting
    if setting.protocol != "family":
        std = entry_scale(size, depth)
        start = fz.gaussian_init([size] * (depth + 1), std=std, seeds=[seed])
    else:
        start = fz.family_init(size, depth, alpha=alpha, m=m)
    options = {"rtol": 1e-4, "stop_loss": 1e-6 * size, "duration": 1e60}
    if setting.protocol != "random":
        masks = fz.diagonal_mask(size), fz.chain_mask(size)
        return fz.plasticity(start, torch.ones(size, size), *masks, **options)
    rank = max(1, size // 20)
    freedom = rank * (2 * size - rank)
    g = torch.Generator().manual_seed(1000 + seed)
    left, right = (torch.randn(size, rank, dtype=torch.float64, generator=g) for _ in range(2))
    target = left @ right.T
    target *= size / target.norm()
    counts = (freedom, freedom * 3 // 2)
    masks = tuple(fz.random_mask(size, size, count, seed=seed) for count in counts)
    # Kleinman's 100,000 steps are 20 units of time where the largest mode grows at 100 / sqrt(5).
    scale = 100 / size * math.sqrt(rank / 5)
    options |= {"pretrain_duration": 20 * scale, "duration": 12 * scale, "stop_loss": 1e-5 * size}
    return fz.plasticity(start, target, *masks, **options)


def measure(setting: Setting) -> dict[str, object]:
    """Medians and quartiles over the seeds."""
    start = time.process_time()
    found: dict[str, list[float]] = {}
    for seed in range(setting.seeds):
        report = completed(setting, seed)
        for key in ("cold_rmse", "warm_rmse", "gap", "pretrained_stable_rank", "cold_stable_rank",
                    "warm_stable_rank"):  # fmt: skip
            found.setdefault(key, []).append(float(getattr(report, key)))
    row: dict[str, object] = {key: str(value) for key, value in setting._asdict().items()}
    for key, values in found.items():
        quartiles = torch.tensor(values).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        row |= {f"{key}_low": quartiles[0], key: quartiles[1], f"{key}_high": quartiles[2]}
    return {**row, "seconds": round(time.process_time() - start, 1)}


def line(ax, rows: list[dict[str, str]], x: str, key: str, **options: object) -> None:
    """Median and quartiles of one column over another."""
    rows = sorted(rows, key=lambda row: float(row[x]))
    y, low, high = ([float(row[k]) for row in rows] for k in (key, f"{key}_low", f"{key}_high"))
    error = [[a - b for a, b in zip(*pair, strict=True)] for pair in ((y, low), (high, y))]
    ax.errorbar([float(row[x]) for row in rows], y, error, capsize=3, markersize=4, **options)


def draw() -> None:
    """Warm and cold errors over the size by protocol; where the family's safety ends."""
    plt = pyplot()
    rows = read(CSV)
    figure, axes = plt.subplots(1, 4, figsize=(15, 4.2))
    titles = {"family": "family, m = 10: diagonal, then chain",
              "gaussian": "Gaussian: diagonal, then chain",
              "random": "Gaussian: random entries"}  # fmt: skip
    for ax, (protocol, title) in zip(axes, titles.items(), strict=False):
        for depth, color in ((2, BLUE), (3, RED)):
            own = {"protocol": protocol, "depth": str(depth)}
            own |= {"m": "10.0", "alpha": "0.01"} if protocol == "family" else {}
            mine = [row for row in rows if own.items() <= row.items()]
            line(ax, mine, "size", "cold_rmse", color=color, fmt="o:", label=f"depth {depth}, cold")
            line(ax, mine, "size", "warm_rmse", color=color, fmt="s-", label=f"depth {depth}, warm")
        ax.axhline(1.0, color="gray", linewidth=0.8, linestyle="--")
        ax.set(title=title, xscale="log", xlabel="side of the matrix", ylim=(-0.05, 2.1),
               xlim=(4.5, 112))  # fmt: skip
        ax.set_xticks(SIZES, [str(s) for s in SIZES])
        ax.minorticks_off()
        ax.legend(loc="upper right")
    axes[0].set_ylabel("RMSE on entries never observed\n(broken: predicting zero)")
    controls = ("10.0", "100.0", "1000.0", "inf")
    for k, size in enumerate((5, 20, 100)):
        mine = {r["m"]: float(r["gap"]) for r in rows if r["protocol"] == "family"
                and (r["depth"], r["alpha"], r["size"]) == ("3", "0.01", str(size))}  # fmt: skip
        there = [m for m in controls if m in mine]
        axes[3].plot([controls.index(m) for m in there], [mine[m] for m in there], "o-",
                     color=plt.get_cmap("viridis")(k / 3), label=f"{size} x {size}")  # fmt: skip
    axes[3].set_xticks(range(4), ["10", "100", "1,000", "∞"])
    axes[3].set(title="family, depth 3: where it ends", xlabel="m, rank control of the start",
                ylabel="warm minus cold", ylim=(-0.05, 1.05))  # fmt: skip
    axes[3].legend()
    save_figure(figure, "theory_plasticity")


def quick() -> None:
    """The smallest sizes: depth 2 loses, depth 3 does not, unless its start is diagonal."""
    gap = {(depth, m): measure(Setting("family", 5, depth, 0.01, m, 1))["gap"]
           for depth, m in ((2, 10.0), (3, 10.0), (3, math.inf))}  # fmt: skip
    assert gap[2, 10.0] > 0.2 > 0.01 > abs(gap[3, 10.0]), gap
    assert gap[3, math.inf] > 0.5, gap
    assert math.isfinite(measure(Setting("random", 5, 2, 0.0, math.nan, 2))["gap"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="seconds, assertions, no files")
    parser.add_argument("--figure", action="store_true", help="the figure alone, from the CSV")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        quick()
        return
    done = {tuple(row[key] for key in Setting._fields) for row in read(CSV)}
    for setting in [] if args.figure else plan():
        if tuple(map(str, setting)) not in done:
            row = measure(setting)
            append(CSV, [row])
            print(*setting, f"cold {row['cold_rmse']:.3g} warm {row['warm_rmse']:.3g}", flush=True)
    draw()


if __name__ == "__main__":
    main()
