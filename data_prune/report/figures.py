"""A score table and a selection -> the report's figures, as inline PNG."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specgd_common.optional import needed

from ..score.table import ScoreTable

# Okabe and Ito's colours: they stay apart for colour-blind readers.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8a8a8a"


def inline_png(draw: Any, width: float = 6.4, height: float = 4.0) -> str:
    """Return an inline PNG of what ``draw(axes)`` draws."""
    canvas = needed("matplotlib.backends.backend_agg", "plot").FigureCanvasAgg
    figure = needed("matplotlib.figure", "plot").Figure(
        figsize=(width, height), dpi=150, layout="constrained"
    )
    canvas(figure)
    draw(figure.add_subplot())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" src="data:image/png;base64,{data}">'


def _legend_above(axes: Any, **options: Any) -> None:
    """Put the legend outside, where it hides no data."""
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, **options)


def draw_map(axes: Any, table: ScoreTable, kept: NDArray[np.int64]) -> None:
    """Draw all examples as density, a sample of the kept ones as dots."""
    known = ~np.isnan(table.score) & ~np.isnan(table.mean_prob)
    density, xs, ys = np.histogram2d(table.mean_prob[known], table.score[known], bins=80)
    density = np.ma.log10(density.T)  # cells without examples are masked
    mesh = axes.pcolormesh(xs, ys, density, cmap="Greys", vmin=-0.5, rasterized=True)
    axes.figure.colorbar(mesh, ax=axes, label="all examples, log10 of the count", pad=0.01)
    some = kept[:: max(1, len(kept) // 1500)]
    axes.plot(
        table.mean_prob[some], table.score[some], ".", ms=2.5, alpha=0.6, color=ORANGE,
        label=f"kept ({len(some):,} of {len(kept):,} shown)",
    )  # fmt: skip
    axes.set(xlabel="mean probability of the label", ylabel="DUAL score", xlim=(-0.01, 1.01))
    _legend_above(axes, markerscale=3)


def draw_beta(
    axes: Any, table: ScoreTable, kept: NDArray[np.int64], settings: dict[str, Any]
) -> None:
    """Draw histograms of the mean probability, and the Beta density that favours some of it."""
    bins = np.linspace(0, 1, 51)
    share = {"density": True, "bins": bins}
    p = table.mean_prob
    axes.hist(p[~np.isnan(p)], color=GREY, alpha=0.5, label="all examples", **share)
    axes.hist(p[kept], histtype="step", color=ORANGE, lw=1.8, label="kept", **share)
    if "alpha" in settings:
        from math import exp, lgamma

        a, b = settings["alpha"], settings["beta"]
        x = np.linspace(0.002, 0.998, 400)
        log_norm = lgamma(a + b) - lgamma(a) - lgamma(b)
        y = np.exp((a - 1) * np.log(x) + (b - 1) * np.log1p(-x)) * exp(log_norm)
        axes.plot(x, y, color=BLUE, lw=2, label=f"Beta({a:.2f}, {b:.2f})")
        axes.axvline(settings["mu_d"], color=BLUE, ls=":", label=f"mu_D = {settings['mu_d']:.2f}")
    axes.set(xlabel="mean probability of the label", ylabel="density", xlim=(0, 1))
    axes.set_ylim(top=1.05 * min(axes.get_ylim()[1], 12))
    axes.legend(frameon=False)


def draw_classes(axes: Any, classes: list[dict[str, Any]], target: float) -> None:
    """Draw the share kept of each class; empty classes stand out."""
    shares = [c["share"] for c in classes]
    colours = [ORANGE if c["kept"] == 0 else BLUE for c in classes]
    axes.bar(range(len(classes)), shares, color=colours, width=0.8)
    axes.axhline(target, color="black", lw=1, ls="--", label=f"whole data set: {target:.1%}")
    for i, c in enumerate(classes):
        if c["kept"] == 0:
            axes.text(i, 0, "empty", rotation=90, ha="center", va="bottom", color=ORANGE)
    if len(classes) <= 30:
        axes.set_xticks(range(len(classes)), [str(c["label"]) for c in classes])
    axes.set(xlabel="class", ylabel="share kept")
    axes.yaxis.set_major_formatter(lambda v, _: f"{100 * v:g} %")
    _legend_above(axes)
