"""Depth promotes low rank: the stable rank that gradient flow ends at, with its closed form.

The diagonal, or the 2 x 2 blocks on it, of a matrix of ones is observed. First row: the (alpha, m)
family of starts with n = 4 blocks, dots from the integrator, lines from the closed form, depths 2
to 10. Second row: Gaussian starts, 10 x 10, median and quartiles over 15 seeds; and the way there,
the stable rank over the time of the flow.

    python experiments/theory_depth.py   # about two minutes

Source: Shin and Yun, arXiv 2603.04703; the closed form is derived in the documentation.
"""

from __future__ import annotations

import itertools
import math

import torch
from bed import DEPTHS, RESULTS, append, read, save_figure
from theory_bed import is_quick, plt

from torch_specgd import factorization as fz
from torch_specgd import stable_rank

CSV = RESULTS / "theory_depth.csv"
ALPHAS = (0.45, 0.3, 0.1, 0.03, 0.01)
CONTROLS = (2.0, 10.0, 100.0, math.inf)
SIDES = (1, 2)  # of an observed block
SHOWN = (2, 3, 5, 10)


def end(start: list[torch.Tensor], blocks: int, side: int, stop: float) -> torch.Tensor:
    """Stable ranks at the end of gradient flow on the diagonal blocks, (S,)."""
    problem = fz.Problem(torch.ones(blocks * side, blocks * side), fz.diagonal_mask(blocks, side))
    run = fz.gradient_flow(start, problem, [0.0, 1e60], stop_loss=stop, rtol=1e-5)
    return stable_rank(run.products[-1])


def family(depth: int, side: int, alphas: tuple[float, ...] = ALPHAS) -> list[dict[str, object]]:
    """Flow and closed form from the (alpha, m) starts."""
    rows = []
    for m in CONTROLS:
        for alpha in alphas:
            options = {"alpha": alpha, "m": m, "block_size": side}
            try:
                law = fz.limit_stable_rank(4, depth, **options)
            except ValueError:  # the start is already above what is observed
                continue
            measured = float(end(fz.family_init(4, depth, **options), 4, side, 1e-12))
            rows.append(
                {"start": "family", "block": side, "depth": depth, "m": m, "alpha": alpha,
                 "stable_rank": measured, "low": measured, "high": measured,
                 "closed_form": law, "difference": abs(measured - law)}
            )  # fmt: skip
    return rows


def gaussian(depth: int, side: int) -> list[dict[str, object]]:
    """Quartiles over fifteen Gaussian starts."""
    rows = []
    for alpha in ALPHAS[1:]:
        start = fz.gaussian_init([10] * (depth + 1), std=alpha, seeds=range(15))
        quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
        low, middle, high = end(start, 10 // side, side, 1e-5).quantile(quartiles).tolist()
        rows.append(
            {"start": "gaussian", "block": side, "depth": depth, "m": math.nan, "alpha": alpha,
             "stable_rank": middle, "low": low, "high": high, "closed_form": math.nan,
             "difference": math.nan}
        )  # fmt: skip
    return rows


def measured() -> list[dict[str, object]]:
    """All rows; what the CSV holds is not run again."""
    for name, run in (("family", family), ("gaussian", gaussian)):
        for depth, side in itertools.product((2, 3, 4, 5, 10), SIDES):
            key = (name, str(side), str(depth))
            if key not in {(r["start"], r["block"], r["depth"]) for r in read(CSV)}:
                append(CSV, run(depth, side))
                print(*key, flush=True)
    return [
        {key: value if key == "start" else float(value) for key, value in row.items()}
        for row in read(CSV)
    ]


def panels(rows: list[dict[str, object]], axes: list) -> None:
    """The family's stable ranks over the scale of the start, one panel for each depth."""
    fine = torch.logspace(-2, math.log10(0.45), 50).tolist()
    for ax, depth in zip(axes, SHOWN, strict=True):
        for k, m in enumerate(CONTROLS):
            color = plt.get_cmap("viridis")(k / 4)
            for side, marker, line in ((1, "o", "-"), (2, "s", "--")):
                mine = [r for r in rows if r["start"] == "family"
                        and (r["depth"], r["m"], r["block"]) == (depth, m, side)]  # fmt: skip
                last = max(r["alpha"] for r in mine)
                law = [(a, fz.limit_stable_rank(4, depth, alpha=a, m=m, block_size=side))
                       for a in (*(f for f in fine if f < last), last)]  # fmt: skip
                ax.plot(*zip(*law, strict=True), line, color=color, linewidth=1.2)
                name = f"m = {m:g}" if m < math.inf else "m = ∞ (block-diagonal)"
                ax.plot([r["alpha"] for r in mine], [r["stable_rank"] for r in mine], marker,
                        color=color, markersize=5, label=name if side == 1 else None)  # fmt: skip
        ax.set(title=f"depth {depth}, family, n = 4", xscale="log", ylim=(0.9, 4.2),
               xlabel=r"scale of the start, $\alpha$")  # fmt: skip
    axes[0].set_ylabel("stable rank of the fitted matrix")
    axes[0].legend(title="dots: flow, lines: closed form;\nsquares, broken: blocks of 2 x 2",
                   title_fontsize=8)  # fmt: skip


def ways(axes: list) -> None:
    """Loss and stable rank over the time of the flow, from one Gaussian start for each depth."""
    problem = fz.Problem(torch.ones(10, 10), fz.diagonal_mask(5, 2))
    for depth in SHOWN:
        start = fz.gaussian_init([10] * (depth + 1), std=0.1, seeds=[0])
        # The plateau before a tenth is fitted grows with depth: time counts from its end.
        begin = 0.9 * float(fz.gradient_flow(start, problem, [0.0, 1e-9]).loss[0, 0])
        fitted = fz.gradient_flow(start, problem, [0.0, 1e60], stop_loss=begin, rtol=1e-5)
        times = torch.cat([torch.zeros(1), torch.logspace(-2, 3, 101)]).double()
        run = fz.gradient_flow(fitted.final, problem, times, stop_loss=1e-5, rtol=1e-5)
        still = int((run.loss[:, 0] > 1e-5).sum()) + 1
        for ax, y in zip(axes, (run.loss[:, 0], stable_rank(run.products[:, 0])), strict=True):
            ax.plot(times[1:still], y[1:still], color=DEPTHS[depth], label=f"depth {depth}")
    axes[0].set(yscale="log", ylabel="loss on the blocks", title="training loss, one start")
    axes[1].set(ylabel="stable rank", title="stable rank on the way", ylim=(0.9, None))
    for ax in axes:
        ax.set(xscale="log", xlabel="time since a tenth of the loss fell")
        ax.legend()


def main() -> None:
    if is_quick(__doc__):
        rows = [row for depth in (2, 3, 10) for row in family(depth, 2, (0.3,))]
        gap = max(r["difference"] for r in rows)
        assert gap < 1e-3, gap
        return
    rows = measured()
    figure, axes = plt.subplots(2, 4, figsize=(14, 7.6))
    panels(rows, axes[0])
    for ax, side in zip(axes[1], SIDES, strict=False):
        for depth in (2, 3, 4, 5, 10):
            mine = [r for r in rows if r["start"] == "gaussian"
                    and (r["depth"], r["block"]) == (depth, side)]  # fmt: skip
            y = [r["stable_rank"] for r in mine]
            error = [[r["stable_rank"] - r["low"] for r in mine],
                     [r["high"] - r["stable_rank"] for r in mine]]  # fmt: skip
            ax.errorbar(ALPHAS[1:], y, error, fmt="o-", color=DEPTHS[depth], capsize=3,
                        markersize=4, label=f"depth {depth}")  # fmt: skip
        name = "diagonal" if side == 1 else "5 blocks of 2 x 2"
        ax.set(title=f"Gaussian starts, 10 x 10, {name}", xscale="log", ylim=(0.9, 2.5),
               xlabel=r"standard deviation of an entry, $\alpha$")  # fmt: skip
        ax.legend()
    axes[1, 0].set_ylabel("stable rank of the fitted matrix")
    ways(axes[1, 2:])
    save_figure(figure, "theory_depth")
    gap = max(r["difference"] for r in rows if r["start"] == "family")
    print("largest difference from the closed form:", gap)


if __name__ == "__main__":
    main()
