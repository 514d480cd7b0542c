"""Menon's question: two by two, the diagonal observed as one. Does the flow find a rank-one matrix?

Of W = [[1, x], [y, 1]] the diagonal is known. The matrices of rank one that fit are the hyperbola
x y = 1. Asked is whether gradient flow on W = W_L ... W_1 from a small start ends on it. The answer
by depth: never at depth 2 and never from a diagonal start; from depth 3 on it does as the start
shrinks, in the (alpha, m) family and, without a sign that is known beforehand, from Gaussian ones.

    python experiments/theory_menon.py   # about half a minute

Source: the question is Menon's; the answer for the family is that of Shin and Yun, arXiv
2603.04703, corollary 3.4.
"""

from __future__ import annotations

import math

import torch
from bed import BLACK, DEPTHS
from theory_bed import is_quick, plt, save
from torch import Tensor

from torch_specgd import factorization as fz

ALPHAS = (0.5, 0.3, 0.1, 0.03, 0.01)
SHOWN = (2, 3, 4, 5, 10)
SEEDS = range(40)


def ends(start: list[Tensor]) -> Tensor:
    """The two entries that nobody observed, at the end of the flow, (S, 2)."""
    problem = fz.Problem(torch.ones(2, 2), fz.diagonal_mask(2))
    run = fz.gradient_flow(start, problem, [0.0, 1e60], stop_loss=1e-12)
    return run.products[-1][:, [0, 1], [1, 0]]


def measure(
    depths: tuple[int, ...] = SHOWN, alphas: tuple[float, ...] = ALPHAS, seeds: range = SEEDS
) -> tuple[list[dict[str, object]], dict[int, Tensor]]:
    """|1 - x y| by depth, scale and start; and where Gaussian starts of the smallest scale end."""
    rows, clouds = [], {}
    for depth in depths:
        for alpha in alphas:
            starts = {f"m = {m:g}": fz.family_init(2, depth, alpha=alpha, m=m)
                      for m in (2.0, 10.0, math.inf)}  # fmt: skip
            starts["Gaussian"] = fz.gaussian_init([2] * (depth + 1), std=alpha, seeds=seeds)
            for name, start in starts.items():
                x, y = (found := ends(start)).T
                away = (1 - x * y).abs().quantile(torch.tensor([0.25, 0.5, 0.75]).double())
                rows.append(
                    {"depth": depth, "alpha": alpha, "start": name, "seeds": len(x),
                     "away_low": float(away[0]), "away": float(away[1]),
                     "away_high": float(away[2]),
                     "x": float(x.median()), "y": float(y.median()),
                     "negative": float((x < 0).double().mean())}
                )  # fmt: skip
                if name == "Gaussian" and alpha == min(alphas):
                    clouds[depth] = found
    return rows, clouds


def draw(rows: list[dict[str, object]], clouds: dict[int, Tensor]) -> None:
    """Where the flow ends in the plane of x and y, and how far from the hyperbola."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.3))
    line = torch.logspace(-1, 1, 200)
    for sign in (1, -1):
        axes[0].plot(sign * line, sign / line, color=BLACK, linewidth=1,
                     label="rank one: x y = 1" if sign == 1 else None)  # fmt: skip
    for depth, size in ((2, 4), (3, 13), (10, 8)):
        ring = {"fillstyle": "none", "markeredgewidth": 1.5} if depth > 2 else {}
        x, y = clouds[depth].T
        axes[0].plot(x, y, "o", color=DEPTHS[depth], markersize=size, label=f"depth {depth}",
                     **ring)  # fmt: skip
    axes[0].set(xlim=(-3, 3), ylim=(-3, 3), xlabel="x", ylabel="y", aspect="equal")
    axes[0].set_title(f"40 Gaussian starts, $\\alpha$ = {min(ALPHAS):g}")
    axes[0].legend(loc="upper right")
    for ax, start in zip(axes[1:], ("m = 10", "Gaussian"), strict=True):
        for depth in SHOWN:
            mine = [r for r in rows if (r["depth"], r["start"]) == (depth, start)]
            y = [max(r["away"], 1e-16) for r in mine]
            spread = [[max(v - max(r["away_low"], 1e-16), 0) for v, r in zip(y, mine, strict=True)],
                      [r["away_high"] - r["away"] for r in mine]]  # fmt: skip
            ax.errorbar([r["alpha"] for r in mine], y, spread, fmt="o-", color=DEPTHS[depth],
                        capsize=2, markersize=4, label=f"depth {depth}")  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel=r"scale of the start, $\alpha$", ylim=(1e-7, 2))
        ax.set_title(f"{start}: distance from rank one")
    axes[1].legend(loc="upper left", bbox_to_anchor=(0.0, 0.93))
    axes[1].set_ylabel("|1 - x y|, median and quartiles\n(the flow stops at an error of 1e-6)")
    save("theory_menon", figure, rows)


def main() -> None:
    if is_quick(__doc__):
        rows, _ = measure((2, 3), (0.01,), range(4))
        away = {(r["depth"], r["start"]): r["away"] for r in rows}
        assert away[2, "m = 10"] > 0.1 > 1e-3 > away[3, "m = 10"], away
        assert away[3, "m = inf"] == 1.0, away
        return
    draw(*measure())


if __name__ == "__main__":
    main()
